"""The results file of an experiment, from which an interrupted experiment is resumed.

JSON lines: first the experiment's settings, then one line per result, including the answers, so that all can be scored
again. Only one process writes, and every line is on the disk before the next; a partial last line after a kill is
removed and its job is run again. A file with other settings is refused, never mixed.
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
# The old and the present name of the kept share of a mode: files begun under the old name can be resumed.
_OLD_NAME, _NAME = "residual", "retain"


class ResultsFile:
    """The results of one experiment on disk; a context manager that locks the file.

    Args:
        path: the file, created if missing.
        settings: the settings of the experiment, as JSON values.

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
        """Lock the file and read its results."""
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
        """Unlock the file."""
        self._close()

    def result(self, job: Job) -> JobResult | None:
        """Return the result of an earlier run, or None."""
        return self._results.get(_key(job))

    def add(self, job: Job, result: JobResult) -> None:
        """Append a result and flush it to the disk. Raises QkeditError if it cannot be written."""
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
                "batches": [[count, round(seconds, 6)] for count, seconds in result.answers.batches],
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
        # A file that is not an experiment's is not changed.
        self._check_header(_parsed(lines[0]) if lines else {})
        self._file.truncate(len(whole))
        for number, line in enumerate(lines[1:], start=2):
            try:
                record = _parsed(line)
                self._results[record["key"].replace(_OLD_NAME, _NAME)] = JobResult(
                    EvalSetAnswers(
                        tuple(record["captions"]),
                        tuple(record["yes_no"]),
                        tuple((count, seconds) for count, seconds in record.get("batches", ())),
                    ),
                    record["seconds"],
                    record["energy_removed"],
                    record["relative_change"],
                )
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise QkeditError(
                    "is not a result of an experiment",
                    where=f"{self._path}, line {number}",
                    remedy="remove the line, and its arm will run again",
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
    """Return the object in a line; empty if it is not an object."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
