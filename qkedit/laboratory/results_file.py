"""The file that an experiment writes as it goes, so that a broken one goes on where it stopped.

JSON lines: the experiment's settings first, then one line a result, with the answers themselves, so that all can be
scored again. One process writes, and every line is on the disk before the next; what a kill leaves of a last line is
cut off and done again. A file of other settings is refused, never mixed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from qkedit.checkpoint.io.lock import try_lock
from qkedit.errors import QkeditError, UsageError
from qkedit.laboratory.generation import EvalSetAnswers
from qkedit.laboratory.worker import Job, JobResult
from qkedit.strict_text import json_text

SCHEMA = 1
KIND = "qkedit laboratory"
# What sweeps called the share of a mode that stays, and today: files begun under the old name go on.
_OLD_NAME, _NAME = "residual", "retain"


class ResultsFile:
    """Results of one experiment on disk; a context manager that holds the file alone.

    Args:
        path: the file; made if there is none.
        settings: of the experiment, as JSON can hold them.

    Raises:
        UsageError: the file is not an experiment's, or that of another one.
        QkeditError: another run is writing to it, it is damaged, or it cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = Path(os.path.expanduser(path))
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))  # tuples are lists in a file
        self._file: BinaryIO | None = None
        self._results: dict[str, JobResult] = {}

    def __enter__(self) -> Self:
        """Take the file and read what is in it."""
        try:
            self._file = open(self._path, "a+b")
            locked = try_lock(self._file.fileno())
        except OSError as error:
            self._close()
            raise self._unwritable(error) from None
        try:
            if not locked:
                raise QkeditError(
                    "another run is writing to it", where=str(self._path), remedy="wait for it, or name another file"
                )
            self._read()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the file go."""
        self._close()

    def result(self, job: Job) -> JobResult | None:
        """Return what an earlier run found, None if it has to be done."""
        return self._results.get(_key(job))

    def add(self, job: Job, result: JobResult) -> None:
        """Append a result; it is on the disk when this returns. Raises QkeditError if it cannot be written."""
        self._results[_key(job)] = result
        self._append(
            {
                "arm": job.arm.as_dict(),
                "scenes": {"count": job.scenes.count, "seed": job.scenes.seed, "first": job.scenes.first},
                "key": _key(job),
                "energy_removed": result.energy_removed,
                "relative_change": result.relative_change,
                "seconds": round(result.seconds, 3),
                "captions": list(result.answers.captions),
                "yes_no": list(result.answers.yes_no),
            }
        )

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        header = {"schema": SCHEMA, "kind": KIND, "settings": self._settings}
        if not whole and _line(header).startswith(content):
            self._file.truncate(0)
            self._append(header)
            return
        lines = whole.splitlines()
        # Whatever is not an experiment's file is left as it is.
        self._check_header(_parsed(lines[0]) if lines else {})
        self._file.truncate(len(whole))
        for number, line in enumerate(lines[1:], start=2):
            try:
                record = _parsed(line)
                self._results[record["key"].replace(_OLD_NAME, _NAME)] = JobResult(
                    EvalSetAnswers(tuple(record["captions"]), tuple(record["yes_no"])),
                    record["seconds"],
                    record["energy_removed"],
                    record["relative_change"],
                )
            except (KeyError, TypeError, AttributeError) as error:
                raise QkeditError(
                    "is not a result of an experiment",
                    where=f"{self._path}, line {number}",
                    remedy="remove the line, and its arm is done again",
                ) from error

    def _check_header(self, header: dict[str, Any]) -> None:
        if header.get("kind") != KIND or not isinstance(header.get("settings"), dict):
            raise UsageError("is not a file of an experiment", where=str(self._path), remedy="name another with --out")
        if header.get("schema") != SCHEMA:
            raise UsageError(
                f"was written with schema {header.get('schema')}",
                where=str(self._path),
                remedy=f"this qkedit reads {SCHEMA}; name another with --out",
            )
        found = {name.replace(_OLD_NAME, _NAME): value for name, value in header["settings"].items()}
        different = [name for name in {**self._settings, **found} if found.get(name) != self._settings.get(name)]
        if different:
            raise UsageError(
                f"holds another experiment, with other {', '.join(different)}",
                where=str(self._path),
                remedy="name another file with --out, or repeat the settings it was begun with",
            )

    def _append(self, record: dict[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(_line(record))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> QkeditError:
        return QkeditError(
            f"cannot be written: {error.strerror}", where=str(self._path), remedy="free space or name another place"
        )

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _key(job: Job) -> str:
    return f"{job.arm.name} | scenes {job.scenes.first} to {job.scenes.first + job.scenes.count - 1}"


def _line(record: dict[str, Any]) -> bytes:
    return json_text(record, ascii_only=False).encode()


def _parsed(line: bytes) -> dict[str, Any]:
    """A line's object; an empty one for what is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
