"""Find the model to compare with: the one named by `--base`, or the base in an edited model's manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.checkpoint.contents import MANIFEST_FILE

if TYPE_CHECKING:
    from qkedit.steering.base import Base


def is_edited(model: str) -> bool:
    """Return whether a model is a directory that qkedit wrote."""
    return (Path(model).expanduser() / MANIFEST_FILE).is_file()


def base_for(model: str, base: str | None, revision: str | None) -> Base | None:
    """Return the model to compare with; None if neither `--base` nor a manifest names one.

    Args:
        model: the model, edited or not.
        base: the value of `--base`.
        revision: the value of `--revision`.

    Raises:
        CheckpointError: the model's manifest cannot be read.
    """
    from qkedit.steering.base import chosen_base
    from qkedit.steering.manifest import read_manifest

    manifest = read_manifest(Path(model).expanduser()) if is_edited(model) else None
    return chosen_base(manifest, base, split_revision(model, revision)[1])


def split_revision(model: str, revision: str | None) -> tuple[str | None, str | None]:
    """Return the revisions of a model and of its base: a directory has none, so `--revision` is then the base's."""
    return (None, revision) if Path(model).expanduser().is_dir() else (revision, None)
