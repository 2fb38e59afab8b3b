"""Test the precedence of settings: the flag, else QKEDIT_*, else the file, else the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qkedit.demo import SMALL_DEMO
from tests.cli.command import qkedit
from tests.steering.checkpoints import contents


def options(*arguments: str | Path) -> dict[str, Any]:
    result = qkedit("steer", *arguments, "--dry-run", "--json")
    assert result.code == 0, result.stdout
    return result.document["options"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text("layers: 0-1\nk: 2\nretain: 0.5\ncompute-dtype: float64\n")
    return path


def test_defaults_without_settings(base: Path) -> None:
    assert options(base) == {
        "layers": "mid",
        "heads": "all",
        "k": 4,
        "energy": None,
        "retain": 0.0,
        "channel": "full",
        "control": "none",
        "seed": 0,
        "compute_dtype": "float32",
        "device": "auto",
    }


def test_flags_precede_the_environment_the_file_and_the_defaults(
    base: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_file = options(base, "--config", file)
    assert [from_file[name] for name in ("layers", "k", "retain", "compute_dtype", "seed")] == [
        "0-1",
        2,
        0.5,
        "float64",
        0,
    ]
    monkeypatch.setenv("QKEDIT_K", "3")
    monkeypatch.setenv("QKEDIT_LAYERS", "1-2")
    monkeypatch.setenv("QKEDIT_SEED", "9")
    with_environment = options(base, "--config", file)
    assert [with_environment[name] for name in ("layers", "k", "retain", "seed")] == ["1-2", 3, 0.5, 9]
    with_flags = options(base, "--config", file, "--k", "1", "--retain", "0")
    assert [with_flags[name] for name in ("layers", "k", "retain", "seed")] == ["1-2", 1, 0.0, 9]
    assert options(base, "--k", "1", "--config", file)["k"] == 1, "the order of flags does not matter"


def test_the_file_can_be_named_in_the_environment(base: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKEDIT_CONFIG", str(file))
    assert options(base)["k"] == 2


def test_all_options_may_come_from_the_environment(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MODEL": base, "LAYERS": "1", "OUT": tmp_path / "out", "FSYNC": "false", "QUIET": "1"}.items():
        monkeypatch.setenv(f"QKEDIT_{name}", str(value))
    result = qkedit("steer")
    assert (result.code, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "out" / "qkedit.json").exists()


def test_all_options_may_come_from_a_file(base: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"model: {base}\nlayers: 1\nout: {tmp_path / 'out'}\nfsync: false\nheads: 0,2\njson: true\n")
    result = qkedit("steer", "--config", settings)
    assert result.code == 0
    assert [head["head"] for tensor in result.document["manifest"]["tensors"] for head in tensor["heads"]] == [0, 2]


def test_a_model_on_the_command_line_has_precedence(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("model: ./nowhere\nlayers: 1\n")
    assert options(base, "--config", settings)["layers"] == "1"
    assert options("--model", base, "--config", settings)["layers"] == "1"
    monkeypatch.setenv("QKEDIT_MODEL", "./nowhere")
    assert options(base)["layers"] == "mid"
    assert qkedit("steer", "--dry-run").code == 2


def test_k_and_energy_replace_each_other(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that exclude each other: the one from the source of higher precedence is used."""
    settings = tmp_path / "settings.yaml"
    settings.write_text("energy: 0.5\n")
    assert options(base, "--config", settings)["energy"] == 0.5
    by_flag = options(base, "--config", settings, "--k", "2")
    assert (by_flag["k"], by_flag["energy"]) == (2, None)
    monkeypatch.setenv("QKEDIT_K", "3")
    by_environment = options(base, "--config", settings)
    assert (by_environment["k"], by_environment["energy"]) == (3, None)
    assert options(base, "--energy", "0.25")["energy"] == 0.25
    monkeypatch.setenv("QKEDIT_ENERGY", "0.75")
    result = qkedit("steer", base, "--dry-run")
    assert result.code == 2
    assert "--k and --energy" in result.sentence()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("laers: 1-2\n", "no option 'laers'; did you mean 'layers'?"),
        ("compute_dtype: float64\nconfig: other.yaml\n", "a file cannot name another by 'config'; take the line out;"),
        ("confg: other.yaml\n", "no option 'confg'; this command has allow-text-only,"),
        ("something: 1\n", "no option 'something'"),
        ("date: 2024-02-30\n", "no option 'date'"),
        ("k: true\n", "Invalid value for 'k' in "),
        ("energy: yes\n", "Invalid value for 'energy' in "),
        ("fsync: 3\n", "Invalid value for 'fsync' in "),
        ("no_fsync: 3\n", "Invalid value for 'fsync' in "),
        ("layers: [1, 2]\n", "'layers' takes one value, not a list"),
        ("k: many\n", "'k' in "),
        ("retain: 2\n", "'retain' in "),
        ("- layers\n", "must hold a mapping"),
        ("layers: [1\n", "is not valid YAML: "),
        ("a: &a [*a]\n", "is not valid YAML: aliases are refused"),
        ("!!python/object/apply:os.system [true]\n", "must hold a mapping"),
        (b"\xff\xfe\xfa", "is not valid YAML: "),
        (None, "cannot be read"),
    ],
)
def test_an_invalid_file_is_refused(base: Path, tmp_path: Path, text: str | bytes | None, said: str) -> None:
    settings = tmp_path / "settings.yaml"
    if text is not None:
        settings.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = qkedit("steer", base, "--dry-run", "--config", settings)
    assert result.code == 2
    assert said in result.sentence()


