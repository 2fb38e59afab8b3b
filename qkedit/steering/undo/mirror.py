"""Transfer a directory's files to another one: all of them by hard links, or some of them as copies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Set
from pathlib import Path

from qkedit.checkpoint.io.copying import LinkMode, copy_file
from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.errors import CheckpointError

OnBytes = Callable[[int], None]


def link_all(source: Path, destination: Path, but: Set[str], on_bytes: OnBytes) -> None:
    """Hard-link every file and link below a directory into another one, on the same file system.
    Folders, also empty and hidden ones, keep their permissions. A file that cannot be hard-linked is copied.

    Args:
        source: the directory to link from.
        destination: an empty directory.
        but: the paths to leave out, relative to `source`.
        on_bytes: called with the number of bytes copied.

    Raises:
        QkeditError: the system refuses.
    """
    folders: list[Path] = []
    for folder, name in _walk(source):
        place = destination / folder.relative_to(source)
        if not name:
            with explained("create a directory", place):
                place.mkdir(exist_ok=True)
            folders.append(folder)
        elif (folder / name).relative_to(source).as_posix() not in but:
            _second_name(folder / name, place / name, on_bytes)
    for folder in reversed(folders):
        with explained("set the permissions", destination / folder.relative_to(source)):
            shutil.copymode(folder, destination / folder.relative_to(source))


def copy_some(files: LocalFiles, names: Iterable[str], destination: Path, on_bytes: OnBytes) -> None:
    """Copy files of an output into an empty directory; links that `steer` wrote for weights are followed.

    Raises:
        CheckpointError: another file is a link that leads out of the directory.
        QkeditError: the system refuses.
    """
    for name in names:
        if files.leads_out(name) is not None and not name.endswith(".safetensors"):
            raise CheckpointError(
                f"is a link to {files.local_path(name)}",
                where=str(files.directory / name),
                remedy="replace the link with the file itself",
            )
        with explained("create a directory", (destination / name).parent):
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(files.local_path(name), destination / name, files.size(name), LinkMode.AUTO, on_bytes)


def names_below(directory: Path) -> set[str]:
    """Return the name of every file and link below a directory. Raises QkeditError if the system refuses."""
    return {(folder / name).relative_to(directory).as_posix() for folder, name in _walk(directory) if name}


def _walk(directory: Path) -> Iterable[tuple[Path, str]]:
    """Yield every folder with an empty name, then the folder with each of its files and links."""

    def refuse(error: OSError) -> None:
        raise error

    with explained("look into the directory", directory):
        for folder, directories, names in os.walk(directory, onerror=refuse):
            yield Path(folder), ""
            links = [name for name in directories if os.path.islink(os.path.join(folder, name))]
            yield from ((Path(folder), name) for name in (*names, *links))


def _second_name(path: Path, place: Path, on_bytes: OnBytes) -> None:
    try:
        os.link(path, place, follow_symlinks=False)
    except OSError:  # another owner's file, another file system below the directory, or one without hard links
        if path.is_symlink():
            with explained("make a link", place):
                place.symlink_to(path.readlink())
            return
        with explained("look at", path):
            size = path.stat().st_size
        copy_file(path, place, size, LinkMode.AUTO, on_bytes)
