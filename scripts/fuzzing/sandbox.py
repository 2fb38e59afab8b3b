"""A directory for one input, with a check of the files that changed in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fuzzing.target import Finding


class Sandbox:
    """A new directory for each input, with the files that it uses.

    Args:
        directory: its path; an existing directory is removed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self._before: dict[str, bytes] = {}

    def remember(self) -> None:
        """Store the present content."""
        self._before = contents(self.directory)

    def check(self, *targets: Path) -> None:
        """Raise Finding if anything but the targets was changed, added or removed since `remember`."""
        allowed = [target.relative_to(self.directory).as_posix() for target in targets]
        now = contents(self.directory)
        for name in sorted({*self._before, *now}):
            if any(name == target or name.startswith(f"{target}/") for target in allowed):
                continue
            if self._before.get(name) != now.get(name):
                what = "went" if name not in now else "came" if name not in self._before else "changed"
                raise Finding("outside", f"{name!a} {what}, which is not the target")


def contents(directory: Path) -> dict[str, bytes]:
    """Return the content of every file below a directory, the target of every link, and nothing for directories."""
    found: dict[str, bytes] = {}
    for parent, directories, files in os.walk(directory):
        for name in directories + files:
            path = Path(parent, name)
            relative = path.relative_to(directory).as_posix()
            if path.is_symlink():
                found[relative] = os.fsencode(os.readlink(path))
            elif path.is_file():
                found[relative] = path.read_bytes()
            elif path.is_dir():
                found[f"{relative}/"] = b""
    return found
