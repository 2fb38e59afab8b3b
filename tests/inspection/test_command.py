"""Test `qkedit inspect`."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import qkedit as library
from qkedit.demo import SMALL_DEMO
from tests.cli.command import ROOT, qkedit
from tests.fake_hub import COMMIT, serve_hub
from tests.steering.checkpoints import (
    HEAD_SIZE,
    HEADS,
    KEY_HEADS,
    LAYERS,
    contents,
    key_name,
    query_name,
    weights,
    write,
)

# Like the installed script.
RUN = (sys.executable, "-c", "from qkedit.cli.app import run; run()", "inspect")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("QKEDIT_") or name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            monkeypatch.delenv(name)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base", weights())


def test_json_has_spectra_of_every_head(base: Path) -> None:
    before = contents(base)
    document = qkedit("inspect", base, "--allow-text-only", "--json").document
    assert document["command"] == "inspect"
    assert document["status"] == "done"
    assert (document["model"], document["channel"], document["offset"]) == ("base", "full", 0)
    assert [layer["layer"] for layer in document["layers"]] == list(range(LAYERS))
    for layer in document["layers"]:
        assert [head["head"] for head in layer["heads"]] == list(range(HEADS))
        assert [head["key_head"] for head in layer["heads"]] == [head * KEY_HEADS // HEADS for head in range(HEADS)]
        for head in layer["heads"]:
            assert len(head["singular_values"]) == HEAD_SIZE
            assert head["singular_values"] == sorted(head["singular_values"], reverse=True)
            assert 0 < head["energy_top_k"] < 1
            assert 1 <= head["effective_rank"] <= HEAD_SIZE
            assert 0 <= head["symmetric_share"] <= 1
            assert head["gap_at_k"] >= 1
    assert contents(base) == before


def test_the_table_has_a_row_per_layer_or_per_head(base: Path) -> None:
    summary = qkedit("inspect", "--model", base, "--allow-text-only", "--layers", "1-2")
    assert summary.code == 0
    assert summary.stdout.splitlines()[0] == "base: query-key spectra of layers 1-2"
    assert [line.split()[0] for line in summary.stdout.splitlines()[1:4]] == ["layer", "1", "2"]
    detail = qkedit("inspect", base, "--allow-text-only", "--layers", "1", "--heads", "0,3", "--detail")
    assert [line.split()[:2] for line in detail.stdout.splitlines()[2:4]] == [["1", "0"], ["1", "3"]]


@pytest.mark.parametrize("channel", ["symmetric", "antisymmetric"])
def test_channels_have_an_unrealized_share_and_a_leak(base: Path, channel: str) -> None:
    arguments = ("inspect", base, "--allow-text-only", "--channel", channel, "--offset", "3", "--k", "2", "--json")
    document = qkedit(*arguments).document
    assert (document["channel"], document["offset"]) == (channel, 3)
    for head in document["layers"][0]["heads"]:
        assert head["unrealized_share"] > 0
        assert head["leak"] > 0
        assert 0 <= head["kept"]["all"]["query_side"] <= 1


def test_energy_chooses_the_number_of_modes(base: Path) -> None:
    document = qkedit("inspect", base, "--allow-text-only", "--energy", "0.9", "--json").document
    for layer in document["layers"]:
        for head in layer["heads"]:
            squares = [value**2 for value in head["singular_values"]]
            assert sum(squares[: head["k"]]) >= 0.9 * sum(squares) > sum(squares[: head["k"] - 1])


def test_csv_plot_and_page_are_written(base: Path, tmp_path: Path) -> None:
    names = {"--csv": "spectra.csv", "--plot": "spectra.svg", "--html": "spectra.html"}
    places = [part for option, name in names.items() for part in (option, tmp_path / name)]
    result = qkedit("inspect", base, "--allow-text-only", "--suggest", *places, "--json")
    assert result.document["written"] == [str(tmp_path / name) for name in names.values()]
    assert result.document["suggestion"]["heuristic"] is True
    with (tmp_path / "spectra.csv").open() as file:
        assert len(list(csv.DictReader(file))) == LAYERS * HEADS
    assert "<svg" in (tmp_path / "spectra.svg").read_text()
    assert "a heuristic, not a promise" in (tmp_path / "spectra.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", *sorted(names.values())]


def test_csv_can_be_written_to_standard_output(base: Path) -> None:
    result = qkedit("inspect", base, "--allow-text-only", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == LAYERS * HEADS
    assert float(rows[0]["sigma_1"]) > 0


def test_a_suggestion_is_called_a_heuristic(base: Path) -> None:
    text = qkedit("inspect", base, "--allow-text-only", "--suggest").stdout
    assert "Suggestion (a heuristic, not a promise)" in text
    assert "No result in this repository shows that such an edit" in " ".join(text.split())
    assert "qkedit tune" not in text  # which needs a model with vision
    assert (
        "\nqkedit tune demo-small --scenes 200 --out tune.jsonl\n" in qkedit("inspect", SMALL_DEMO, "--suggest").stdout
    )


def test_the_suggested_command_steers_the_inspected_model(tmp_path: Path) -> None:
    """Inspect a directory whose name without its path would be the alias of another model."""
    tensors = weights()
    for name in (query_name(1), key_name(1)):
        tensors[name] += 5
    model = write(tmp_path / "deep er" / "qwen2-vl", tensors)
    document = qkedit("inspect", model, "--suggest", "--allow-text-only", "--json").document
    program, *words = shlex.split(document["suggestion"]["command"])
    assert (program, words[1]) == ("qkedit", str(model))
    assert document["model"] == "qwen2-vl"
    planned = qkedit(*words, "--dry-run", "--json").document
    assert [layer["layer"] for layer in planned["layers"]] == [1]


def test_a_name_that_is_not_utf_8_is_written_to_every_file(tmp_path: Path) -> None:
    model = write(tmp_path / os.fsdecode(b"\xffm"), weights())
    files = {option: tmp_path / f"spectra.{option.removeprefix('--')}" for option in ("--csv", "--html")}
    places = [part for option, file in files.items() for part in (option, file)]
    result = qkedit("inspect", model, "--allow-text-only", *places, "--plot", tmp_path / "spectra.png")
    assert (result.code, result.stderr) == (0, "")
    for file in files.values():
        assert r"\udcffm" in file.read_text("utf-8")
    assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")


def test_output_paths_may_begin_with_a_tilde(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {"--csv": "spectra.csv", "--plot": "spectra.svg", "--html": "spectra.html"}
    result = qkedit("inspect", base, "--allow-text-only", *(f"{option}=~/{name}" for option, name in names.items()))
    assert result.code == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", *sorted(names.values())]


def test_an_edit_is_compared_with_its_base(base: Path, tmp_path: Path) -> None:
    library.steer(str(base), out=tmp_path / "edited", layers="1", k=2, allow_text_only=True)
    arguments = ("--allow-text-only", "--layers", "1", "--k", "2", "--json")
    forwards = qkedit("inspect", base, "--compare", tmp_path / "edited", *arguments).document
    backwards = qkedit("inspect", tmp_path / "edited", "--base", base, *arguments).document
    assert forwards == backwards
    assert (forwards["model"], forwards["other"]) == ("base", "edited")
    for head in forwards["layers"][0]["heads"]:
        assert head["after"][0] == pytest.approx(head["before"][2], rel=1e-5)
        assert head["query_side_angles"] == pytest.approx([90, 90], abs=0.1)
    result = qkedit("inspect", tmp_path / "edited", "--compare", "base", *arguments)
    assert result.code == 2
    assert "--base" in result.document["error"]["remedy"]


def test_an_edit_of_the_demo_is_compared_with_its_base(tmp_path: Path) -> None:
    library.steer(SMALL_DEMO, out=tmp_path / "edited", layers="2")
    result = qkedit("inspect", tmp_path / "edited", "--compare", "base", "--layers", "2", "--csv", tmp_path / "c.csv")
    assert result.code == 0, result.stderr
    assert "demo-small → edited" in result.stdout
    assert "90.0°" in result.stdout
    assert (tmp_path / "c.csv").read_text().count("\n") == 1 + 8 * 32


def test_a_directory_named_base_may_be_compared(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.steer(SMALL_DEMO, out=tmp_path / "edited", layers="2")
    monkeypatch.chdir(tmp_path)
    result = qkedit("inspect", "edited", "--compare", "base")
    assert result.code == 2
    assert result.sentence().startswith("--compare base: ")
    assert "./base" in result.sentence()
    assert qkedit("inspect", base, "--compare", "./base", "--allow-text-only").code == 0
    assert qkedit("inspect", "edited", "--base", SMALL_DEMO, "--layers", "2").code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--offset", "1,2"), "offset"),
        (("--offset", "1,2,3"), "offset"),
        (("--k", "2", "--energy", "0.5"), "--k and --energy"),
        (("--layers", "7"), "layers"),
        (("--plot", "spectra.jpg"), "--plot"),
        (("--html", "missing/spectra.html"), "--html"),
        (("--csv", "-", "--json"), "--csv"),
        (("--compare", SMALL_DEMO, "--suggest"), "--suggest"),
        (("--compare", SMALL_DEMO, "--offset", "2"), "--offset"),
        (("--compare", SMALL_DEMO, "--base", SMALL_DEMO), "--base"),
        (("--compare", SMALL_DEMO), "compare"),
        (("--channel", "skew"), "channel"),
    ],
)
def test_invalid_requests_are_refused(base: Path, arguments: tuple[str, ...], expected: str) -> None:
    result = qkedit("inspect", base, "--allow-text-only", *arguments)
    assert result.code == 2
    said = json.loads(result.stdout)["error"] if "--json" in arguments else result.sentence()
    assert expected in str(said)


def test_only_the_chosen_queries_and_keys_are_fetched_from_a_hub(base: Path, tmp_path: Path) -> None:
    with serve_hub(base) as hub:
        run = subprocess.run(
            [*RUN, "org/model", "--layers", "1", "--json", "--allow-text-only"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=hub.environment(tmp_path / "hf"),
        )
        assert run.returncode == 0, run.stderr
        document = json.loads(run.stdout)
        assert (document["model"], document["revision"]) == ("org/model", COMMIT)
        tensors = weights()
        needed = sum(tensors[name].nbytes for name in (query_name(1), key_name(1)))
        assert needed <= hub.bytes_sent() < needed + sum(tensor.nbytes for tensor in tensors.values()) / 3


def child(*arguments: str | Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*RUN, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_closed_pipe_and_a_narrow_encoding_are_no_errors(base: Path) -> None:
    with child(base, "--allow-text-only", "--detail") as closed:
        assert closed.stdout is not None
        assert closed.stderr is not None
        closed.stdout.close()
        narrow = child(base, "--allow-text-only", "--detail", PYTHONIOENCODING="ascii")
        shown, said = narrow.communicate()
        assert (narrow.returncode, said) == (0, b"")
        assert b" s1 " in shown
        assert shown.isascii()
        assert b"\\u" not in shown
        assert closed.stderr.read() == b""
        assert closed.wait() == 0


def test_a_terminal_of_60_columns_without_colour(base: Path) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "60", "TERM": "xterm-256color", "NO_COLOR": "1"}
    with subprocess.Popen(
        [*RUN, str(base), "--allow-text-only", "--suggest"],
        cwd=ROOT,
        env=environment,
        stdout=follower,
        stderr=follower,
    ) as process:
        os.close(follower)
        shown = b""
        while select.select([leader], [], [], 60)[0]:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # the error at the end of a terminal on Linux
                break
            if not piece:
                break
            shown += piece
        assert process.wait() == 0
    os.close(leader)
    text = shown.decode()
    # Bold and dim are allowed, colours (30 and above) are not.
    codes = {code for sequence in re.findall(r"\x1b\[([0-9;]*)m", text) for code in sequence.split(";")}
    assert codes <= {"", "0", "1", "2"}
    # Erased lines of a progress bar do not belong to the result.
    table = text[text.index("base: query-key") :]
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", table).replace("\r", "").splitlines()
    assert any(line.split()[:1] == ["2"] for line in lines)
    assert max(len(line) for line in lines if not line.startswith("qkedit steer")) <= 60


def test_a_base_in_the_environment_does_not_start_a_comparison(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--layers", "1", "--allow-text-only", "--json")
    assert qkedit("steer", base, "--layers", "1", "--out", tmp_path / "edited", "--no-fsync").code == 0
    monkeypatch.setenv("QKEDIT_BASE", str(base))
    (layer,) = qkedit("inspect", tmp_path / "edited", *arguments).document["layers"]
    assert "singular_values" in layer["heads"][0]
    compared = qkedit("inspect", tmp_path / "edited", "--compare", "base", *arguments).document
    assert (compared["model"], compared["other"]) == ("base", "edited")
    assert qkedit("inspect", tmp_path / "edited", "--compare", base, *arguments).code == 0