def test_one_file_may_have_sections_of_several_commands(base: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"base: {base}\n"
        f"steer:\n  model: {base}\n  layers: 1\n  k: 2\n  out: {tmp_path / 'out'}\n  fsync: false\n"
        "eval:\n  benchmark: pope\n"
        "inspect:\n"
    )
    steered = qkedit("steer", "--config", settings)
    assert (steered.code, steered.stderr) == (0, f"warning: steer does not use base, set in {settings}\n")
    verified = qkedit("verify", tmp_path / "out", "--config", settings)
    assert (verified.code, verified.stderr) == (0, "")


def test_a_section_precedes_the_top_level_and_flags_precede_both(base: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        "compute-dtype: float64\nk: 1\nseed: 3\nsteer: {compute_dtype: float32, energy: 0.5}\ninspect: {seed: 9}\n"
    )
    found = options(base, "--config", settings)
    assert [found[name] for name in ("compute_dtype", "k", "energy", "seed")] == ["float32", 4, 0.5, 3]
    assert options(base, "--config", settings, "--k", "2")["k"] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layer: 3\n", "steer has no option 'layer'; did you mean 'layers'? If it is for another command"),
        ("steer: {layer: 3}\n", "no option 'layer' in the section steer; did you mean 'layers'?"),
        ("steer: {images: x}\n", "no option 'images' in the section steer; this command has"),
        ("steer: {config: x}\n", "a file cannot name another by 'config'"),
        ("steer: 3\n", "'steer' is a section; write its keys below it"),
        ("sterr: {layers: 3}\n", "no command 'sterr'; did you mean 'steer'?"),
        ("layers: 1\nlayers: 2\n", "'layers' occurs twice"),
        ("compute-dtype: float32\ncompute_dtype: float64\n", "'compute-dtype' occurs twice"),
        ("steer: {k: 1, k: 2}\n", "'k' occurs twice"),
    ],
)
def test_keys_that_would_be_ignored_are_refused(base: Path, tmp_path: Path, text: str, said: str) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(text)
    result = qkedit("steer", base, "--dry-run", "--config", settings)
    assert result.code == 2
    assert said in result.sentence()


