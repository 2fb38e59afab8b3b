"""Test exit codes, errors in one sentence, and the JSON document in every case."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import qkedit as package
from qkedit.cli import app as main
from qkedit.cli import output
from qkedit.steering.outputs import full as full_output
from tests.cli.command import Result, qkedit
from tests.steering.checkpoints import contents, key_name, query_name, tensors_of


@pytest.fixture
def edited(base: Path, tmp_path: Path) -> Path:
    out = tmp_path / "edited"
    assert qkedit("steer", base, "--layers", "0-1", "--out", out, "--no-fsync").code == 0
    return out


def tamper(directory: Path) -> None:
    path = directory / "tokenizer.json"
    path.write_bytes(b"!" + path.read_bytes())


# --- success


def test_steer_prints_layers_energy_size_time_and_output(base: Path, tmp_path: Path) -> None:
    result = qkedit("steer", "--model", base, "--layers", "0-1", "--k", "2", "--out", tmp_path / "out", "--no-fsync")
    assert (result.code, result.stderr) == (0, "")
    report = json.loads((tmp_path / "out" / "qkedit.json").read_text())
    heads = [head for tensor in report["tensors"] for head in tensor["heads"]]
    energy = sum(head["energy_removed"] for head in heads) / len(heads)
    for said in ("0-1 (8 heads)", f"{energy:.1%}", "2 q_proj tensors, 8.2 kB", " s", str(tmp_path / "out")):
        assert said in result.stdout


def test_json_of_a_run_holds_report_and_manifest(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = qkedit("steer", base, "--layers", "1", "--out", out, "--json", "--no-fsync")
    assert (result.code, result.stderr) == (0, "")
    document = result.document
    assert list(document)[:4] == ["schema", "command", "status", "warnings"]
    assert (document["schema"], document["command"], document["status"]) == (1, "steer", "done")
    assert document["manifest"] == json.loads((out / "qkedit.json").read_text())
    assert document["out"] == str(out)
    assert document["bytes_changed"] == tensors_of(base)[query_name(1)].nbytes
    assert document["bytes_in_output"] == sum(map(len, contents(out).values()))
    assert document["seconds"]["total"] > 0


def test_quiet_prints_nothing_on_success(base: Path, tmp_path: Path, edited: Path) -> None:
    for arguments in (
        ("steer", base, "--layers", "1", "--out", tmp_path / "out"),
        ("verify", edited),
        ("apply", _delta(base, tmp_path), "--base", base, "--out", tmp_path / "applied"),
    ):
        assert qkedit(*arguments, "--quiet") == Result(0, "", "")


def _delta(base: Path, tmp_path: Path) -> Path:
    assert qkedit("steer", base, "--layers", "1", "--layout", "delta", "--out", tmp_path / "delta").code == 0
    return tmp_path / "delta"


def test_a_dry_run_prints_the_plan_and_writes_nothing(base: Path, tmp_path: Path) -> None:
    arguments = ("steer", base, "--layers", "0-1", "--heads", "1-3", "--out", tmp_path / "out", "--dry-run")
    result = qkedit(*arguments)
    assert (result.code, result.stderr) == (0, "")
    for said in (query_name(0), query_name(1), "4 on 2", "separate", "disk needed", "free", "Nothing was written."):
        assert said in result.stdout
    document = qkedit(*arguments, "--json").document
    tensors = tensors_of(base)
    queries, keys = ([name(layer) for layer in (0, 1)] for name in (query_name, key_name))
    assert [layer["tensor"] for layer in document["layers"]] == queries
    assert {(layer["query_heads"], layer["key_heads"], layer["group_size"]) for layer in document["layers"]} == {
        (4, 2, 2)
    }
    assert [layer["edited_heads"] for layer in document["layers"]] == [[1, 2, 3]] * 2
    assert document["bytes_to_read"] == sum(tensors[name].nbytes for name in (*queries, *keys))
    assert document["bytes_to_write"] == sum(tensors[name].nbytes for name in queries)
    assert document["disk_needed"] == sum(map(len, contents(base).values()))
    assert abs(document["disk_free"] - shutil.disk_usage(tmp_path).free) < 1 << 30
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            (),
            "remove the 4 dominant modes of each head's query-key product, completely, in layers 0-1 of base "
            "(8 heads), and write nothing, as no --out is given.",
        ),
        (
            ("--k", "1", "--heads", "0", "--retain", "0.5", "--channel", "symmetric", "--out", "out"),
            "remove the 1 dominant mode of each head's query-key product's symmetric part, leaving 0.5 of each, in "
            "layers 0-1 of base (2 heads), and write the full checkpoint to out.",
        ),
        (
            ("--energy", "0.3", "--control", "index", "--seed", "2", "--layout", "delta", "--out", "out"),
            "remove as many other modes, drawn at random (a control, seed 2), instead of the dominant modes that "
            "carry 0.3 of the energy of each head's query-key product, completely, in layers 0-1 of base (8 heads), "
            "and write a delta, the edited tensors alone, to out.",
        ),
    ],
)
def test_a_dry_run_describes_the_plan_in_a_sentence(base: Path, options: tuple[str, ...], said: str) -> None:
    shown = qkedit("steer", base, "--layers", "0-1", "--dry-run", *options).stdout
    assert f"A run would {said}\nNothing was written.\n" in shown


def test_a_dry_run_of_a_delta_needs_less_disk(base: Path) -> None:
    document = qkedit("steer", base, "--layers", "0", "--layout", "delta", "--dry-run", "--json").document
    assert document["disk_needed"] == document["bytes_to_write"] == tensors_of(base)[query_name(0)].nbytes


def test_a_dry_run_is_refused_like_the_run(base: Path, tmp_path: Path, edited: Path) -> None:
    arguments = ("steer", base, "--layers", "0", "--dry-run")
    for refused, said in (
        (("--out", edited), "already exists"),
        (("--out", base / "config.json" / "out"), "not a directory"),
        (("--device", "cuda:77"), "no device"),
    ):
        result = qkedit(*arguments, *refused)
        assert result.code == 2
        assert said in result.sentence()
    assert qkedit(*arguments, "--out", edited, "--overwrite").code == 0


def test_a_dry_run_lists_the_files_that_a_run_would_replace(base: Path, edited: Path) -> None:
    arguments = ("steer", base, "--layers", "0", "--dry-run", "--out", edited)
    ours = sorted(contents(edited))
    document = qkedit(*arguments, "--overwrite", "--json").document
    assert document["replaces"] == {"written_by_qkedit": ours, "others": [], "changed": []}
    (edited / "checkpoint-500").mkdir()
    (edited / "checkpoint-500" / "optimizer.pt").write_text("mine")
    refused = qkedit(*arguments, "--overwrite")
    assert refused.code == 2
    assert "(checkpoint-500/)" in refused.sentence()
    document = qkedit(*arguments, "--force", "--json").document
    assert document["replaces"] == {
        "written_by_qkedit": ours,
        "others": ["checkpoint-500/optimizer.pt"],
        "changed": [],
    }
    assert "would be removed: checkpoint-500/" in qkedit(*arguments, "--force").stdout
    assert (edited / "checkpoint-500" / "optimizer.pt").exists()


@pytest.mark.parametrize("link", ["hard", "symlink"])
def test_a_dry_run_does_not_count_linked_files(base: Path, tmp_path: Path, link: str) -> None:
    arguments = ("steer", base, "--layers", "0", "--link", link, "--out", tmp_path / "out", "--no-fsync")
    needed = qkedit(*arguments, "--dry-run", "--json").document["disk_needed"]
    assert qkedit(*arguments).code == 0
    own = [path for path in (tmp_path / "out").iterdir() if not path.is_symlink() and path.stat().st_nlink == 1]
    assert needed == sum(path.stat().st_size for path in own if path.name not in ("qkedit.json", "README.md"))
    assert needed < sum(map(len, contents(base).values()))


def test_verify_and_diff_print_their_findings(base: Path, edited: Path) -> None:
    verified = qkedit("verify", edited, "--base", base)
    assert (verified.code, verified.stderr) == (0, "")
    assert "2 edited tensors as recorded" in verified.stdout
    differences = qkedit("diff", base, edited)
    assert differences.code == 0
    assert query_name(0) in differences.stdout
    assert f"2 of {len(tensors_of(base))} tensors differ." in differences.stdout
    document = qkedit("diff", base, edited, "--json").document
    assert [found["name"] for found in document["differences"]] == [query_name(0), query_name(1)]
    assert "0 of" in qkedit("diff", base, base).stdout


def test_verify_without_a_base_warns(edited: Path) -> None:
    result = qkedit("verify", edited)
    assert result.code == 0
    assert result.stderr.startswith("warning: no base was given")
    document = qkedit("verify", edited, "--json").document
    assert len(document["warnings"]) == 1
    assert document["compared_with_base"] is None


def test_the_version_is_printed() -> None:
    assert qkedit("--version").stdout == f"qkedit {package.__version__}\n"


# --- exit codes and errors


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["steer", "BASE", "--layers", "3", "--out", "OUT"], 2, "layers 0 to 2"),
        (["steer", "BASE", "--heads", "4", "--layers", "1", "--out", "OUT"], 2, "heads 0 to 3"),
        (["steer", "BASE", "--layers", "1"], 2, "--out: no output directory is given"),
        (["steer", "--layers", "1", "--out", "OUT"], 2, "no model is named"),
        (["steer", "BASE", "--model", "BASE", "--out", "OUT"], 2, "the model is named twice"),
        (["steer", "BASE", "--k", "2", "--energy", "0.5", "--out", "OUT"], 2, "both say how many"),
        (["steer", "BASE", "--k", "two", "--out", "OUT"], 2, "qkedit steer --help"),
        (["steer", "BASE", "--k", "0", "--out", "OUT"], 2, "0 modes"),
        (["steer", "BASE", "--laers", "1"], 2, "--layers"),
        (["steer", "BASE", "OTHER", "--out", "OUT"], 2, "qkedit steer --help"),
        (["steer", "BASE", "--layout", "zip", "--dry-run"], 2, "no layout 'zip'"),
        (["steer", "BASE", "--link", "junction", "--dry-run"], 2, "'junction'"),
        (["steer", "BASE", "--out", "BASE"], 2, "base"),
        (["steer", "BASE", "--out", "BASE/inside"], 2, "base"),
        (["steer", "BASE", "--out", "nowhere/../out"], 2, "leads up"),
        (["steer", "./missing", "--out", "OUT"], 2, "no such directory"),
        (["steer", "qwen2-vI", "--out", "OUT"], 2, "did you mean"),
        (["steer", "BASE", "--revision", "main", "--out", "OUT"], 2, "revision"),
        (["steer", "EMPTY", "--out", "OUT"], 1, "config.json"),
        (["apply", "BASE", "--out", "OUT"], 2, "--base"),
        (["apply", "BASE", "--base", "BASE"], 2, "--out"),
        (["apply", "BASE", "--base", "BASE", "--out", "OUT"], 1, "qkedit.json"),
        (["apply"], 2, "qkedit apply --help"),
        (["verify", "BASE"], 1, "qkedit.json"),
        (["verify"], 2, "qkedit verify --help"),
        (["diff", "BASE"], 2, "qkedit diff --help"),
        (["diff", "BASE", "EMPTY"], 1, "config.json"),
        (["stear", "BASE"], 2, "steer"),
        (["--nonsense"], 2, "--nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_failures_are_one_sentence_or_one_document(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"BASE": "base", "OUT": "out", "EMPTY": "./empty", "BASE/inside": "base/inside"}
    words = [places.get(word, word) for word in arguments]
    plain = qkedit(*words)
    assert plain.code == code
    assert said in plain.sentence()
    assert qkedit(*words, "--quiet").code == code

    result = qkedit(*words, "--json")
    assert (result.code, result.stderr) == (code, "")
    document = result.document
    assert list(document) == ["schema", "command", "status", "warnings", "error"]
    assert document["status"] == "failed"
    assert document["command"] == (words[0] if words[0] in ("steer", "apply", "verify", "diff") else "qkedit")
    assert set(document["error"]) == {"what", "where", "remedy"}
    assert document["error"]["what"]
    assert sorted(os.listdir(tmp_path)) == ["base", "empty"]


def test_json_can_be_set_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKEDIT_JSON", "1")
    assert qkedit("steer", "--nonsense").document["status"] == "failed"
    monkeypatch.setenv("QKEDIT_JSON", "false")
    assert qkedit("steer", "--nonsense").sentence()


def test_a_mismatch_is_exit_code_3_and_names_the_files(base: Path, edited: Path) -> None:
    tamper(edited)
    result = qkedit("verify", edited, "--base", base)
    assert (result.code, result.stdout) == (3, "tokenizer.json: differs from the base\n")
    assert result.stderr.startswith("error: ")
    result = qkedit("verify", edited, "--base", base, "--json")
    assert (result.code, result.stderr) == (3, "")
    assert result.document["status"] == "failed"
    assert result.document["mismatches"] == ["tokenizer.json: differs from the base"]
    assert result.document["error"]["mismatches"] == ["tokenizer.json: differs from the base"]


def test_an_existing_output_is_replaced_only_with_overwrite(base: Path, edited: Path) -> None:
    before = contents(edited)
    arguments = ("steer", base, "--layers", "2", "--out", edited, "--no-fsync")
    result = qkedit(*arguments)
    assert result.code == 2
    assert "--overwrite" in result.sentence()
    assert contents(edited) == before
    assert qkedit(*arguments, "--overwrite").code == 0
    assert contents(edited) != before


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "the device's memory ran out"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            1,
            "a library could not be loaded (libtorch_cpu.so: failed to map segment from shared object); free memory",
        ),
        (
            OSError("libgomp.so.1: failed to map segment from shared object"),
            1,
            "a library could not be loaded (libgomp.so.1: failed to map segment from shared object); free memory",
        ),
        (ZeroDivisionError("by zero"), 1, "unexpected ZeroDivisionError: by zero; run again with --debug"),
    ],
    ids=["ctrl-c", "memory", "memory of a GPU", "library", "dependency of a library", "defect"],
)
def test_an_aborted_run_leaves_no_output(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
    said: str,
    as_json: bool,
) -> None:
    def fail(*_: Any) -> None:
        raise raised

    monkeypatch.setattr(full_output.FullWriter, "writing", fail)
    arguments = ("steer", base, "--layers", "1", "--out", tmp_path / "out")
    result = qkedit(*arguments, *(["--json"] if as_json else []))
    assert result.code == code
    if as_json:
        assert said.split(";")[0] in result.document["error"]["what"]
    else:
        assert said in result.sentence()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def _interrupt_while_a_class_is_made() -> None:
    class Interrupting:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    class Made:
        attribute = Interrupting()


@pytest.mark.parametrize("where", ["application", "Typer", "import", "Abort"])
def test_ctrl_c_before_the_command_begins_is_one_sentence(
    base: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(words: list[str]) -> int:
        if where == "Typer":
            return 130  # Typer itself returns the code, without a message
        if where == "import":
            _interrupt_while_a_class_is_made()  # Python up to 3.11 turns it into a RuntimeError
        raise typer.Abort if where == "Abort" else KeyboardInterrupt

    monkeypatch.setattr(output.Interrupted, "was_said", False)

    monkeypatch.setattr(main.application, "run", fail)
    result = qkedit("steer", base, "--dry-run")
    assert result.code == 130
    assert "interrupted" in result.sentence()
    monkeypatch.setattr(output.Interrupted, "was_said", False)
    result = qkedit("steer", base, "--dry-run", "--json")
    assert (result.code, result.stderr, result.document["status"]) == (130, "", "failed")


def test_debug_prints_the_traceback(base: Path, tmp_path: Path) -> None:
    result = qkedit("steer", base, "--layers", "9", "--out", tmp_path / "out", "--debug")
    assert result.code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_debug_keeps_the_document(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_output.FullWriter, "writing", lambda *_: 1 // 0)
    result = qkedit("steer", base, "--layers", "1", "--out", tmp_path / "out", "--debug", "--json")
    assert result.code == 1
    assert "ZeroDivisionError" in result.document["error"]["what"]
    assert "Traceback" in result.stderr


def test_names_with_brackets_are_not_markup(tmp_path: Path) -> None:
    from tests.steering.checkpoints import weights, write

    tensors = weights()
    one = write(tmp_path / "[bold]one", tensors | {"[/red][link=x]:smile:": tensors[query_name(0)]})
    other = write(tmp_path / "other", tensors)
    result = qkedit("diff", one, other)
    assert result.code == 0
    assert "[/red][link=x]:smile:" in result.stdout
    assert "[bold]nowhere" in qkedit("steer", "./[bold]nowhere", "--out", tmp_path / "out").sentence()


def test_warnings_go_to_standard_error_and_into_the_document(base: Path, tmp_path: Path) -> None:
    arguments = ("steer", base, "--layers", "1", "--k", "9", "--no-fsync")
    result = qkedit(*arguments, "--out", tmp_path / "one")
    assert "warning: 4 heads have fewer than 9 modes" in result.stderr
    assert "warning:" not in result.stdout
    result = qkedit(*arguments, "--out", tmp_path / "two", "--json")
    assert result.stderr == ""
    assert any("fewer than 9 modes" in warning for warning in result.document["warnings"])
    assert qkedit(*arguments, "--out", tmp_path / "three", "--quiet").stderr == ""
