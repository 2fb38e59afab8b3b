"""Test that copies are exact, change no other file, stop on request, and report failures."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.checkpoint.io import copying
from qkedit.checkpoint.io.copying import (
    LinkMode,
    clone_or_reserve,
    complement,
    copy_file,
    copy_ranges,
)
from qkedit.errors import CheckpointError, QkeditError
from tests.paths import ROOT


def error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def ignore(_: int) -> None:
    """Ignore the number of bytes."""


# --- behaviours of the system call: every test of exactness runs with each -----------------------------------------


def kernel_refuses(code: int) -> Callable[..., int]:
    def copy_file_range(*_: object) -> int:
        raise error(code)

    return copy_file_range


def kernel_copies_three_bytes(source: int, destination: int, count: int, start: int, end: int) -> int:
    return os.pwrite(destination, os.pread(source, min(count, 3), start), end)


SYSTEMS: dict[str, Callable[..., int] | None] = {
    "whole": getattr(os, "copy_file_range", None),
    "short counts": kernel_copies_three_bytes,
    "nothing": lambda *_: 0,  # as on some virtual file systems
    "other file system": kernel_refuses(errno.EXDEV),
    "unknown call": kernel_refuses(errno.ENOSYS),
    "sandbox": kernel_refuses(errno.EPERM),
}


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> Iterator[None]:
    """Simulate one behaviour of `copy_file_range`, with pieces so small that a copy needs several."""
    with (
        patch.object(os, "copy_file_range", SYSTEMS[request.param], create=True),
        patch.object(copying, "_CHUNK", 7),
        patch.object(copying, "_BUFFER", 5),
    ):
        yield


@pytest.fixture
def no_kernel_copy() -> Iterator[None]:
    with patch.object(os, "copy_file_range", kernel_refuses(errno.EXDEV), create=True):
        yield


# --- byte ranges ---------------------------------------------------------------------------------------------------


@st.composite
def files_with_ranges(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]]]:
    """Generate the bytes of a file, and disjoint ranges of it in any order, some of them empty or adjacent."""
    content = draw(st.binary(max_size=64))
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=12)))
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    return content, draw(st.permutations(ranges))


@given(files_with_ranges())
def test_ranges_and_their_complement_cover_every_byte_once(file: tuple[bytes, list[tuple[int, int]]]) -> None:
    content, ranges = file
    gaps = complement(ranges, len(content))
    covered = [position for start, end in (*ranges, *gaps) for position in range(start, end)]
    assert sorted(covered) == list(range(len(content)))
    assert list(gaps) == sorted(gaps)
    assert all(start < end for start, end in gaps)


@pytest.mark.parametrize(
    ("ranges", "size"), [([(0, 5), (4, 8)], 10), ([(2, 1)], 10), ([(0, 11)], 10), ([(-1, 3)], 10), ([(0, 1)], 0)]
)
def test_the_complement_of_invalid_ranges_is_an_error(ranges: list[tuple[int, int]], size: int) -> None:
    with pytest.raises(ValueError, match="range"):
        complement(ranges, size)


@pytest.mark.usefixtures("system")
@given(files_with_ranges(), st.randoms(use_true_random=False))
def test_copied_and_written_ranges_make_the_file_in_any_order(
    file: tuple[bytes, list[tuple[int, int]]], order: object
) -> None:
    """Write the planned ranges and copy all others, as an edit does."""
    content, planned = file
    expected = bytearray(content)
    for start, end in planned:
        expected[start:end] = bytes(255 - byte for byte in content[start:end])

    with tempfile.TemporaryDirectory() as folder:
        source, shard = Path(folder, "source"), Path(folder, "shard")
        source.write_bytes(content)
        assert not clone_or_reserve(source, shard, size_of(source), LinkMode.COPY)
        assert shard.read_bytes() == bytes(len(content))
        counted: list[int] = []
        rest = complement(planned, len(content))

        def copy() -> None:
            assert copy_ranges(source, shard, rest, counted.append) == sum(end - start for start, end in rest)

        def write(start: int, end: int) -> None:
            with shard.open("r+b") as stream:
                stream.seek(start)
                stream.write(expected[start:end])

        steps = [copy, *(partial(write, start, end) for start, end in planned)]
        order.shuffle(steps)  # type: ignore[attr-defined]
        for step in steps:
            step()
        assert shard.read_bytes() == expected
        assert source.read_bytes() == content
        assert sum(counted) == sum(end - start for start, end in rest)


def test_copying_works_without_the_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    (tmp_path / "source").write_bytes(b"weights")
    copy_file(tmp_path / "source", tmp_path / "copy", size_of(tmp_path / "source"), LinkMode.AUTO, ignore)
    assert (tmp_path / "copy").read_bytes() == b"weights"


@pytest.mark.usefixtures("system")
def test_a_truncated_source_is_an_error_with_the_position(tmp_path: Path) -> None:
    source, destination = tmp_path / "model.safetensors", tmp_path / "copy"
    source.write_bytes(b"0123456789")
    destination.write_bytes(bytes(20))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ends at byte 10"):
        copy_ranges(source, destination, [(2, 4), (6, 20)], ignore)
    assert destination.read_bytes() == bytes(2) + b"23" + bytes(2) + b"6789" + bytes(10)


@pytest.mark.usefixtures("system")
def test_an_exception_of_the_byte_counter_stops_the_copy(tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"x" * 100)
    destination.write_bytes(bytes(100))

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_ranges(source, destination, [(0, 100)], stop)
    assert 0 < destination.read_bytes().count(b"x") <= 7  # one piece is 7 bytes, see the fixture


# --- whole files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """Return a blob in a store and a path that reaches it over two links, as in a hub cache."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "out").mkdir()
    blob = tmp_path / "blobs" / "abc123"
    blob.write_bytes(bytes(range(256)) * 40)
    (tmp_path / "blobs" / "alias").symlink_to("abc123")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/alias")
    return blob