def test_keys_of_other_commands_are_named_in_a_warning(base: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("images: ./photos\nlayer: 3\nlayers: 1\nport: 80\n")
    said = f"steer does not use images, layer, port, set in {settings}"
    assert qkedit("steer", base, "--dry-run", "--config", settings).stderr == f"warning: {said}\n"
    document = qkedit("steer", base, "--dry-run", "--json", "--config", settings)
    assert (document.stderr, document.document["warnings"]) == ("", [said])
    assert qkedit("steer", base, "--dry-run", "--quiet", "--config", settings).stderr == ""


@pytest.mark.parametrize(
    ("name", "near"),
    [("LAYER", "LAYERS"), ("LAERS", "LAYERS"), ("NO_FSYNC", "FSYNC"), ("COMPUTEDTYPE", "COMPUTE_DTYPE")],
)
def test_a_misspelled_variable_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch, name: str, near: str) -> None:
    monkeypatch.setenv(f"QKEDIT_{name}", "3")
    result = qkedit("steer", base, "--dry-run")
    assert result.code == 2
    assert f"does not read QKEDIT_{name}; did you mean QKEDIT_{near}?" in result.sentence()


def test_variables_of_other_commands_are_named_except_the_key(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LAYERS", "API_KEY", "NONSENSE"):
        monkeypatch.setenv(f"QKEDIT_{name}", "77")
    result = qkedit("diff", base, base)
    said = "warning: diff does not use QKEDIT_LAYERS, QKEDIT_NONSENSE, set in the environment\n"
    assert (result.code, result.stderr) == (0, said)
    monkeypatch.delenv("QKEDIT_LAYERS")
    monkeypatch.delenv("QKEDIT_NONSENSE")
    assert qkedit("diff", base, base).stderr == ""


def test_warnings_of_a_failed_call_are_not_repeated_by_the_next(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKEDIT_IMAGES", "x")
    assert qkedit("steer", base, "--k", "many").code == 2
    monkeypatch.delenv("QKEDIT_IMAGES")
    assert qkedit("diff", base, base).stderr == ""


def test_json_in_a_section_holds_for_an_invalid_command_line(base: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    for text, as_json in (("steer: {json: true}\n", True), ("json: true\nsteer: {json: false}\n", False)):
        settings.write_text(text)
        result = qkedit("steer", base, "--config", settings, "--nonsense")
        assert (result.stderr == "") == as_json


def test_an_empty_file_changes_nothing(base: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("# nothing\n")
    assert options(base, "--config", settings)["k"] == 4


def test_underscores_and_numbers_in_a_file_are_understood(base: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("compute_dtype: float64\nlayers: 1\nseed: 3\nenergy: 0.25\n")
    found = options(base, "--config", settings)
    assert [found[name] for name in ("compute_dtype", "layers", "seed", "energy")] == ["float64", "1", 3, 0.25]


def test_values_in_a_file_are_read_as_text(base: Path, tmp_path: Path) -> None:
    """YAML would read 010 as 8, 1.10 as 1.1, 1:30 as 90, and dates as dates."""
    settings = tmp_path / "settings.yaml"
    for written in ("007", "1.10", "0123456", "1:30", "2024-01-31", "true", "1e3", "null"):
        settings.write_text(f"channel: {written if written != 'null' else repr(written)}\n")
        assert f"no channel '{written}'" in qkedit("steer", base, "--dry-run", "--config", settings).sentence()
    settings.write_text("layers: 02\nheads: ~\nchannel:\nk: '3'\n")
    found = options(base, "--config", settings)
    assert [found[name] for name in ("layers", "heads", "channel", "k")] == ["02", "all", "full", 3]


def test_repeatable_options_are_a_value_or_a_list_in_a_file(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    for written, said in (("[010.png, 1.10]", "010.png"), ("010.png", "010.png")):
        settings.write_text(f"image: {written}\n")
        assert said in qkedit("generate", SMALL_DEMO, "--config", settings).sentence()
    for written in ("[[a.png]]", "{a: b}", "[~]"):
        settings.write_text(f"image: {written}\n")
        assert "'image' takes values, not lists" in qkedit("generate", SMALL_DEMO, "--config", settings).sentence()


@pytest.mark.parametrize("line", ["fsync: false", "fsync: no", "no-fsync: true", "no_fsync: on", "no-fsync: 1"])
def test_a_file_may_set_either_flag_of_a_pair(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    asked = _record_fsync(monkeypatch)
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"layers: 1\n{line}\n")
    assert qkedit("steer", base, "--out", tmp_path / "one", "--config", settings).code == 0
    assert qkedit("steer", base, "--out", tmp_path / "two", "--config", settings, "--fsync").code == 0
    settings.write_text("layers: 1\nno-fsync: false\n")
    assert qkedit("steer", base, "--out", tmp_path / "three", "--config", settings).code == 0
    monkeypatch.setenv("QKEDIT_FSYNC", "0")
    assert qkedit("steer", base, "--out", tmp_path / "four", "--config", settings).code == 0
    assert asked == [False, True, True, False]


def _record_fsync(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    from qkedit.steering import run

    asked: list[bool] = []
    run_plan = run.run_plan

    def recorded(plan: Any, target: Any, *others: Any) -> Any:
        asked.append(target.fsync)
        return run_plan(plan, target, *others)

    monkeypatch.setattr(run, "run_plan", recorded)
    return asked


@pytest.mark.parametrize(
    "words", [["--k", "abc"], ["--nonsense"], ["--config", "other.yaml"]], ids=["value", "option", "key"]
)
def test_json_in_a_file_holds_for_an_invalid_command_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("settings.yaml", "other.yaml"):
        Path(name).write_text(f"json: true\n{'laers: 1' if name == 'other.yaml' else ''}\n")
    steer = ("steer", base, "--dry-run")
    for config in (["--config", "settings.yaml"], ["--config=settings.yaml"]):
        result = qkedit(*steer, *config, *words)
        assert (result.code, result.stderr, result.document["status"]) == (2, "", "failed")
    monkeypatch.setenv("QKEDIT_CONFIG", "settings.yaml")
    assert qkedit(*steer, *words).document["status"] == "failed"
    monkeypatch.setenv("QKEDIT_JSON", "0")
    assert qkedit(*steer, *words).sentence()
    assert qkedit(*steer, "--config", "absent.yaml").sentence()


def test_an_invalid_value_in_the_environment_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKEDIT_K", "many")
    result = qkedit("steer", base, "--dry-run")
    assert result.code == 2
    assert result.sentence().startswith("Invalid value for QKEDIT_K: ")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("QKEDIT_CONFIG", "no such file", "Invalid value for QKEDIT_CONFIG: no such file cannot be read: "),
        ("QKEDIT_K", "0", "QKEDIT_K: 0 modes cannot be suppressed; "),
        ("QKEDIT_LAYERS", "9", "QKEDIT_LAYERS: '9' goes beyond the model"),
    ],
)
def test_an_error_names_the_variable_that_was_set(
    base: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    for name in {"QKEDIT_K", "QKEDIT_LAYERS"} - {variable}:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv(variable, value)
    assert qkedit("steer", base, "--dry-run").sentence().startswith(said)


def test_an_error_names_the_key_that_was_set(base: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("k: 0\nlayers: all\n")
    refused = qkedit("steer", base, "--dry-run", "--config", settings)
    assert refused.sentence().startswith(f"'k' in {settings}: 0 modes cannot be suppressed; ")
    typed = qkedit("steer", base, "--dry-run", "--config", settings, "--k", "-1")
    assert typed.sentence().startswith("k: -1 modes")


def test_the_python_call_and_the_command_write_the_same_files(base: Path, tmp_path: Path) -> None:
    import qkedit as package

    package.steer(base, out=tmp_path / "called", layers="0-1", k=2, retain=0.5, compute_dtype="float64", fsync=False)
    arguments = ["--layers", "0-1", "-k", "2", "--retain", "0.5", "--compute-dtype", "float64", "--no-fsync"]
    assert qkedit("steer", base, *arguments, "-o", tmp_path / "typed").code == 0
    assert contents(tmp_path / "called") == contents(tmp_path / "typed")
