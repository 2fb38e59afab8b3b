"""An output directory is absent, old or new, whatever happens; and nothing stays beside it."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qkedit.checkpoint import rename
from qkedit.checkpoint.staging import StagedDirectory
from qkedit.errors import QkeditError, UsageError
from tests.checkpoint import staging_process
from tests.checkpoint.staging_process import FILES, read_generation, write_output

ROOT = Path(__file__).parents[2]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "edited"


@pytest.fixture
def old(target: Path) -> Path:
    """The target, where an earlier output stands: generation 1."""
    target.mkdir()
    write_output(target, 1)
    return target


@pytest.fixture(params=["atomic", "plain"])
def exchange_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(rename, "_renameat2", lambda *_: False)
    return request.param


def beside(target: Path) -> list[str]:
    return sorted(os.listdir(target.parent))


def start(work: str, target: Path, step: int = 0, kind: str = "atomic") -> subprocess.Popen[str]:
    """Start staging_process.py and wait until its work begins. Without site-packages, as that starts faster."""
    process = subprocess.Popen(
        [sys.executable, "-S", staging_process.__file__, work, str(target), str(step), kind],
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.stderr
    return process


def finish(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=60)
    return process.returncode


def write_to(
    target: Path,
    *,
    overwrite: bool = True,
    sources: Sequence[Path] = (),
    before_commit: Callable[[], object] = lambda: None,
) -> None:
    """Write generation 2 to the target, as a run does."""
    with StagedDirectory(target, overwrite=overwrite, sources=sources) as staged:
        write_output(staged.path, 2)
        before_commit()
        staged.commit()


def fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


# --- a run that ends well ------------------------------------------------------------------------------------------


def test_new_output_appears_with_the_commit_and_nothing_else_does(target: Path, exchange_kind: str) -> None:
    with StagedDirectory(target, overwrite=False) as staged:
        write_output(staged.path, 2)
        assert not target.exists()
        assert staged.path.stat().st_dev == target.parent.stat().st_dev
        staged.commit()
        assert read_generation(target) == 2
    assert beside(target) == ["edited"]


def test_old_output_stands_until_the_commit_replaces_it(old: Path, exchange_kind: str) -> None:
    with StagedDirectory(old, overwrite=True) as staged:
        write_output(staged.path, 2)
        assert read_generation(old) == 1
        staged.commit()
    assert read_generation(old) == 2
    assert beside(old) == ["edited"]


def test_overwrite_is_a_permission_and_no_demand(target: Path) -> None:
    write_to(target, overwrite=True)
    assert read_generation(target) == 2


def test_an_empty_directory_is_replaced(target: Path) -> None:
    target.mkdir()
    write_to(target)
    assert read_generation(target) == 2


@pytest.mark.parametrize("spelling", ["edited", "edited/", "./edited", "../outputs/edited", "link/edited"])
def test_spellings_of_one_target(target: Path, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (target.parent / "link").symlink_to(target.parent)
    monkeypatch.chdir(target.parent)
    staged = StagedDirectory(Path(spelling), overwrite=False)
    monkeypatch.chdir("/")  # a later change of directory moves nothing
    with staged:
        with pytest.raises(QkeditError, match="another run"), StagedDirectory(target, overwrite=False):
            pass
        write_output(staged.path, 2)
        staged.commit()
    assert read_generation(target) == 2
    assert beside(target) == ["edited", "link"]


def test_output_has_the_permissions_of_any_new_directory(target: Path) -> None:
    ordinary = target.parent / "ordinary"
    ordinary.mkdir()
    with StagedDirectory(target, overwrite=False) as staged:
        staged.commit()
    assert target.stat().st_mode == ordinary.stat().st_mode


def test_everything_is_on_the_disk_before_the_rename(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_without_fsync_none_is_made(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("fsync"))
    with StagedDirectory(target, overwrite=False) as staged:
        write_output(staged.path, 2)
        assert staged.commit(fsync=False) == 0.0
    assert read_generation(target) == 2


# --- refusals ------------------------------------------------------------------------------------------------------


def tree(directory: Path) -> dict[str, object]:
    """Everything below a directory: what links say, what files hold."""
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of unsuitable targets, one of them the working and one the home directory."""
    for name in ("model", "work/here", "home", "photos", "deep/model"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "model/config.json",
        "work/config.json",
        "home/config.json",
        "photos/cat.jpg",
        "file",
        "deep/config.json",
    ):
        (tmp_path / name).write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "same-model").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "work" / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("link", "symbolic link"),
        ("link/", "symbolic link"),
        ("dangling", "symbolic link"),
        ("file", "not a directory"),
        ("file/edited", "not a directory"),
        ("missing/edited", "does not exist"),
        ("dangling/edited", "does not exist"),
        ("loop/edited", "out of reach"),
        ("null\0byte", "null byte"),
        ("work", "working directory"),
        ("work/here", "working directory"),
        ("work/here/.", "working directory"),
        ("work/here/..", "working directory"),
        (".", "working directory"),
        ("home", "home directory"),
        ("/", "mount point"),
        ("photos", "no model"),
        ("model", "which is read"),
        ("model/edited", "which is read"),
        ("same-model/edited", "which is read"),
        ("deep", "which is read"),
    ],
)
def test_unsuitable_targets_are_refused_in_one_sentence(places: Path, target: str, reason: str) -> None:
    before = tree(places)
    path = Path(target) if target in (".", "/") else Path(f"{places}/{target}")
    with pytest.raises(UsageError, match=reason) as caught:
        write_to(path, sources=[places / "same-model", places / "deep" / "model"])
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert caught.value.remedy
    assert tree(places) == before


