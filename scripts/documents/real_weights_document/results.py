"""The results on disk, one line per arm, from which a killed run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qkedit.errors import UsageError
from qkedit.evaluation.files.records import MeasuredItem
from qkedit.laboratory.arms import Arm


class Results:
    """The measured items of each arm.

    Args:
        path: the file, created if missing.
        identity: what must be equal for results to be comparable: the model and the texts.

    Raises:
        UsageError: the file holds the results of another model or other texts.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self._path = path
        self._items: dict[str, list[MeasuredItem]] = {}
        self.facts: dict[str, Mapping[str, float]] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a line that a kill cut off
            os.truncate(path, len(whole))
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            self._append(dict(identity))
        elif lines[0] != dict(identity):
            raise UsageError("holds results of another model or other texts", where=str(path), remedy="remove it")
        for line in lines[1:]:
            self._keep(line)

    def of(self, arm: Arm) -> list[MeasuredItem] | None:
        """Return the items of an arm; None if it was not measured."""
        return self._items.get(_key(arm))

    def facts_of(self, arm: Arm) -> Mapping[str, float]:
        """Return the seconds an arm took and the share of energy that its edit removes."""
        return self.facts[_key(arm)]

    def add(self, arm: Arm, items: Sequence[MeasuredItem], facts: Mapping[str, float]) -> None:
        """Append the items of an arm."""
        rows = [{"id": item.id, "group": item.group, "sums": item.sums} for item in items]
        line = {"arm": arm.name, "key": _key(arm), "facts": dict(facts), "items": rows}
        self._append(line)
        self._keep(json.loads(json.dumps(line)))

    def _keep(self, line: Mapping[str, Any]) -> None:
        self.facts[line["key"]] = line["facts"]
        self._items[line["key"]] = [
            MeasuredItem(row["id"], {name: tuple(sums) for name, sums in row["sums"].items()}, group=row["group"])
            for row in line["items"]
        ]

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _key(arm: Arm) -> str:
    """Return the edit as text: an arm may be renamed."""
    return json.dumps(arm.as_dict()["steer"], sort_keys=True)
