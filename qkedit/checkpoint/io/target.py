"""Check where an output directory may be written, and what it may replace."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.ownership import Replaced, files_by_owner
from qkedit.errors import UsageError

_CHOOSE_ANOTHER = "choose another --out"


def locate(target: Path) -> Path:
    """Return the absolute path of `target`; its last components need not exist, and only the last may be a link.

    Raises:
        UsageError: the path leads through a file or a broken link, or is not accessible.
    """
    if "\0" in str(target):
        raise UsageError("a path cannot contain a null byte", where=repr(str(target)), remedy=_CHOOSE_ANOTHER)
    target = Path(os.path.expanduser(target))
    # "/", "." and ".." are existing directories with another name.
    names_itself = target.name not in ("", "..")
    parent = target.parent if names_itself else target
    existing = next(place for place in (parent, *parent.parents) if os.path.lexists(place) or place == place.parent)
    missing = parent.relative_to(existing)
    try:
        real = Path(os.path.realpath(existing, strict=True))
    except FileNotFoundError as error:
        raise UsageError(
            f"the directory {existing} does not exist",
            where=str(target),
            remedy=f"create it first or {_CHOOSE_ANOTHER}",
        ) from error
    except OSError as error:
        raise UsageError(f"{existing} is not accessible", where=str(target), remedy=_CHOOSE_ANOTHER) from error
    with explained("look at", real):
        is_directory = real.is_dir()
    if not is_directory:
        raise UsageError(f"{existing} is not a directory", where=str(target), remedy=_CHOOSE_ANOTHER)
    if ".." in missing.parts:
        raise UsageError("leads up from a directory that does not exist", where=str(target), remedy=_CHOOSE_ANOTHER)
    return real / missing / target.name if names_itself else real / missing


@contextmanager
def made_parents(target: Path) -> Iterator[list[Path]]:
    """Create the missing directories above `target`, and at the end remove those that are still in the list.

    Yields:
        The created directories, outermost first; a block that wants to keep them clears the list.

    Raises:
        QkeditError: the system refuses.
    """
    made: list[Path] = []
    try:
        with explained("check the directories above", target):
            missing = [parent for parent in target.parents if not parent.is_dir()]
        for directory in reversed(missing):
            with explained("create a directory", directory), suppress(FileExistsError):
                directory.mkdir()
                made.append(directory)
        yield made
    finally:
        with suppress(OSError):  # another program uses them by now
            for directory in reversed(made):
                directory.rmdir()


def refuse_misplaced(target: Path, sources: Sequence[Path]) -> None:
    """Refuse a target where no directory may be written, whatever it holds; `target` comes from `locate`.

    Raises:
        UsageError: a symbolic link, a file, a mount point, the working directory, a source …
    """
    where = str(target)
    with explained("look at", target):
        is_link, exists, is_directory = target.is_symlink(), target.exists(), target.is_dir()
    if is_link:
        raise UsageError("is a symbolic link", where=where, remedy="name the directory itself as --out")
    if exists:
        if not is_directory:
            raise UsageError("is not a directory", where=where, remedy=_CHOOSE_ANOTHER)
        if os.path.ismount(target):
            raise UsageError("is a mount point, which cannot be replaced", where=where, remedy=_CHOOSE_ANOTHER)
        for name, directory in _indispensable():
            if directory.is_relative_to(target):
                raise UsageError(f"is or contains the {name} directory", where=where, remedy=_CHOOSE_ANOTHER)
    for source in sources:
        real = Path(os.path.realpath(source))
        if real.is_relative_to(target) or target.is_relative_to(real):
            raise UsageError(f"is, contains or is inside the input {source}", where=where, remedy=_CHOOSE_ANOTHER)


def refuse_existing(target: Path, *, overwrite: bool, force: bool = False) -> Replaced:
    """Refuse an existing target unless it is empty, or may be overwritten and holds only an earlier output.

    Args:
        target: a path from `locate`.
        overwrite: whether files of an earlier run may be replaced.
        force: whether any files may be replaced.

    Returns:
        The files that a run will replace.

    Raises:
        UsageError: the target holds files that must be kept.
        QkeditError: the target cannot be read.
    """
    with explained("read the directory", target):
        if not target.exists():
            return Replaced()
        is_empty = not os.listdir(target)
    if not (is_empty or overwrite or force):
        raise UsageError(
            "already exists", where=str(target), remedy=f"{_CHOOSE_ANOTHER} or replace it with --overwrite"
        )
    found = files_by_owner(target)
    if found.strangers and not force:
        raise UsageError(
            f"holds {found.strangers}, so it is not replaced",
            where=str(target),
            remedy=f"move them, {_CHOOSE_ANOTHER}, or also remove them with --force",
        )
    return found


def _indispensable() -> Iterator[tuple[str, Path]]:
    """Yield directories that an output must neither replace nor contain."""
    yield "home", Path(os.path.realpath(os.path.expanduser("~")))
    with suppress(FileNotFoundError):  # a removed working directory does not matter
        yield "working", Path(os.path.realpath(os.path.curdir))
