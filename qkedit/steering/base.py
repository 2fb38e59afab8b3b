"""Find the model that a manifest names as its base."""

from __future__ import annotations

from typing import Any

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.resolve import resolve


def open_base(manifest: dict[str, Any], base: str, revision: str | None) -> Checkpoint:
    """Open the base of an edit, at the recorded revision unless another one is asked for.

    Args:
        manifest: of the edit.
        base: the model the user names: a directory, a hub id, an alias or `demo`.
        revision: what the user says; None for the recorded one, if `base` is the recorded hub model.

    Raises:
        QkeditError: there is no such model, or it is no sound checkpoint.
    """
    files, recorded = resolve(base, revision), manifest["base"]
    moved_on = files.revision is not None and files.revision != recorded["revision"]
    if revision is None and moved_on and files.name == recorded["model"]:
        files = resolve(recorded["model"], recorded["revision"])
    return open_checkpoint(files)
