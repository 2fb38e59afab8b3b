"""Which files of a directory qkedit wrote, and which it did not and so never removes unasked.

A manifest lists every file of the output that it stands in. A delta consists of its tensors and its manifest, whose
list is that of the full directory made from it. Plug-ins are attached by users, so their file is never ours.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkedit.checkpoint.contents import DELTA_FILE, MANIFEST_FILE, PLUGINS_FILE, is_litter
from qkedit.checkpoint.io.file_errors import explained

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Replaced:
    """The files that an output takes the place of; names are relative to the directory, in sorted order."""

    ours: tuple[str, ...] = ()  # written by an earlier run
    others: tuple[str, ...] = ()  # not written by qkedit

    def as_dict(self) -> dict[str, list[str]]:
        """Return the fields as `--dry-run --json` prints them."""
        return {"written_by_qkedit": list(self.ours), "others": list(self.others)}


def files_standing_in(directory: Path) -> Replaced:
    """Return what a directory holds: files and links, told apart by who wrote them; litter of desktops counts not.

    Raises:
        QkeditError: the directory cannot be looked into.
    """
    with explained("look into the directory", directory):
        found = sorted(name for name in _entries(directory) if not is_litter(name))
    known = _written_by_qkedit(directory)
    return Replaced(
        ours=tuple(name for name in found if name in known), others=tuple(name for name in found if name not in known)
    )


def shown(names: Iterable[str]) -> str:
    """Return some file names for a sentence, the content of a sub-directory as one: `notes.txt, checkpoint-500/`."""
    tops = list(dict.fromkeys(name.partition("/")[0] + ("/" if "/" in name else "") for name in names))
    first = tops[:_NAMES_SHOWN]
    more = f" and {len(tops) - len(first)} more" if len(tops) > len(first) else ""
    return ", ".join(first) + more


def _entries(directory: Path) -> Iterator[str]:
    """The name of everything below a directory that is not a directory itself. Raises OSError."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, directories, files in os.walk(directory, onerror=refuse):
        links = [name for name in directories if os.path.islink(os.path.join(folder, name))]
        yield from (Path(folder, name).relative_to(directory).as_posix() for name in (*files, *links))


def _written_by_qkedit(directory: Path) -> frozenset[str]:
    manifest = _manifest(directory / MANIFEST_FILE)
    if manifest is None:
        return frozenset()
    if os.path.lexists(directory / DELTA_FILE):
        return frozenset({MANIFEST_FILE, DELTA_FILE})
    listed = manifest.get("files")
    names = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    return frozenset(names - {PLUGINS_FILE} | {MANIFEST_FILE})


def _manifest(path: Path) -> dict[str, Any] | None:
    """The manifest at `path`; None where there is none that qkedit wrote."""
    try:
        # Never opened unless it is a file: a named pipe would hold the run for ever.
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    tool = manifest.get("tool") if isinstance(manifest, dict) else None
    return manifest if isinstance(tool, dict) and tool.get("name") == "qkedit" else None
