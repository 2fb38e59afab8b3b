"""The names of an output's files: those of the base, except where the output's manifest and card need them."""

from __future__ import annotations

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import MANIFEST_FILE

CARD_FILE = "README.md"
BASE_CARD_FILE = "README.base.md"


def name_in_output(checkpoint: Checkpoint, file: str) -> str | None:
    """Return the name that a file of the base has in the output; None for files that are written anew.

    The base's card is renamed to make room for the output's card. If the base was edited before, the card of that
    edit is left out (the manifest's history has its content), so that `README.base.md` stays the original model's.
    """
    if file == MANIFEST_FILE or (file == CARD_FILE and MANIFEST_FILE in checkpoint.side_files):
        return None
    if file != CARD_FILE:
        return file
    name = BASE_CARD_FILE
    while name in checkpoint.side_files:
        name = name.replace(".md", ".base.md")
    return name


def files_giving_way(checkpoint: Checkpoint) -> list[str]:
    """Return the files of a base whose names are those of the output's manifest and card."""
    return [file for file in (CARD_FILE, MANIFEST_FILE) if file in checkpoint.side_files]


def files_of_output(checkpoint: Checkpoint) -> list[str]:
    """Return the name of every file of the full directory that is made from a base, in sorted order."""
    copied = (name_in_output(checkpoint, file) for file in checkpoint.kept_files)
    return sorted({MANIFEST_FILE, CARD_FILE, *(name for name in copied if name is not None)})
