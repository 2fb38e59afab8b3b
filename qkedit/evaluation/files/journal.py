"""A journal: the results of a long experiment as JSON lines, from which it is resumed after a kill.

The first line identifies the experiment, and each following line is one result. Only one process writes, and every
line is on the disk before the next; a partial last line after a kill is removed, so that its work is done again. A
journal of another experiment is refused, never mixed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from qkedit.checkpoint.io.lock import try_lock
from qkedit.errors import QkeditError, UsageError
from qkedit.strict_text import json_text


class Journal:
    """A journal on disk; a context manager that locks the file.

    Args:
        path: the file, created if missing.
        kind: the kind of the experiment, which the first line names.
        schema: the version of its lines.
        settings: the settings of the experiment, as JSON values.
        present_name: returns the present name of a setting, for files that hold an old one.

    Raises:
        UsageError: the file is not a journal of this kind, or that of another experiment.
        QkeditError: another run is writing to it, it is damaged, or it cannot be written.
    """

    # The remedy for a line that cannot be read.
    AGAIN = "remove the line, and its work will be done again"

    def __init__(
        self,
        path: Path,
        kind: str,
        schema: int,
        settings: Mapping[str, Any],
        present_name: Callable[[str], str] = lambda name: name,
    ) -> None:
        self._path = Path(os.path.expanduser(path))
        self._kind, self._schema, self._present_name = kind, schema, present_name
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))  # tuples are lists in a file
        self._file: BinaryIO | None = None

    def take(self, record: dict[str, Any]) -> None:
        """Take over one result of an earlier run. Raises KeyError, TypeError, AttributeError or ValueError."""
        raise NotImplementedError

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

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a line and flush it to the disk. Raises QkeditError if it cannot be written."""
        assert self._file is not None
        try:
            self._file.write(_line(record))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        header = {"schema": self._schema, "kind": self._kind, "settings": self._settings}
        if not whole and _line(header).startswith(content):
            self._file.truncate(0)
            self.append(header)
            return
        lines = whole.splitlines()
        # A file that is not a journal of this kind is not changed.
        self._check_header(_parsed(lines[0]) if lines else {})
        self._file.truncate(len(whole))
        for number, line in enumerate(lines[1:], start=2):
            try:
                self.take(_parsed(line))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise QkeditError(
                    "is not a result of an experiment", where=f"{self._path}, line {number}", remedy=self.AGAIN
                ) from error

    def _check_header(self, header: dict[str, Any]) -> None:
        if header.get("kind") != self._kind or not isinstance(header.get("settings"), dict):
            raise UsageError("is not a file of an experiment", where=str(self._path), remedy="name another with --out")
        if header.get("schema") != self._schema:
            raise UsageError(
                f"was written with schema {header.get('schema')}",
                where=str(self._path),
                remedy=f"this qkedit reads {self._schema}; name another with --out",
            )
        found = {self._present_name(name): value for name, value in header["settings"].items()}
        different = [name for name in {**self._settings, **found} if found.get(name) != self._settings.get(name)]
        if different:
            raise UsageError(
                f"holds another experiment, with other {', '.join(different)}",
                where=str(self._path),
                remedy="name another file with --out, or repeat the settings it was begun with",
            )

    def _unwritable(self, error: OSError) -> QkeditError:
        return QkeditError(
            f"cannot be written: {error.strerror}", where=str(self._path), remedy="free space or name another place"
        )

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(record: Mapping[str, Any]) -> bytes:
    return json_text(record, ascii_only=False).encode()


def _parsed(line: bytes) -> dict[str, Any]:
    """Return the object in a line; empty if it is not an object."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
