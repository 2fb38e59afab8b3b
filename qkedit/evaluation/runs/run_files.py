"""The directory of a run, which can be resumed after a kill.

    OUT/run.json                   the run's identity; written once, before the first answer
    OUT/answers/pope.random.jsonl  {"id", "image", "question", "answer"}, one line as soon as an answer is given; and
                                   "finish_reason" where the model did not end the answer itself, and "seconds", the
                                   answer's share of the wall time of its batch, where that is measured
    OUT/result.json                the scores, when every question is answered

A run is resumed if it is the same run: its identity must equal `run.json` exactly, including the hash of the weights.
A power failure can leave an incomplete line at the end of a file of answers; it is removed, and its question is asked
again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.lock import try_lock
from qkedit.checkpoint.io.whole_file import check_writable, write_whole
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.files.records import FINISH_REASON, SECONDS, STOP, Answer, Question
from qkedit.evaluation.files.result_files import RESULT_FILE
from qkedit.evaluation.runs.backend import Reply
from qkedit.strict_text import json_text

RUN_FILE = "run.json"
ANSWERS = "answers"
SCHEMA = 1
# The number of differences between two runs that an error names.
_NAMED = 4


class RunFiles:
    """The files of one run; a context manager that keeps other runs out.

    Args:
        directory: the run's directory; missing directories above it are created when the run begins.
        identity: the run's identity, as plain JSON values.
        overwrite: start over if there are files of another run.

    Raises:
        UsageError: the directory holds something else, or another run and `overwrite` is not set.
        QkeditError: it cannot be read or written.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.directory = directory
        self._identity = dict(identity)
        self._opened = ExitStack()
        self._handles: dict[str, BinaryIO] = {}
        self._observed: dict[str, Any] | None = None
        self._replaces = overwrite and self._run_file.exists()
        if self._replaces:
            self._hold(self._open_run_file())
        elif self._run_file.exists():
            self._take_up()
        else:
            self._refuse_other_content()

    def __enter__(self) -> Self:
        """Return this object; the lock was taken when it was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the files and let other runs in."""
        self._opened.close()

    @property
    def observed(self) -> Mapping[str, Any] | None:
        """The facts recorded at the beginning of the run; None for a run that has not begun."""
        return self._observed

    def begin(self, observed: Mapping[str, Any]) -> None:
        """Record the facts that are known once the model is ready, or compare them with the record.

        A run that is to be overwritten is kept until now, since earlier steps can fail.

        Raises:
            UsageError: the run began with other facts.
        """
        if self._observed is not None:
            self._refuse_differences(self._observed, observed)
            return
        if self._replaces:
            self._clear()
        with explained("make the directory", self.directory):
            (self.directory / ANSWERS).mkdir(parents=True, exist_ok=True)
        document = {"schema": SCHEMA, "identity": self._identity, "observed": dict(observed)}
        with explained("write the file", self._run_file):
            try:
                descriptor = os.open(self._run_file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                raise self._busy() from None
            self._hold(descriptor)
            try:
                os.write(descriptor, json_text(document, indent=2).encode())
            except OSError:
                self._run_file.unlink()
                raise
        self._observed = dict(observed)

    def answers(self, part: str) -> dict[str, Answer]:
        """Return the answers so far, by id.

        Raises:
            QkeditError: the file cannot be read, or a line in its middle is broken.
        """
        file = self._answers_file(part)
        if self._replaces or not file.exists():
            return {}
        with explained("read the answers", file):
            content = file.read_bytes()
        *lines, torn = content.split(b"\n")
        if torn:
            with explained("cut off an unfinished line", file):
                os.truncate(file, len(content) - len(torn))
        found = {}
        for number, line in enumerate(lines, start=1):
            answer = _parsed(line, file, number)
            found[answer.id] = answer
        return found

    def append(self, part: str, question: Question, reply: Reply) -> Answer:
        """Write one answer immediately, so that a kill does not lose it, and return it as `answers` would."""
        row: dict[str, Any] = {
            "id": question.id,
            "image": question.image,
            "question": question.prompt,
            "answer": reply.text,
        }
        if reply.finish_reason != STOP:
            row[FINISH_REASON] = reply.finish_reason
        if reply.seconds is not None:
            row[SECONDS] = round(reply.seconds, 6)
        file, line = self._answers_file(part), json_text(row).encode()
        with explained("write the answer", file):
            if part not in self._handles:
                # Without a buffer, a line is one system call, which a kill does not split.
                self._handles[part] = self._opened.enter_context(file.open("ab", buffering=0))
            if self._handles[part].write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _answer(row)

    def write_result(self, document: Mapping[str, Any]) -> Path:
        """Write the result in one step, replacing an earlier one."""
        file = self.directory / RESULT_FILE
        write_whole(file, json_text(document, indent=2).encode())
        return file

    @property
    def _run_file(self) -> Path:
        return self.directory / RUN_FILE

    def _answers_file(self, part: str) -> Path:
        return self.directory / ANSWERS / f"{part}.jsonl"

    def _refuse_other_content(self) -> None:
        if os.path.lexists(self.directory) and not self.directory.is_dir():
            raise UsageError(f"{self.directory} is not a directory", where="--out", remedy="name a new one")
        if self.directory.is_dir() and any(self.directory.iterdir()):
            raise UsageError(
                "holds files, but no run", where=str(self.directory), remedy="name a new or empty directory with --out"
            )
        place = self.directory.absolute()
        existing = next(path for path in (place, *place.parents) if os.path.lexists(path))
        if not existing.is_dir():
            raise UsageError(f"{existing} is not a directory", where="--out", remedy="name another place")
        check_writable(existing, self._run_file)

    def _clear(self) -> None:
        """Remove the files of a run, and nothing else; its record goes last, so that a kill leaves a known run."""
        with explained("remove an earlier run", self.directory):
            (self.directory / RESULT_FILE).unlink(missing_ok=True)
            for part in self._recorded_parts() | set(self._identity.get("questions", ())):
                self._answers_file(part).unlink(missing_ok=True)
            self._run_file.unlink()
        self._replaces = False

    def _recorded_parts(self) -> set[str]:
        """Return the parts of the run on disk, by its record; empty if the record is damaged or names other places."""
        try:
            names = set(json.loads(self._run_file.read_bytes())["identity"]["questions"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return set()
        return {
            name for name in names if isinstance(name, str) and name == os.path.basename(name) and "\0" not in name
        }

    def _take_up(self) -> None:
        descriptor = self._open_run_file()
        self._hold(descriptor)
        try:
            with explained("read the file", self._run_file):
                content = os.read(descriptor, os.fstat(descriptor).st_size)
            document = json.loads(content)
            schema, identity, observed = (document[key] for key in ("schema", "identity", "observed"))
            if schema != SCHEMA or not isinstance(identity, dict) or not isinstance(observed, dict):
                raise ValueError("another form")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._opened.close()
            raise UsageError(
                "is not a record of a run",
                where=str(self._run_file),
                remedy="name another --out, or start over with --overwrite",
            ) from error
        self._refuse_differences(identity, self._identity)
        self._observed = observed

    def _refuse_differences(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        found = differences(before, now)
        if not found:
            return
        self._opened.close()
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise UsageError(
            f"holds another run: {', '.join(found[:_NAMED])}{more}",
            where=str(self.directory),
            remedy="name another --out, or start over with --overwrite",
        )

    def _open_run_file(self) -> int:
        with explained("open the file", self._run_file):
            return os.open(self._run_file, os.O_RDWR)

    def _hold(self, descriptor: int) -> None:
        """Lock the directory as long as the descriptor is open. Raises QkeditError if another run holds the lock."""
        self._opened.callback(os.close, descriptor)
        try:
            with explained("lock the run against others", self._run_file):
                locked = try_lock(descriptor)
            if not locked:
                raise self._busy()
        except QkeditError:
            self._opened.close()
            raise

    def _busy(self) -> QkeditError:
        return QkeditError(
            "another run uses this directory", where=str(self.directory), remedy="wait for it or name another --out"
        )


def recorded_identity(directory: Path) -> dict[str, Any]:
    """Return the identity of the run in a directory; empty without a run or with a broken record."""
    try:
        identity = json.loads((directory / RUN_FILE).read_bytes())["identity"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}  # the run that resumes it reports what is wrong
    return identity if isinstance(identity, dict) else {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two records, such as `limit was 10 and is 20`."""
    flat_before, flat_now = dict(_leaves(before)), dict(_leaves(now))
    names = dict.fromkeys((*flat_before, *flat_now))
    return [
        f"{name} was {_short(flat_before.get(name))} and is {_short(flat_now.get(name))}"
        for name in names
        if flat_before.get(name) != flat_now.get(name)
    ]


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}.{key}" if path else str(key))]
    return [(path, value)]


def _short(value: Any) -> str:
    text = json.dumps(value)
    is_hash = isinstance(value, str) and len(value) == 64
    return f"{value[:12]}…" if is_hash else text if len(text) <= 60 else f"{text[:59]}…"


def _parsed(line: bytes, file: Path, number: int) -> Answer:
    try:
        row = json.loads(line)
        if not all(isinstance(row[key], str) for key in ("id", "answer")):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise QkeditError(
            "is not an answer of a run",
            where=f"{file}, line {number}",
            remedy="remove the line, so that the question is asked again",
        ) from None
    return replace(_answer(row), line=number, file=str(file))


def _answer(row: Mapping[str, Any]) -> Answer:
    # The run's questions are known, so the copy in the file is not checked again.
    fields = {FINISH_REASON: row[FINISH_REASON]} if FINISH_REASON in row else {}
    return Answer(row["id"], row["answer"], fields=fields)