def size_of(path: Path) -> int:
    return path.stat().st_size


@pytest.fixture
def source(blob: Path) -> Path:
    return blob.parent.parent / "snapshot" / "model.safetensors"


@pytest.fixture
def destination(blob: Path) -> Path:
    return blob.parent.parent / "out" / "model.safetensors"


def reflink_by_copying(descriptor: int, request: int, argument: int) -> int:
    """Simulate FICLONE by reads and writes."""
    assert request == 0x40049409
    os.pwrite(descriptor, os.pread(argument, 1 << 20, 0), 0)
    return 0


def reflink_impossible(*_: object) -> int:
    raise error(errno.EOPNOTSUPP)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("reflink", [reflink_by_copying, reflink_impossible])
@pytest.mark.parametrize("link", [LinkMode.AUTO, LinkMode.COPY])
def test_a_copy_is_independent_of_its_source(
    link: LinkMode,
    reflink: Callable[..., int],
    blob: Path,
    source: Path,
    destination: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copying, "ioctl", reflink)
    content = blob.read_bytes()
    blob.chmod(0o400)
    counted: list[int] = []
    copy_file(source, destination, size_of(source), link, counted.append)
    assert destination.read_bytes() == content
    assert sum(counted) == len(content)
    assert not destination.is_symlink()
    assert destination.stat().st_nlink == 1

    ordinary = destination.with_name("ordinary")
    ordinary.touch()
    assert destination.stat().st_mode == ordinary.stat().st_mode

    destination.write_bytes(b"edited")
    assert blob.read_bytes() == content


def test_a_reflink_is_tried_first_except_for_copy(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "ioctl", reflink_by_copying)
    monkeypatch.setattr(copying, "copy_ranges", lambda *_: pytest.fail("copied after cloning"))
    for link in (LinkMode.AUTO, LinkMode.REFLINK):
        assert clone_or_reserve(source, destination.with_name(f"editable {link}"), size_of(source), link)
        copy_file(source, destination.with_name(f"whole {link}"), size_of(source), link, ignore)
        assert destination.with_name(f"whole {link}").read_bytes() == source.read_bytes()
    assert not clone_or_reserve(source, destination, size_of(source), LinkMode.COPY)


def test_an_impossible_reflink_is_an_error(source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "ioctl", reflink_impossible)
    with pytest.raises(QkeditError, match=r"cannot share blocks.*--link auto"):
        copy_file(source, destination, size_of(source), LinkMode.REFLINK, ignore)


def test_a_real_reflink_is_complete_or_refused(source: Path, destination: Path) -> None:
    """On any file system, the copy has all bytes, or there is no file and one sentence."""
    try:
        copy_file(source, destination, size_of(source), LinkMode.REFLINK, ignore)
    except QkeditError as refusal:
        assert "cannot share blocks" in refusal.what  # noqa: PT017 — either outcome is right, if it is this one
    else:
        assert destination.read_bytes() == source.read_bytes()


def test_a_hard_link_points_to_the_blob_and_not_to_a_link(blob: Path, source: Path, destination: Path) -> None:
    counted: list[int] = []
    copy_file(source, destination, size_of(source), LinkMode.HARD, counted.append)
    assert not destination.is_symlink()
    assert destination.samefile(blob)
    assert counted == [blob.stat().st_size]


