"""Test the lock between runs: it is exclusive and ends with the file, and system errors differ from a busy lock."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from qkedit.checkpoint.io.lock import try_lock


def test_a_second_lock_is_refused_until_the_first_is_released(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with file.open("ab") as first, file.open("ab") as second:
        assert try_lock(first.fileno())
        assert try_lock(first.fileno())  # the first already holds the lock
        assert not try_lock(second.fileno())
    with file.open("ab") as third:
        assert try_lock(third.fileno())


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_both_error_numbers_of_a_busy_lock_are_understood(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", _raising(number))
    with (tmp_path / "lock").open("ab") as file:
        assert not try_lock(file.fileno())


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", _raising(errno.ENOLCK))
    with (tmp_path / "lock").open("ab") as file, pytest.raises(OSError, match="no locks") as failure:
        try_lock(file.fileno())
    assert failure.value.errno == errno.ENOLCK


def _raising(number: int) -> object:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, "no locks")

    return flock
