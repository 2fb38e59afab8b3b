"""What a model is compared with: the base that `--base` names, or the one that an edited model's manifest does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.checkpoint.contents import MANIFEST_FILE

if TYPE_CHECKING:
    from qkedit.steering.base import Base


def is_edited(model: str) -> bool:
    """Whether a model is a directory that qkedit wrote."""
    return (Path(model).expanduser() / MANIFEST_FILE).is_file()


def base_for(model: str, base: str | None, revision: str | None) -> Base | None:
    """Return what a model is compared with; None where neither `--base` nor a manifest says which model it is.

    Args:
        model: the model, edited or not.
        base: what `--base` says.
        revision: what `--revision` says.

    Raises:
        CheckpointError: the model's manifest cannot be read.
    """
    from qkedit.steering.base import chosen_base
    from qkedit.steering.manifest import read_manifest

    manifest = read_manifest(Path(model).expanduser()) if is_edited(model) else None
    return chosen_base(manifest, base, split_revision(model, revision)[1])


def split_revision(model: str, revision: str | None) -> tuple[str | None, str | None]:
    """Return what `--revision` says of a model and of its base: a directory has none, so there it is the base's."""
    return (None, revision) if Path(model).expanduser().is_dir() else (revision, None)
