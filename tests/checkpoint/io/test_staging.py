"""Test that a target is absent, old or new after any failure, and that no other files remain."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qkedit.checkpoint.io import rename
from qkedit.checkpoint.io.staging import StagedDirectory
from qkedit.errors import QkeditError, UsageError
from tests.checkpoint.outputs import FILES, read_generation, siblings, tree, write_output, write_to


def fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


# --- successful runs


def test_a_new_output_appears_at_the_commit(target: Path, exchange_kind: str) -> None:
    with StagedDirectory(target, overwrite=False) as staged:
        write_output(staged.path, 2)
        assert not target.exists()
        assert staged.path.stat().st_dev == target.parent.stat().st_dev
        staged.commit()
        assert read_generation(target) == 2
    assert siblings(target) == ["edited"]


def test_an_earlier_output_remains_until_the_commit(old: Path, exchange_kind: str) -> None:
    with StagedDirectory(old, overwrite=True) as staged:
        write_output(staged.path, 2)
        assert read_generation(old) == 1
        staged.commit()
    assert read_generation(old) == 2
    assert siblings(old) == ["edited"]


def test_overwrite_does_not_require_an_earlier_output(target: Path) -> None:
    write_to(target, overwrite=True)
    assert read_generation(target) == 2


def test_an_empty_directory_is_replaced(target: Path) -> None:
    target.mkdir()
    write_to(target)
    assert read_generation(target) == 2


@pytest.mark.parametrize("spelling", ["edited", "edited/", "./edited", "../outputs/edited", "link/edited"])
def test_a_target_may_be_a_relative_path_through_links(
    target: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target.parent / "link").symlink_to(target.parent)
    monkeypatch.chdir(target.parent)
    staged = StagedDirectory(Path(spelling), overwrite=False)
    monkeypatch.chdir("/")  # a later change of directory does not change the target
    with staged:
        with pytest.raises(QkeditError, match="another run"), StagedDirectory(target, overwrite=False):
            pass
        write_output(staged.path, 2)
        staged.commit()
    assert read_generation(target) == 2
    assert siblings(target) == ["edited", "link"]


def test_the_output_has_the_permissions_of_a_new_directory(target: Path) -> None:
    ordinary = target.parent / "ordinary"
    ordinary.mkdir()
    with StagedDirectory(target, overwrite=False) as staged:
        staged.commit()
    assert target.stat().st_mode == ordinary.stat().st_mode


def test_everything_is_synced_before_the_rename(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_fsync, real_rename = os.fsync, rename._renameat2

    def fsync(descriptor: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)

    def renameat2(*arguments: object) -> bool:
        calls.append("rename")
        return real_rename(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(rename, "_renameat2", renameat2)
    with StagedDirectory(target, overwrite=False) as staged:
        write_output(staged.path, 2)
        (staged.path / "linked.safetensors").symlink_to("/nowhere")
        before = {str(staged.path), *(str(staged.path / name) for name in (*FILES, "chat"))}
        assert staged.commit() > 0
    at = calls.index("rename")
    assert set(calls[:at]) == before
    assert calls[at + 1 :] == [str(target.parent)]


def test_without_fsync_no_file_is_synced(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("fsync"))
    with StagedDirectory(target, overwrite=False) as staged:
        write_output(staged.path, 2)
        assert staged.commit(fsync=False) == 0.0
    assert read_generation(target) == 2


# --- failing runs


@pytest.mark.parametrize("failure", [KeyboardInterrupt, QkeditError, MemoryError])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_run_leaves_the_target_unchanged(
    target: Path, failure: type[BaseException], existing: bool
) -> None:
    if existing:
        target.mkdir()
        write_output(target, 1)

    def interrupt() -> None:
        raise failure("here")

    with pytest.raises(failure):
        write_to(target, before_commit=interrupt)
    assert read_generation(target) == (1 if existing else None)
    assert siblings(target) == (["edited"] if existing else [])


def test_without_a_commit_the_target_is_unchanged(old: Path) -> None:
    with StagedDirectory(old, overwrite=True) as staged:
        write_output(staged.path, 2)
    assert read_generation(old) == 1
    assert siblings(old) == ["edited"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_an_error_of_the_last_sync_leaves_the_target_unchanged(
    old: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise fail(code)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(QkeditError, match=os.strerror(code)[1:]):
        write_to(old)
    assert read_generation(old) == 1
    assert siblings(old) == ["edited"]


@pytest.mark.parametrize("place", ["target", "old"])
def test_an_error_after_the_rename_is_reported_and_the_output_remains(
    place: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    target, real = request.getfixturevalue(place), os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), os.stat(target.parent)):
            raise fail(errno.EIO)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(QkeditError, match="though edited is in place"):
        write_to(target)
    assert read_generation(target) == 2
    assert siblings(target) == ["edited"]


def test_a_directory_that_cannot_be_synced_is_accepted(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise fail(errno.EINVAL)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with StagedDirectory(target, overwrite=False) as staged:
        write_output(staged.path, 2)
        staged.commit()
    assert read_generation(target) == 2


def test_a_file_system_without_locks_is_an_error(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise fail(errno.ENOLCK)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(QkeditError, match="file locks"), StagedDirectory(target, overwrite=False):
        pass


@pytest.mark.parametrize("failing", [1, 2])
def test_an_exchange_is_undone_if_a_rename_fails(old: Path, failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rename, "_renameat2", lambda *_: False)
    real, calls = os.rename, []

    def failing_rename(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise fail(errno.EIO)
        real(source, target)

    with pytest.raises(QkeditError, match="put the finished directory in place"):
        write_to(old, before_commit=lambda: monkeypatch.setattr(os, "rename", failing_rename))
    assert read_generation(old) == 1
    assert siblings(old) == ["edited"]


@pytest.fixture
def undeletable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make every later removal of a directory fail."""

    def rmtree(_: object) -> None:
        raise fail(errno.EACCES)

    return lambda: monkeypatch.setattr(shutil, "rmtree", rmtree)


