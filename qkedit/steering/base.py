"""Find the model that an edit was made from, by its manifest and the user's arguments.

A manifest records a hub model with its commit, or the demo. It records only the name of a directory, since no output
may depend on paths; so the user has to name such a base.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.contents import MANIFEST_FILE
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.checkpoint.presets import DEMOS, preset_by_alias
from qkedit.checkpoint.resolve import resolve
from qkedit.errors import UsageError


@dataclass(frozen=True)
class Base:
    """The model that another one was made from."""

    model: str  # a directory, a hub id, an alias or `demo`
    revision: str | None  # branch, tag or commit on the hub; None for the default branch or no hub

    def open(self) -> Checkpoint:
        """Open the model. Raises QkeditError if there is no such model, or it is not a sound checkpoint."""
        return open_checkpoint(resolve(self.model, self.revision))


def recorded_base(manifest: Manifest) -> Base | None:
    """Return the base that a manifest names; None for a directory, which the user has to name."""
    model, revision = manifest.base.model, manifest.base.revision or None
    return Base(model, revision) if revision is not None or model in DEMOS else None


def named_base(manifest: Manifest | None, base: str, revision: str | None) -> Base:
    """Return the base that the user names, at the recorded revision unless another one is asked for.

    Args:
        manifest: the edit's manifest; None for a model without one.
        base: a directory, a hub id, an alias or `demo`.
        revision: the revision that the user names; None means the recorded one, if `base` is the recorded hub model.
    """
    recorded = recorded_base(manifest) if manifest is not None else None
    if revision is None and recorded is not None and _hub_id(base) == recorded.model:
        revision = recorded.revision
    return Base(base, revision)


def chosen_base(manifest: Manifest | None, base: str | None, revision: str | None) -> Base | None:
    """Return the base that the user names, else the recorded one; None where neither says which model it is.

    Args:
        manifest: the edit's manifest; None for a model without one.
        base: the model that the user names, if any.
        revision: the revision that the user names; None means the recorded one, if `base` is the recorded hub model.
    """
    if base is None:
        recorded = recorded_base(manifest) if manifest is not None else None
        return None if recorded is None else named_base(manifest, recorded.model, revision)
    return named_base(manifest, base, revision)


def needed_base(manifest: Manifest | None, base: str | None, revision: str | None, name: str = "the model") -> Base:
    """Return the base as `chosen_base` does. Raises UsageError, about the edit of this name, where there is none."""
    found = chosen_base(manifest, base, revision)
    if found is None:
        raise not_recorded(name)
    return found


def not_recorded(name: str = "the model") -> UsageError:
    """Return the error about an edit of this name whose manifest does not say from which model it was made."""
    return UsageError(
        f"{name} was made from a directory that is not recorded",
        where="--base",
        remedy="name the model it was made from",
    )


def _hub_id(model: str) -> str | None:
    """Return the hub id that `resolve` finds for a name; None for a directory, which takes precedence."""
    preset = preset_by_alias(model)
    if preset is not None:
        return preset.hub_id
    return None if os.path.isdir(os.path.expanduser(model)) else model


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
    from qkedit.steering.manifest import read_manifest

    manifest = read_manifest(Path(model).expanduser()) if is_edited(model) else None
    return chosen_base(manifest, base, split_revision(model, revision)[1])


def split_revision(model: str, revision: str | None) -> tuple[str | None, str | None]:
    """Return the revisions of a model and of its base: a directory has none, so `--revision` is then the base's."""
    return (None, revision) if Path(model).expanduser().is_dir() else (revision, None)


def model_before(name: str, base: str | None, revision: str | None, *, alone: bool) -> tuple[str, str | None]:
    """Return the model to compare another one with, and its revision.

    Args:
        name: the model, edited or not.
        base: the model that the user names, if any.
        revision: the revision that the user names, as for `base_for`.
        alone: whether a model without a base may be compared with itself, since plug-ins or edits are added to it.

    Raises:
        UsageError: there is none.
        CheckpointError: the model's manifest cannot be read.
    """
    found = base_for(name, base, revision)
    if found is not None:
        return found.model, found.revision
    if is_edited(name):
        raise not_recorded()
    if not alone:
        raise UsageError(
            "there is nothing to compare with", where="--base", remedy="name a base, an --edit or a --plugin"
        )
    return name, revision