def test_a_symbolic_link_points_to_the_blob_from_any_directory(
    blob: Path, source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    counted: list[int] = []
    copy_file(Path(source.name), destination, size_of(source), LinkMode.SYMLINK, counted.append)
    assert os.readlink(destination) == str(blob.resolve())
    assert counted == [blob.stat().st_size]


@pytest.mark.parametrize(("link", "call"), [(LinkMode.HARD, "link"), (LinkMode.SYMLINK, "symlink")])
def test_an_impossible_link_is_an_error(
    link: LinkMode, call: str, source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error(errno.EXDEV)

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(QkeditError, match=r"out/model\.safetensors: cannot make a .* link.*--link copy"):
        copy_file(source, destination, size_of(source), link, ignore)


@pytest.mark.parametrize("link", LinkMode)
def test_editing_the_new_file_does_not_change_the_source(
    link: LinkMode, blob: Path, source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "ioctl", reflink_by_copying)
    content = blob.read_bytes()
    clone_or_reserve(source, destination, size_of(source), link)
    assert destination.stat().st_size == len(content)
    with destination.open("r+b") as stream:
        stream.write(b"edited")
    assert blob.read_bytes() == content
    assert not destination.is_symlink()


@pytest.mark.parametrize("link", LinkMode)
@pytest.mark.parametrize("occupant", ["file", "link", "dangling link"])
def test_an_existing_destination_is_refused_and_unchanged(
    link: LinkMode, occupant: str, tmp_path: Path, source: Path, destination: Path
) -> None:
    precious = tmp_path / "precious"
    if occupant != "dangling link":
        precious.write_text("weights of years")
    if occupant == "file":
        precious = precious.rename(destination)
    else:
        destination.symlink_to(precious)
    with pytest.raises(QkeditError, match="file exists"):
        copy_file(source, destination, size_of(source), link, ignore)
    assert not precious.exists() or precious.read_text() == "weights of years"


def test_ranges_are_not_written_through_a_symbolic_link(blob: Path, source: Path, destination: Path) -> None:
    content = blob.read_bytes()
    other = blob.with_name("other")
    other.write_bytes(bytes(len(content)))
    destination.symlink_to(blob)
    with pytest.raises(QkeditError, match="cannot open"):
        copy_ranges(other, destination, [(0, len(content))], ignore)
    assert blob.read_bytes() == content


@pytest.mark.parametrize("link", LinkMode)
@pytest.mark.parametrize("kind", ["missing", "dangling", "directory", "pipe", "looping"])
def test_a_source_that_is_not_a_file_is_refused(link: LinkMode, kind: str, tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    match kind:
        case "dangling":
            source.symlink_to("nothing")
        case "directory":
            source.mkdir()
        case "pipe":
            os.mkfifo(source)
        case "looping":
            source.symlink_to(source)
    with pytest.raises(QkeditError, match=r"model\.safetensors: (cannot open|is not a file)"):
        copy_file(source, tmp_path / "copy", 0, link, ignore)
    assert not os.path.lexists(tmp_path / "copy")


# --- disk errors ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_kernel_copy")
@pytest.mark.parametrize(
    ("call", "code", "sentence"),
    [
        ("pwrite", errno.ENOSPC, r"out/model\.safetensors: cannot write: no space left.*; free some space"),
        ("pwrite", errno.EDQUOT, r"out/model\.safetensors: cannot write: .*quota exceeded; free some"),
        ("pwrite", errno.EIO, r"out/model\.safetensors: cannot write: input/output error; check the disk"),
        ("pread", errno.EIO, r"snapshot/model\.safetensors: cannot read: input/output error; check the disk"),
        ("ftruncate", errno.EFBIG, r"out/model\.safetensors: cannot reserve its size: file too large; raise"),
    ],
)
def test_disk_errors_name_the_file_and_the_remedy(
    call: str, code: int, sentence: str, source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error(code)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(QkeditError, match=sentence):
        copy_file(source, destination, size_of(source), LinkMode.COPY, ignore)


def test_a_real_file_size_limit_is_one_sentence_without_output(tmp_path: Path) -> None:
    """A file size limit causes a write error without privileges."""
    (tmp_path / "source").write_bytes(bytes(300_000))
    (tmp_path / "run.py").write_text(
        """
import resource, sys
from pathlib import Path
from qkedit.checkpoint.io.copying import LinkMode, copy_file, copy_ranges
from qkedit.checkpoint.io.staging import StagedDirectory
from qkedit.errors import QkeditError

here = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for copy in (
    lambda file: copy_file(here / "source", file, 300_000, LinkMode.COPY, lambda _: None),
    lambda file: (file.touch(), copy_ranges(here / "source", file, [(0, 300_000)], lambda _: None)),
):
    try:
        with StagedDirectory(here / "out", overwrite=False) as staged:
            copy(staged.path / "model.safetensors")
            staged.commit()
    except QkeditError as error:
        print(error)
"""
    )
    run = subprocess.run(
        [sys.executable, "-S", str(tmp_path / "run.py"), str(tmp_path)],
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = run.stdout.splitlines()
    assert [line.split(": ")[1:3] for line in lines] == [
        [
            "cannot reserve its size",
            "file too large; raise the file size limit or choose a place on another file system.",
        ],
        ["cannot write", "file too large; raise the file size limit or choose a place on another file system."],
    ]
    assert sorted(os.listdir(tmp_path)) == ["run.py", "source"]