def test_an_existing_output_is_not_replaced_unasked(old: Path) -> None:
    with pytest.raises(UsageError, match=r"already exists.*--overwrite"):
        write_to(old, overwrite=False)
    assert read_generation(old) == 1
    assert beside(old) == ["edited"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_to_stand_at_the_target_meanwhile_stays(target: Path, overwrite: bool) -> None:
    def appear() -> None:
        target.mkdir()
        (target / "thesis.tex").write_text("three years")

    with pytest.raises(UsageError, match="no model" if overwrite else "already exists"):
        write_to(target, overwrite=overwrite, before_commit=appear)
    assert (target / "thesis.tex").read_text() == "three years"
    assert beside(target) == ["edited"]


@pytest.mark.parametrize("appears", ["file", "directory"])
def test_the_rename_itself_replaces_nothing(target: Path, exchange_kind: str, appears: str) -> None:
    """Between the last look and the rename there is a moment; the rename is asked to leave alone what it finds."""
    fresh = target.with_name("fresh")
    fresh.mkdir()
    if appears == "file":
        target.write_text("three years")
    else:
        target.mkdir()
        (target / "thesis.tex").write_text("three years")
    before = tree(target.parent)
    with pytest.raises(OSError, match=r"."):
        rename.rename_to_absent(fresh, target)
    assert tree(target.parent) == before


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs a directory in which not even root creates anything")
    with (
        pytest.raises(QkeditError, match=r"^/proc: cannot create a directory: "),
        StagedDirectory(Path("/proc/edited"), overwrite=False),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent(target: Path) -> None:
    target.parent.chmod(0o500)
    with pytest.raises(QkeditError, match="permission denied"), StagedDirectory(target, overwrite=False):
        pass
    assert beside(target) == []


@pytest.mark.parametrize("to", ["elsewhere", "nothing"])
def test_a_link_in_the_place_of_the_workspace_is_not_followed(target: Path, to: str) -> None:
    (target.parent / "elsewhere").mkdir()
    (target.parent / ".edited.qkedit").symlink_to(target.parent / to)
    before = tree(target.parent)
    with pytest.raises(QkeditError, match="symbolic link"), StagedDirectory(target, overwrite=False):
        pass
    assert tree(target.parent) == before


def test_files_that_no_run_wrote_stay(target: Path) -> None:
    workspace = target.parent / ".edited.qkedit"
    workspace.mkdir()
    (workspace / "notes").write_text("mine")
    with StagedDirectory(target, overwrite=False) as staged:
        staged.commit()
    assert tree(workspace) == {str(workspace / "notes"): b"mine"}


# --- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [KeyboardInterrupt, QkeditError, MemoryError])
@pytest.mark.parametrize("existing", [False, True])
def test_a_broken_off_run_changes_nothing(target: Path, failure: type[BaseException], existing: bool) -> None:
    if existing:
        target.mkdir()
        write_output(target, 1)

    def break_off() -> None:
        raise failure("here")

    with pytest.raises(failure):
        write_to(target, before_commit=break_off)
    assert read_generation(target) == (1 if existing else None)
    assert beside(target) == (["edited"] if existing else [])


def test_leaving_without_commit_changes_nothing(old: Path) -> None:
    with StagedDirectory(old, overwrite=True) as staged:
        write_output(staged.path, 2)
    assert read_generation(old) == 1
    assert beside(old) == ["edited"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_at_the_last_moment(old: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise fail(code)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(QkeditError, match=os.strerror(code)[1:]):
        write_to(old)
    assert read_generation(old) == 1
    assert beside(old) == ["edited"]


def test_a_directory_that_a_network_file_system_cannot_sync(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_file_system_without_locks(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise fail(errno.ENOLCK)

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(QkeditError, match="file locks"), StagedDirectory(target, overwrite=False):
        pass


@pytest.mark.parametrize("failing", [1, 2])
def test_an_exchange_whose_renames_fail_is_undone(old: Path, failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert beside(old) == ["edited"]


@pytest.fixture
def undeletable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, no directory can be removed."""

    def rmtree(_: object) -> None:
        raise fail(errno.EACCES)

    return lambda: monkeypatch.setattr(shutil, "rmtree", rmtree)


@pytest.mark.usefixtures("exchange_kind")
def test_a_replaced_directory_that_cannot_be_removed(
    old: Path, undeletable: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(QkeditError, match="though the new one is in place"):
        write_to(old, before_commit=undeletable)
    assert read_generation(old) == 2
    monkeypatch.undo()
    with StagedDirectory(old, overwrite=True):
        pass  # clears what the last run left
    assert read_generation(old) == 2
    assert beside(old) == ["edited"]


def test_the_first_failure_is_the_one_reported(target: Path, undeletable: Callable[[], None]) -> None:
    def fail_twice() -> None:
        undeletable()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_to(target, before_commit=fail_twice)


def test_staging_that_cannot_be_removed_is_told(target: Path, undeletable: Callable[[], None]) -> None:
    with pytest.raises(QkeditError, match="remove the staging directory"), StagedDirectory(target, overwrite=False):
        undeletable()


def test_ctrl_c_leaves_nothing(target: Path) -> None:
    process = start("hold", target)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert beside(target) == [".edited.qkedit"]
    process.send_signal(signal.SIGINT)
    assert finish(process) != 0
    assert beside(target) == []


# --- kills ---------------------------------------------------------------------------------------------------------


def test_killed_before_every_single_file_operation(old: Path, exchange_kind: str) -> None:
    """One run after another dies one operation later than the last one did, until one comes through."""
    seen = set()
    for step in range(1, 200):
        survived = finish(start("write", old, step, exchange_kind)) == 0
        generation = read_generation(old)  # fails on anything but a complete output
        seen.add(generation)
        with StagedDirectory(old, overwrite=True) as staged:
            assert os.listdir(staged.path) == []
        assert beside(old) == ["edited"]
        assert read_generation(old) == (1 if generation is None else generation)
        if survived:
            break
        if generation == 2:
            shutil.rmtree(old)
            old.mkdir()
            write_output(old, 1)
    assert survived
    assert step > 20  # so many operations were met
    # Only an exchange by plain renames has a moment without a target.
    assert seen == ({1, 2} if exchange_kind == "atomic" else {1, 2, None})


def test_killed_before_every_single_file_operation_of_a_first_run(target: Path, exchange_kind: str) -> None:
    for step in range(1, 200):
        survived = finish(start("write", target, step, exchange_kind)) == 0
        generation = read_generation(target)
        assert generation in (None, 2)
        if generation == 2:
            shutil.rmtree(target)
        with StagedDirectory(target, overwrite=False):
            pass
        assert beside(target) == []
        if survived:
            break
    assert survived
    assert generation == 2


def test_killed_at_random_moments(old: Path, exchange_kind: str) -> None:
    """Whatever a kill leaves, the next process of the row starts from it; the last leaves no litter."""
    moments = random.Random(0)
    newest = 1
    for _ in range(40):
        process = start("repeat", old, kind=exchange_kind)
        time.sleep(moments.uniform(0, 0.04))
        process.kill()
        assert finish(process) == -signal.SIGKILL
        generation = read_generation(old)
        assert generation is not None or exchange_kind == "plain"
        newest = max(newest, generation or 0)
    assert newest > 1  # some runs did commit
    with StagedDirectory(old, overwrite=True) as staged:
        write_output(staged.path, 1000)
        staged.commit()
    assert read_generation(old) == 1000
    assert beside(old) == ["edited"]


# --- several runs --------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_at_once_and_harms_nothing(target: Path) -> None:
    process = start("hold", target)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    staged_by_first = tree(target.parent)
    with pytest.raises(QkeditError, match="another run is writing"), StagedDirectory(target, overwrite=True):
        pass
    with StagedDirectory(target.with_name("other"), overwrite=True):
        pass  # another target is free
    assert tree(target.parent) == staged_by_first

    process.kill()
    finish(process)
    with StagedDirectory(target, overwrite=True) as staged:  # a dead run holds no lock
        write_output(staged.path, 3)
        staged.commit()
    assert read_generation(target) == 3
    assert beside(target) == ["edited"]


@pytest.fixture
def eager_thread_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_thread_switches")
def test_never_two_runs_at_once_though_the_lock_file_comes_and_goes(target: Path) -> None:
    inside = threading.Lock()
    entered, refused, mixed = [], [], []

    def run(_: int) -> None:
        for generation in range(150):
            try:
                with StagedDirectory(target, overwrite=True) as staged:
                    if not inside.acquire(blocking=False):
                        mixed.append(generation)
                    (staged.path / "qkedit.json").write_text("{}")
                    entered.append(generation)
                    if generation % 3:
                        staged.commit(fsync=False)
                    inside.release()
            except QkeditError as error:
                refused.append(error.what)

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(run, range(4)))
    assert set(refused) == {"another run is writing to this directory"}
    assert mixed == []
    assert entered
    assert beside(target) == ["edited"]
