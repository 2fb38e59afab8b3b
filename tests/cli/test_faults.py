"""Test faults: one-sentence errors, an absent or unchanged target, an unchanged base, and no other files."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.demo import SMALL_DEMO, demo_checkpoint
from tests.cli.command import Runs, qkedit
from tests.steering.checkpoints import INDEX, contents, query_name, weights, write

STEER = ("--layers", "2-5", "--k", "3")
OTHER = ("--layers", "1", "--k", "1")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the demo checkpoint, which all runs read; check at the end that it is unchanged."""
    before = contents(demo_checkpoint(SMALL_DEMO))
    yield demo_checkpoint(SMALL_DEMO)
    assert contents(demo_checkpoint(SMALL_DEMO)) == before


@pytest.fixture(scope="module")
def finished(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Return the output of an undisturbed run."""
    place = tmp_path_factory.mktemp("finished")
    for name, options in (("edited", STEER), ("other", OTHER)):
        assert qkedit("steer", SMALL_DEMO, *options, "--out", place / name, "--no-fsync").code == 0
    return {name: contents(place / name) for name in ("edited", "other")}


def await_staging(target: Path, file: str = "config.json") -> None:
    """Wait until the run has begun to write next to its target."""
    deadline = time.monotonic() + 60
    while not (target.parent / f".{target.name}.qkedit" / "new" / file).exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_killed_at_any_moment_leaves_no_or_a_complete_output(
    children: Runs, demo: Path, finished: dict[str, dict[str, bytes]], tmp_path: Path, overwrite: bool
) -> None:
    """Each run starts from the state after a kill; the last one finishes and removes all temporary files."""
    target = tmp_path / "edited"
    arguments = ("steer", SMALL_DEMO, *STEER, "--out", target, "--overwrite")
    children.start(*arguments)
    await_staging(target)
    began = time.monotonic()
    assert children.finish().code == 0
    duration = time.monotonic() - began
    generator = random.Random(0)
    killed = 0
    for number in range(40):
        before = _written_or_absent(target, finished["other"], overwrite)
        children.start(*arguments)
        if number:
            await_staging(target)
        time.sleep(generator.uniform(0, duration))
        children.signal(signal.SIGKILL)
        code = children.finish().code
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        if target.exists():
            assert contents(target) in ([finished["edited"]] if before is None else [before, finished["edited"]])
        else:
            assert before is None
        if killed == 12:
            break
    assert killed >= 6
    assert children(*arguments).code == 0
    assert contents(target) == finished["edited"]
    assert os.listdir(tmp_path) == ["edited"]


@pytest.fixture(scope="module")
def edits(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Return two deltas of the demo; check at the end that they are unchanged."""
    place = tmp_path_factory.mktemp("edits")
    for name, options in (("a", STEER), ("b", OTHER)):
        arguments = ("steer", SMALL_DEMO, *options, "--layout", "delta", "--out", place / name, "--no-fsync")
        assert qkedit(*arguments).code == 0
    before = contents(place)
    yield place / "a", place / "b"
    assert contents(place) == before


# The arguments of each command, the first file that it writes, and the number of kills.
OF_EDITS: dict[str, tuple[tuple[str, ...], str, int]] = {
    "apply": (("A", "B", "--base", SMALL_DEMO), "config.json", 4),
    "merge": (("A", "B"), "qkedit-delta.safetensors", 4),
    "interpolate": (("A", "--strength", "0.5"), "config.json", 4),
    "export": (("OWN", "--base", "BASE"), "adapter_model.safetensors", 2),
}


@pytest.mark.parametrize("command", OF_EDITS)
def test_a_command_of_edits_killed_at_any_moment_leaves_no_or_a_complete_output(
    children: Runs, edits: tuple[Path, Path], tmp_path: Path, command: str
) -> None:
    """Each run starts from the state after a kill; the last one finishes and removes all temporary files."""
    words, file, times = OF_EDITS[command]
    places = {"A": edits[0], "B": edits[1]}
    if command == "export":
        places |= _with_remote_code(tmp_path / "inputs")
    arguments = (command, *(places.get(word, word) for word in words), "--out")
    assert qkedit(*arguments, tmp_path / "whole", "--no-fsync").code == 0
    expected = contents(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    target = tmp_path / "out"
    generator = random.Random(2)
    killed = 0
    for number in range(times):
        shutil.rmtree(target, ignore_errors=True)
        children.start(*arguments, target)
        await_staging(target, file)
        time.sleep(generator.uniform(0, 0.2) if number else 0)
        children.signal(signal.SIGKILL)
        code = children.finish().code
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        assert not target.exists() or contents(target) == expected
    assert killed
    shutil.rmtree(target, ignore_errors=True)
    assert children(*arguments, target).code == 0
    assert contents(target) == expected
    assert set(os.listdir(tmp_path)) - {"inputs"} == {"out"}


def _with_remote_code(place: Path) -> dict[str, Path]:
    """Return a delta, and its base with Python code, so that no transformers class is built for its modules."""
    base = write(place / "base", weights())
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "novel_vl", "auto_map": {"AutoModelForImageTextToText": "modeling.Model"}}
    (base / "config.json").write_text(json.dumps(config))
    arguments = ("steer", base, "--layers", "0-2", "--k", "2", "--layout", "delta", "--out", place / "delta")
    assert qkedit(*arguments, "--no-fsync").code == 0
    return {"OWN": place / "delta", "BASE": base}


def test_a_revert_in_place_killed_at_any_moment_leaves_the_output_or_the_base(
    children: Runs, demo: Path, finished: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    target = tmp_path / "edited"
    base = contents(demo)
    generator = random.Random(1)
    killed = 0
    for _ in range(8):
        shutil.rmtree(target, ignore_errors=True)
        _written(target, finished["edited"])
        children.start("revert", target)
        await_staging(target)
        time.sleep(generator.uniform(0, 0.1))
        children.signal(signal.SIGKILL)
        killed += children.finish().code != 0
        assert contents(target) in (finished["edited"], base)
    assert killed
    if contents(target) != base:
        assert children("revert", target).code == 0
    assert contents(target) == base
    assert os.listdir(tmp_path) == ["edited"]


def _written(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def _written_or_absent(target: Path, files: dict[str, bytes], present: bool) -> dict[str, bytes] | None:
    """Prepare the target of a run: with `files`, or absent."""
    shutil.rmtree(target, ignore_errors=True)
    if not present:
        return None
    _written(target, files)
    return files


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_cleans_up(
    children: Runs,
    demo: Path,
    finished: dict[str, dict[str, bytes]],
    tmp_path: Path,
    number: signal.Signals,
    times: int,
) -> None:
    """Send Ctrl-C once or repeatedly."""
    target = tmp_path / "edited"
    generator = random.Random(int(number))
    interrupted = 0
    for _ in range(3):
        children.start("steer", SMALL_DEMO, *STEER, "--out", target, "--overwrite")
        await_staging(target)
        time.sleep(generator.uniform(0, 0.15))
        for _ in range(times):
            children.signal(number)
            time.sleep(0.001)  # pending signals of one kind are merged
        result = children.finish()
        if result.code == 130:
            interrupted += 1
            assert "interrupted" in result.sentence()
        else:  # a signal during the last lines of a run comes after its work
            assert target.exists()
        if target.exists():
            assert contents(target) == finished["edited"]
            shutil.rmtree(target)
        assert os.listdir(tmp_path) == []
    assert interrupted


@pytest.mark.parametrize("limit", [900, 200_000, 1_400_000])
@pytest.mark.parametrize("layout", ["full", "delta"])
def test_a_write_that_fails_in_the_middle_leaves_no_output(
    children: Runs, demo: Path, finished: dict[str, dict[str, bytes]], tmp_path: Path, limit: int, layout: str
) -> None:
    """A file size limit simulates a full disk: writes fail in the middle of a file."""
    target = _written(tmp_path / "edited", finished["other"])
    arguments = ("steer", SMALL_DEMO, *STEER, "--layout", layout, "--out", target, "--overwrite")
    result = children(*arguments, limits={"FSIZE": limit})
    if layout == "delta" and limit > 300_000:
        assert result.code == 0
        return
    assert result.code == 1
    assert "file too large" in result.sentence()
    assert contents(target) == finished["other"]
    assert os.listdir(tmp_path) == ["edited"]


def test_too_few_open_files_are_an_error_without_output(children: Runs, demo: Path, tmp_path: Path) -> None:
    result = children("steer", SMALL_DEMO, *STEER, "--out", tmp_path / "edited", limits={"NOFILE": 8})
    assert result.code == 1
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == []


def test_a_target_where_directories_cannot_be_created_is_refused(demo: Path) -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs a directory in which root cannot create files")
    result = qkedit("steer", SMALL_DEMO, *STEER, "--out", "/proc/edited")
    assert result.code == 1
    assert result.sentence().startswith("/proc: cannot create a directory: ")


def test_two_runs_to_one_target_do_not_mix(
    children: Runs, demo: Path, finished: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    from qkedit.checkpoint.io.staging import StagedDirectory

    target = tmp_path / "edited"
    with StagedDirectory(target, overwrite=False):
        result = children("steer", SMALL_DEMO, *STEER, "--out", target)
        assert result.code == 1
        assert "another run is writing to this directory" in result.sentence()
    assert children("steer", SMALL_DEMO, *STEER, "--out", target).code == 0
    assert contents(target) == finished["edited"]
    assert os.listdir(tmp_path) == ["edited"]


# --- invalid checkpoints


def _shard(base: Path) -> Path:
    return base / json.loads((base / INDEX).read_text())["weight_map"][query_name(1)]


def _with_header(base: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = _shard(base)
    raw = path.read_bytes()
    data = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:data])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[data:])


def _shift(header: dict[str, Any], by: int) -> None:
    entry = header[query_name(1)]
    entry["data_offsets"] = [end + by for end in entry["data_offsets"]]


def _with_raw_header(base: Path, text: bytes) -> None:
    path = _shard(base)
    raw = path.read_bytes()
    data = 8 + int.from_bytes(raw[:8], "little")
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[data:])


def _double_key(base: Path) -> None:
    raw = _shard(base).read_bytes()
    text = raw[8 : 8 + int.from_bytes(raw[:8], "little")].decode().rstrip()
    entry = json.dumps({query_name(1): json.loads(text)[query_name(1)]})[1:-1]
    _with_raw_header(base, (text[:-1] + "," + entry + "}").encode())


def _point_index(base: Path, file: str) -> None:
    index = json.loads((base / INDEX).read_text())
    index["weight_map"][query_name(1)] = file
    (base / INDEX).write_text(json.dumps(index))


def _pickle_only(base: Path) -> None:
    for path in base.glob("model*"):
        path.unlink()
    (base / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n(S'touch pickled'\ntR.")


def _replace_size(base: Path, size: int) -> None:
    raw = _shard(base).read_bytes()
    _shard(base).write_bytes(size.to_bytes(8, "little") + raw[8:])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard truncated in its data": (lambda base: (p := _shard(base)).write_bytes(p.read_bytes()[:-1]), "has only"),
    "a shard truncated in its header": (
        lambda base: (p := _shard(base)).write_bytes(p.read_bytes()[:99]),
        "has only 99",
    ),
    "an empty shard": (lambda base: _shard(base).write_bytes(b""), "0 bytes"),
    "a shard that is too long": (lambda base: (p := _shard(base)).write_bytes(p.read_bytes() + b"!"), "no tensor"),
    "a giant header": (lambda base: _replace_size(base, 2**63), "the header claims"),
    "a header beyond the file": (lambda base: _replace_size(base, 10**7), "the header claims"),
    "overlapping offsets": (lambda base: _with_header(base, lambda header: _shift(header, -4)), "overlap"),
    "offsets beyond the file": (lambda base: _with_header(base, lambda header: _shift(header, 10**9)), "belong to no"),
    "a repeated key": (_double_key, query_name(1)),
    "an invalid header": (lambda base: _with_raw_header(base, b"\xff" * 64), "model-0000"),
    "an index to a parent directory": (
        lambda base: _point_index(base, "../outside.safetensors"),
        "outside.safetensors",
    ),
    "an absolute index": (lambda base: _point_index(base, "/etc/outside.safetensors"), "outside.safetensors"),
    "an index to another shard": (lambda base: _point_index(base, _other_shard(base)), query_name(1)),
    "an invalid index": (lambda base: (base / INDEX).write_text("{"), INDEX),
    "a missing shard": (lambda base: _shard(base).unlink(), "1 of 3 shards are missing"),
    "a dangling link": (
        lambda base: ((p := _shard(base)).unlink(), p.symlink_to("gone")),
        "1 of 3 shards are missing",
    ),
    "a directory instead of a shard": (
        lambda base: ((p := _shard(base)).unlink(), p.mkdir()),
        "1 of 3 shards are missing",
    ),
    "pickled weights only": (_pickle_only, "unpickling can run any code"),
    "no config": (lambda base: (base / "config.json").unlink(), "there is no config.json"),
    "an invalid config": (lambda base: (base / "config.json").write_text("{"), "config.json: is not valid JSON"),
    "a config of another model": (lambda base: (base / "config.json").write_text("{}"), "config.json"),
}


def _other_shard(base: Path) -> str:
    return next(path.name for path in sorted(base.glob("*.safetensors")) if path != _shard(base))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_broken_checkpoint_is_refused(base: Path, tmp_path: Path, fault: str, overwrite: bool) -> None:
    place = tmp_path / "place"
    place.mkdir()
    broken = shutil.copytree(base, place / "broken")
    (place / "outside.safetensors").write_bytes(_shard(base).read_bytes())
    target = place / "edited"
    if overwrite:
        assert qkedit("steer", base, "--layers", "0", "--out", target, "--no-fsync").code == 0
    make, said = FAULTS[fault]
    make(broken)
    before = contents(place)
    for extra in ([], ["--layout", "delta"], ["--dry-run"]):
        result = qkedit("steer", broken, "--layers", "1", "--out", target, "--overwrite", *extra)
        assert result.code == 1
        assert said in result.sentence()
    for arguments in (("diff", broken, base), ("diff", base, broken)):
        if fault != "a config of another model":  # `diff` does not read it
            assert qkedit(*arguments).code == 1
    assert contents(place) == before


def test_a_shard_truncated_after_reading_its_header_is_an_error(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qkedit.steering import run as module

    changing = shutil.copytree(base, tmp_path / "changing")
    unchanged = module.stored_layers

    def shrink(*arguments: Any) -> object:
        path = _shard(changing)
        os.truncate(path, path.stat().st_size // 2)
        return unchanged(*arguments)

    monkeypatch.setattr(module, "stored_layers", shrink)
    result = qkedit("steer", changing, "--layers", "1", "--out", tmp_path / "edited")
    assert result.code == 1
    # Either of two threads may reach the end of the file first.
    assert re.search("ends|was changed while it was read", result.sentence())
    assert sorted(os.listdir(tmp_path)) == ["base", "changing"]


@pytest.mark.parametrize("place", [0, 0.5, 0.9999])
def test_a_corrupted_tensor_is_found_before_the_output_appears(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: float
) -> None:
    """Written bytes are read back and compared."""
    write = os.pwrite

    def corrupt(descriptor: int, data: memoryview, position: int) -> int:
        garbled = bytearray(data)
        garbled[int(place * len(data))] ^= 1
        return write(descriptor, garbled, position)

    monkeypatch.setattr(os, "pwrite", corrupt)
    result = qkedit("steer", base, "--layers", "1", "--out", tmp_path / "edited")
    assert result.code == 1
    assert "was not written as computed" in result.sentence()
    assert os.listdir(tmp_path) == ["base"]


def test_a_corrupted_header_is_found_before_the_output_appears(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qkedit.steering.outputs import checks as module

    check, name = module._check_header, _shard(base).name

    def corrupt(files: LocalFiles, checkpoint: Checkpoint, file: str) -> None:
        if file == name:
            content = bytearray((files.directory / name).read_bytes())
            content[20] ^= 1
            (files.directory / name).write_bytes(content)
        check(files, checkpoint, file)

    monkeypatch.setattr(module, "_check_header", corrupt)
    result = qkedit("steer", base, "--layers", "1", "--out", tmp_path / "edited")
    assert result.code == 1
    assert "came out different from the base's" in result.sentence()
    assert os.listdir(tmp_path) == ["base"]


@pytest.mark.parametrize("side", ["before", "behind"])
def test_a_copy_that_overwrites_an_edit_is_found_before_the_output_appears(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    """A shard is checked after its copy has ended, even if that is late."""
    from qkedit.steering.outputs import full as module

    write_tensors, written, copy = module.write_tensors, threading.Event(), module.copy_ranges

    def write(*arguments: Any) -> Any:
        try:
            return write_tensors(*arguments)
        finally:
            written.set()

    def copy_too_much(source: Path, destination: Path, gaps: Any, on_bytes: Callable[[int], None]) -> None:
        assert written.wait(30)
        before, behind = (64, 0) if side == "behind" else (0, 64)
        size = source.stat().st_size
        copy(source, destination, [(max(0, s - before), min(e + behind, size)) for s, e in gaps], on_bytes)

    monkeypatch.setattr(module, "write_tensors", write)
    monkeypatch.setattr(module, "copy_ranges", copy_too_much)
    result = qkedit("steer", base, "--layers", "1", "--link", "copy", "--out", tmp_path / "edited")
    assert result.code == 1
    assert "was not written as computed" in result.sentence()
    assert os.listdir(tmp_path) == ["base"]
