"""Test that the benchmark's document is complete and consistent. Speeds are not tested."""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qkedit.errors import UsageError
from tests.scripts.loading import SCRIPTS, load_script

LAYERS, HEADS, MODES = 2, 4, 3
COMMANDS = {
    "cp -r",
    "steer",
    "verify",
    "steer delta",
    "apply",
    "steer --dry-run",
    "qkedit --help",
    "import torch",
}
STAGES = {"reading", "mathematics", "copying", "writing", "hashing", "checks"}


@dataclass(frozen=True)
class Run:
    """One run of the script, and its working directory before and after."""

    document: dict[str, Any]
    markdown: str
    printed: str
    before: dict[str, str]
    after: dict[str, str]


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    maker = load_script("make_checkpoint")
    out = tmp_path_factory.mktemp("work") / "tiny"
    maker.write_checkpoint(out, maker.SHAPES["qwen2-vl-tiny"], shard_bytes=200_000)
    return out


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    reports = tmp_path_factory.mktemp("reports")
    json_file, markdown_file = reports / "benchmark.json", reports / "benchmark.md"
    before = digests(checkpoint.parent)
    options = ["--layers", "1-2", "--k", str(MODES), "--repeats", "1", "--threads", "1", "--cold", "--dense"]
    options += ["--json", str(json_file), "--markdown", str(markdown_file)]
    printed, threads = StringIO(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.syspath_prepend(str(SCRIPTS / "benchmarks"))
        patch.setattr("sys.argv", ["benchmark", str(checkpoint), *options])
        patch.setattr("os.sync", lambda: None)  # it would wait for the files of every other test
        load_script("benchmark").main()
    torch.set_num_threads(threads)
    return Run(
        json.loads(json_file.read_text()),
        markdown_file.read_text(),
        printed.getvalue(),
        before,
        digests(checkpoint.parent),
    )


@pytest.fixture
def benchmarking(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module of the package next to the script by name."""
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))
    return lambda name: import_module(f"benchmarking.{name}")


def timings(value: Any) -> Iterator[dict[str, Any]]:
    """Return every measurement in the document."""
    if isinstance(value, dict):
        if value.keys() == {"median", "all"}:
            yield value
        for item in value.values():
            yield from timings(item)
    elif isinstance(value, list):
        for item in value:
            yield from timings(item)


def test_the_document_has_all_measurements(run: Run) -> None:
    document = run.document
    assert document["commands"].keys() == COMMANDS
    assert document["stages"].keys() == STAGES
    assert len(document["mathematics_floor"]) == 4
    assert [route["name"].split(",")[0] for route in document["routes"]] == [
        "Gram and Cholesky",
        "QR",
        "QR",
        "dense SVD",
        "dense SVD",
    ]
    machine = document["machine"]
    for name in ("date", "processor", "device", "file_system", "kernel", "python", "cp"):
        assert machine[name]
        assert machine[name] != "unknown"
    assert min(machine["cores"], machine["memory_bytes"], len(machine["libraries"])) > 0
    assert document["settings"]["tensors"] == LAYERS
    assert document["settings"]["heads"] == LAYERS * HEADS
    assert document["settings"]["cache"] == "cold"


def test_every_figure_is_the_median_of_its_repetitions(run: Run) -> None:
    found = list(timings(run.document))
    assert len(found) > 30
    for timing in found:
        assert len(timing["all"]) == 1
        assert timing["median"] == statistics.median(timing["all"])


def test_ratios_are_quotients_of_figures_in_the_document(run: Run) -> None:
    commands, stages = run.document["commands"], run.document["stages"]
    ratios = {ratio["name"]: ratio for ratio in run.document["ratios"]}
    parts = [stages[name] for name in ("reading", "mathematics", "writing")]
    expected = {
        "steer, whole process / cp -r": (
            commands["steer"]["process"]["median"],
            commands["cp -r"]["process"]["median"],
        ),
        "steer, without start-up / cp -r": (
            commands["steer"]["inside"]["median"],
            commands["cp -r"]["process"]["median"],
        ),
        "steer with fsync / cp -r with fsync": (
            commands["steer"]["with_fsync"]["median"],
            commands["cp -r"]["with_fsync"]["median"],
        ),
        "apply, without start-up / cp -r": (
            commands["apply"]["inside"]["median"],
            commands["cp -r"]["process"]["median"],
        ),
        "steer delta, without start-up / reading + mathematics + writing": (
            commands["steer delta"]["inside"]["median"],
            sum(part["ours"]["median"] for part in parts),
        ),
        "steer delta, without start-up / floors of reading + mathematics + writing": (
            commands["steer delta"]["inside"]["median"],
            sum(part["floor"]["median"] for part in parts),
        ),
        **{
            f"{name} / its floor": (stage["ours"]["median"], stage["floor"]["median"])
            for name, stage in stages.items()
        },
        "peak memory of steer / 800 MB": (commands["steer"]["peak_bytes"], 800e6),
        "peak memory of steer delta / 800 MB": (commands["steer delta"]["peak_bytes"], 800e6),
    }
    assert ratios.keys() == expected.keys()
    for name, (numerator, denominator) in expected.items():
        assert ratios[name]["ratio"] == pytest.approx(numerator / denominator), name
    assert all(stage["ratio"] == ratios[f"{name} / its floor"]["ratio"] for name, stage in stages.items())


def test_the_parts_of_a_figure_do_not_exceed_it(run: Run) -> None:
    commands = run.document["commands"]
    for command in commands.values():
        whole = command["process"]["median"] + command["fsync"]["median"]
        assert command["with_fsync"]["median"] == pytest.approx(whole)
    for name in ("steer", "steer delta", "apply"):
        assert 0 < commands[name]["inside"]["median"] < commands[name]["process"]["median"]
        assert commands[name]["stages"]["fsync"] == commands[name]["fsync"]["median"]
    floor = sum(part["median"] for part in run.document["mathematics_floor"].values())
    assert run.document["stages"]["mathematics"]["floor"]["median"] == pytest.approx(floor)
    for route in run.document["routes"]:
        assert route["times"] == (LAYERS * HEADS if "dense" in route["name"] else LAYERS)
        assert route["extrapolated"] == pytest.approx(route["times"] * route["seconds"]["median"])


def test_bytes_equal_those_of_the_files(run: Run, checkpoint: Path) -> None:
    commands, settings = run.document["commands"], run.document["settings"]
    size = sum(Path(file).stat().st_size for file in run.before)
    assert commands["cp -r"]["bytes_written"] == settings["directory_bytes"] == size
    assert settings["bytes_to_write"] == LAYERS * 64 * 64 * 2
    for command, tensors in (("steer", size), ("steer delta", settings["bytes_to_write"])):
        # It has the manifest of every head, and the card.
        assert tensors < commands[command]["bytes_written"] < tensors + 20_000
    assert run.document["stages"]["copying"]["bytes"] == size
    # Twice the 64 × 64 queries and 32 × 64 keys of the model with 32 biases, in bfloat16.
    assert settings["bytes_to_read"] == LAYERS * 2 * (64 * 64 + 32 * 64 + 32)


def test_only_processes_that_need_torch_import_it(run: Run) -> None:
    peaks = {name: command["peak_bytes"] for name, command in run.document["commands"].items()}
    assert peaks["cp -r"] is None
    for name in ("qkedit --help", "steer --dry-run"):
        assert peaks[name] < peaks["import torch"]


def test_the_markdown_has_the_same_figures(run: Run) -> None:
    assert run.printed == run.markdown
    rows = [line.strip("| ").split(" | ") for line in run.markdown.splitlines() if line.startswith("| ")]
    quotients = {row[0]: row[3] for row in rows if len(row) >= 4}
    for ratio in run.document["ratios"]:
        assert quotients[ratio["name"]] == f"{ratio['ratio']:.2f}"
    first_columns = {row[0].strip("`") for row in rows}
    assert COMMANDS | STAGES | {route["name"] for route in run.document["routes"]} <= first_columns
    for version in run.document["machine"]["libraries"].values():
        assert version in run.markdown


def test_a_run_changes_and_leaves_no_files(run: Run) -> None:
    assert run.after == run.before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "name the model once"),
        (["CHECKPOINT", "--model", "CHECKPOINT"], 2, "name the model once"),
        (["CHECKPOINT", "--layers", "7"], 2, "error: "),
        (["CHECKPOINT", "--threads", "0"], 2, "--threads between 1 and "),
        (["CHECKPOINT/nowhere"], 2, "error: "),
        (["CHECKPOINT", "--work", "CHECKPOINT/nowhere"], 2, "is not a directory"),
        (["CHECKPOINT", "--json", "CHECKPOINT/nowhere/benchmark.json"], 2, "is not a directory"),
        (["CHECKPOINT", "--layers", "1", "--mergekit", sys.executable], 1, "No module named 'mergekit'"),
    ],
)
def test_invalid_requests_are_one_sentence(
    benchmarking: Callable[[str], ModuleType],
    checkpoint: Path,
    arguments: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [argument.replace("CHECKPOINT", str(checkpoint)) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["benchmark", *named])
    with pytest.raises(SystemExit) as stop:
        load_script("benchmark").main()
    assert stop.value.code == code
    printed = capsys.readouterr()
    assert said in printed.err
    assert not printed.out


def test_measurements_alternate_in_both_directions(benchmarking: Callable[[str], ModuleType]) -> None:
    order: list[str] = []
    taken = benchmarking("timing").in_turns(
        3, {name: lambda name=name: order.append(name) or len(order) for name in ("a", "b", "c")}
    )
    assert "".join(order) == "abccbaabc"
    assert taken == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_the_peak_is_that_of_the_child(
    benchmarking: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hungry.py").write_text("def eat():\n    print(len(b'x' * 200_000_000))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    held = b"x" * 400_000_000  # memory of this process does not belong to the child
    commands = benchmarking("commands")
    hungry, printed = commands.run_function("hungry:eat", [], 1)
    modest, _ = commands.run_function("platform:platform", [], 1)
    assert printed == "200000000\n"
    assert 200e6 < hungry.peak_bytes < len(held)
    assert modest.peak_bytes < 100e6


def test_a_failing_command_is_not_measured(benchmarking: Callable[[str], ModuleType]) -> None:
    commands = benchmarking("commands")
    with pytest.raises(commands.CommandFailedError, match="no_such_function"):
        commands.run_function("platform:no_such_function", [], 1)


def test_the_plain_loops_give_the_same_result(
    benchmarking: Callable[[str], ModuleType], checkpoint: Path, tmp_path: Path
) -> None:
    disk = benchmarking("disk")
    files = [path.name for path in disk.files_below(checkpoint)]
    disk.copy_plainly(checkpoint, tmp_path / "copy", files)
    assert [file.read_bytes() for file in disk.files_below(tmp_path / "copy")] == [
        file.read_bytes() for file in disk.files_below(checkpoint)
    ]
    source = checkpoint / "model-00001-of-00003.safetensors"
    content = source.read_bytes()
    ranges = [(source, 10, 70_000), (source, 5, 5), (source, 90_000, len(content))]
    assert b"".join(disk.pieces(ranges)) == content[10:70_000] + content[90_000:]
    disk.write_plainly(tmp_path / "written", [memoryview(content[:1000]), memoryview(content[1000:])])
    assert (tmp_path / "written").read_bytes() == content


def test_the_model_for_mergekit_is_the_language_model(
    benchmarking: Callable[[str], ModuleType], checkpoint: Path, tmp_path: Path
) -> None:
    request = benchmarking("commands").Request(checkpoint, tmp_path, "1-2", MODES, "cpu", 1, "warm")
    directory = benchmarking("mergekit").present_as_text_model(request)
    model, loading = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert not loading["missing_keys"]
    assert not loading["mismatched_keys"]
    with torch.no_grad():
        assert model(input_ids=torch.arange(6).unsqueeze(0)).logits.isfinite().all()


def test_mergekit_needs_qwen2_vl_names(benchmarking: Callable[[str], ModuleType], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    request = benchmarking("commands").Request(tmp_path, tmp_path, "1-2", MODES, "cpu", 1, "warm")
    with pytest.raises(UsageError, match="Qwen2-VL's names"):
        benchmarking("mergekit").present_as_text_model(request)
