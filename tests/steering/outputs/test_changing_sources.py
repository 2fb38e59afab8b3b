"""Test that a run fails with an unchanged target if another program writes to the model while it is read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qkedit.api import editing
from qkedit.api.editing import steer
from qkedit.errors import CheckpointError, QkeditError, VerificationError
from qkedit.steering.apply import apply_edits
from qkedit.steering.outputs import full as output
from qkedit.steering.outputs.delta import DeltaWriter
from qkedit.steering.steer_options import OutputOptions
from tests.steering.checkpoints import INDEX, contents, query_name, weights, write

EDITED = 1


def shard_of(directory: Path, name: str) -> Path:
    return directory / json.loads((directory / INDEX).read_text())["weight_map"][name]


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(100))


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        file.write(b"other")


def overwrite_header(path: Path) -> None:
    """Write another header of the same length, with names of tensors that no index has."""
    raw = path.read_bytes()
    with path.open("r+b") as file:
        file.write(raw[:200].replace(b"layers", b"strata"))


def replace(path: Path) -> None:
    """Replace the whole file, like a download that finishes during the run."""
    fresh = path.with_name("fresh")
    fresh.write_bytes(path.read_bytes()[:-1] + b"!")
    os.utime(fresh, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(fresh, path)


CHANGES: dict[str, Callable[[Path], None]] = {
    change.__name__: change for change in (shrink, grow, overwrite, overwrite_header, replace)
}
FILES: dict[str, Callable[[Path], Path]] = {
    "a shard with an edited tensor": lambda base: shard_of(base, query_name(EDITED)),
    "a shard without edited tensors": lambda base: next(
        base / f"model-0000{number}-of-00003.safetensors"
        for number in (1, 2, 3)
        if base / f"model-0000{number}-of-00003.safetensors" != shard_of(base, query_name(EDITED))
    ),
    "a file next to the weights": lambda base: base / "tokenizer.json",
}
# Before the plan is executed, before the copies begin, and after everything was written.
MOMENTS = ("planned", "copied", "written")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = write(tmp_path / "base", weights())
    (directory / "tokenizer.json").write_text(json.dumps({"version": "1.0", "layers": "x" * 200}))
    return directory


def after_writing(monkeypatch: pytest.MonkeyPatch, writer: Any, change: Callable[[], None]) -> None:
    """Call `change` after the next run's writer has finished."""
    real = writer.writing

    @contextmanager
    def then(*arguments: Any) -> Iterator[Any]:
        with real(*arguments) as written:
            yield written
        change()

    monkeypatch.setattr(writer, "writing", then)