@pytest.mark.usefixtures("exchange_kind")
def test_a_replaced_directory_is_removed_by_the_next_run_if_removing_fails(
    old: Path, undeletable: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(QkeditError, match="though the new one is in place"):
        write_to(old, before_commit=undeletable)
    assert read_generation(old) == 2
    monkeypatch.undo()
    with StagedDirectory(old, overwrite=True):
        pass  # removes the leftovers of the last run
    assert read_generation(old) == 2
    assert siblings(old) == ["edited"]


def test_the_first_of_two_failures_is_reported(target: Path, undeletable: Callable[[], None]) -> None:
    def fail_twice() -> None:
        undeletable()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_to(target, before_commit=fail_twice)


def test_a_staging_directory_that_cannot_be_removed_is_an_error(target: Path, undeletable: Callable[[], None]) -> None:
    with pytest.raises(QkeditError, match="remove the staging directory"), StagedDirectory(target, overwrite=False):
        undeletable()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_that_appears_at_the_target_is_kept(target: Path, overwrite: bool) -> None:
    def appear() -> None:
        target.mkdir()
        (target / "thesis.tex").write_text("three years")

    with pytest.raises(UsageError, match="not replaced" if overwrite else "already exists"):
        write_to(target, overwrite=overwrite, before_commit=appear)
    assert (target / "thesis.tex").read_text() == "three years"
    assert siblings(target) == ["edited"]


@pytest.mark.parametrize("appears", ["file", "directory"])
def test_the_rename_replaces_no_existing_file(target: Path, exchange_kind: str, appears: str) -> None:
    """A directory that appears between the last check and the rename is not replaced."""
    fresh = target.with_name("fresh")
    fresh.mkdir()
    if appears == "file":
        target.write_text("three years")
    else:
        target.mkdir()
        (target / "thesis.tex").write_text("three years")
    before = tree(target.parent)
    with pytest.raises(OSError, match=r"exists|not empty|Not a directory"):
        rename.rename_to_absent(fresh, target)
    assert tree(target.parent) == before


def test_a_target_where_directories_cannot_be_created_is_refused(tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs a directory in which root cannot create files")
    with (
        pytest.raises(QkeditError, match=r"^/proc: cannot create a directory: "),
        StagedDirectory(Path("/proc/edited"), overwrite=False),
    ):
        pass


def test_a_read_only_parent_is_refused(target: Path) -> None:
    target.parent.chmod(0o500)
    if os.access(target.parent, os.W_OK):
        pytest.skip("this user may write to every directory")
    with pytest.raises(QkeditError, match="permission denied"), StagedDirectory(target, overwrite=False):
        pass
    assert siblings(target) == []


@pytest.mark.parametrize("to", ["elsewhere", "nothing"])
def test_a_symbolic_link_instead_of_the_workspace_is_refused(target: Path, to: str) -> None:
    (target.parent / "elsewhere").mkdir()
    (target.parent / ".edited.qkedit").symlink_to(target.parent / to)
    before = tree(target.parent)
    with pytest.raises(QkeditError, match="symbolic link"), StagedDirectory(target, overwrite=False):
        pass
    assert tree(target.parent) == before


def test_foreign_files_in_the_workspace_are_kept(target: Path) -> None:
    workspace = target.parent / ".edited.qkedit"
    workspace.mkdir()
    (workspace / "notes").write_text("mine")
    with StagedDirectory(target, overwrite=False) as staged:
        staged.commit()
    assert tree(workspace) == {str(workspace / "notes"): b"mine"}