def changing(monkeypatch: pytest.MonkeyPatch, moment: str, change: Callable[[], None]) -> None:
    """Call `change` at that point of the next run."""
    if moment == "written":
        after_writing(monkeypatch, output.FullWriter, change)
        return
    room, name = {"planned": (editing, "run_plan"), "copied": (output, "_prepare_files")}[moment]
    real: Any = getattr(room, name)

    def then(*arguments: Any) -> Any:
        change()
        return real(*arguments)

    monkeypatch.setattr(room, name, then)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_during_the_run_stops_it(
    source: Path, tmp_path: Path, change: str, which: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FILES[which](source)
    changing(monkeypatch, moment, lambda: CHANGES[change](file))
    with pytest.raises(QkeditError, match=re.escape(file.name)):
        steer(source, out=tmp_path / "edited", layers=str(EDITED), k=2, fsync=False)
    assert os.listdir(tmp_path) == ["base"]


@pytest.mark.parametrize("link", ["hard", "symlink", "copy"])
@pytest.mark.parametrize("change", ["shrink", "replace"])
def test_a_changed_shard_behind_a_link_stops_the_run(
    source: Path, tmp_path: Path, change: str, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FILES["a shard without edited tensors"](source)
    changing(monkeypatch, "copied", lambda: CHANGES[change](file))
    with pytest.raises(CheckpointError, match=re.escape(file.name)):
        steer(source, out=tmp_path / "edited", layers=str(EDITED), k=2, link=link, fsync=False)
    assert os.listdir(tmp_path) == ["base"]


def test_hard_links_are_no_change(source: Path, tmp_path: Path) -> None:
    steer(source, out=tmp_path / "edited", layers=str(EDITED), k=2, link="hard", verify=True, fsync=False)


@pytest.mark.parametrize("whose", ["base", "delta"])
def test_a_change_of_a_delta_or_its_base_stops_apply(
    source: Path, tmp_path: Path, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steer(source, out=tmp_path / "delta", layers=str(EDITED), k=2, layout="delta", fsync=False)
    file = (
        FILES["a shard without edited tensors"](source)
        if whose == "base"
        else tmp_path / "delta" / "qkedit-delta.safetensors"
    )
    changing(monkeypatch, "written", lambda: overwrite(file))
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        apply_edits([tmp_path / "delta"], base=str(source), output=OutputOptions(tmp_path / "edited", fsync=False))
    assert sorted(os.listdir(tmp_path)) == ["base", "delta"]


def test_a_change_of_the_base_stops_writing_a_delta(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_writing(monkeypatch, DeltaWriter, lambda: overwrite(shard_of(source, query_name(EDITED))))
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        steer(source, out=tmp_path / "delta", layers=str(EDITED), k=2, layout="delta", fsync=False)
    assert os.listdir(tmp_path) == ["base"]


# --- errors of copies without any change of the source


def flipping(file: str) -> Callable[..., Any]:
    """Simulate a flipped bit in memory in the copy of one file."""
    real = output.copy_file

    def copy_file(source: Path, destination: Path, *rest: Any) -> None:
        real(source, destination, *rest)
        if source.name == file:
            raw = bytearray(destination.read_bytes())
            raw[-2] ^= 1
            destination.write_bytes(raw)

    return copy_file


@pytest.fixture(params=["a shard without edited tensors", "a file next to the weights"])
def flipped(source: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    file = FILES[request.param](source)
    monkeypatch.setattr(output, "copy_file", flipping(file.name))
    return file


def test_verify_finds_a_bit_flipped_during_the_copy(flipped: Path, source: Path, tmp_path: Path) -> None:
    """Without `verify` the output is written, since sizes and headers are right."""
    steer(source, out=tmp_path / "unverified", layers=str(EDITED), k=2, fsync=False)
    with pytest.raises(VerificationError) as caught:
        steer(source, out=tmp_path / "edited", layers=str(EDITED), k=2, verify=True, fsync=False)
    assert caught.value.exit_code == 3
    assert len(caught.value.mismatches) == 1
    assert str(caught.value).startswith(f"{tmp_path / 'edited'}: 1 mismatch: ")
    assert "nothing was put in place" in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["base", "unverified"]


def test_apply_also_verifies(flipped: Path, source: Path, tmp_path: Path) -> None:
    steer(source, out=tmp_path / "delta", layers=str(EDITED), k=2, layout="delta", verify=True, fsync=False)
    with pytest.raises(VerificationError):
        apply_edits(
            [tmp_path / "delta"],
            base=str(source),
            output=OutputOptions(tmp_path / "edited", verify=True, fsync=False),
        )
    assert sorted(os.listdir(tmp_path)) == ["base", "delta"]


@pytest.mark.parametrize("layout", ["full", "delta"])
def test_verifying_does_not_change_the_output(source: Path, tmp_path: Path, layout: Any) -> None:
    plain = steer(source, out=tmp_path / "plain", layers=str(EDITED), k=2, layout=layout, fsync=False)
    report = steer(source, out=tmp_path / "edited", layers=str(EDITED), k=2, layout=layout, verify=True, fsync=False)
    assert contents(tmp_path / "edited") == contents(tmp_path / "plain")
    assert plain.verification is None
    assert report.verification is not None
    assert report.verification.mismatches == ()
    assert report.verification.directory == str(tmp_path / "edited")
    assert report.verification.tensors_checked == 1
    assert report.verification.tensors_compared == (len(weights()) - 1 if layout == "full" else 0)
