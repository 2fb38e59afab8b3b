"""Resolve the user's name for a model to its files.

A name is tried in this order:

1. The embedded models, such as `demo`, and the aliases of `configs/presets/`, in upper or lower case. If the working
   directory contains a directory of the same name, the name is refused as ambiguous; `./NAME` is the directory.
2. An existing directory. It takes precedence over a hub id of the same spelling, as in `from_pretrained`.
3. A hub id, `org/name`. Names that look like paths (`./…`, `/…`, `~/…`, several slashes) are never sent to the hub.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from qkedit.checkpoint.hub.files import HubFiles
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.checkpoint.other_kinds import EDIT_FIRST
from qkedit.checkpoint.presets import DEMOS, HUB_ID, preset_by_alias, similar_aliases
from qkedit.demo import demo_checkpoint
from qkedit.errors import UsageError

PATH_LIKE = re.compile(r"[.~]?[/\\]|\.\.|~|[A-Za-z]:|.*[\\]|.*/.*/|.*/$")


@dataclass(frozen=True)
class Place:
    """The place of a model: a directory or a repository on the hub.

    Attributes:
        directory: its path; None on the hub.
        hub_id: `org/name`; None for a directory.
        demo: the name of the embedded model that it is, if it is one.
    """

    directory: str | None = None
    hub_id: str | None = None
    demo: str | None = None


def place_of(model: str) -> Place:
    """Return the place of a model, without a request to the hub.

    Args:
        model: `demo`, an alias, a directory or a hub id.

    Raises:
        UsageError: the name is unknown, or means both a directory and another model.
    """
    path = os.path.expanduser(model)
    is_directory = os.path.isdir(path)
    demo = model.lower() if model.lower() in DEMOS else None
    preset = preset_by_alias(model)
    if is_directory and (demo or preset):
        raise UsageError(
            "the name means both a known model and a directory here",
            where=model,
            remedy=f"write ./{model} for the directory" + (f", or {preset.hub_id} for the model" if preset else ""),
        )
    if preset:
        return Place(hub_id=preset.hub_id)
    if demo:
        return Place(str(demo_checkpoint(demo)), demo=demo)
    if is_directory:
        return Place(path)
    if HUB_ID.fullmatch(model) and not PATH_LIKE.match(model) and not os.path.exists(path):
        return Place(hub_id=model)
    raise _nothing_of_that_name(model, path)


def resolve(model: str, revision: str | None = None) -> CheckpointFiles:
    """Find the files of a model.

    Args:
        model: `demo`, an alias, a directory or a hub id.
        revision: branch, tag or commit; only for a model on the hub.

    Raises:
        UsageError: the name is unknown, or `revision` is given for a directory.
        CheckpointError: the hub refuses or is unreachable.
    """
    place = place_of(model)
    if place.directory is None:
        return HubFiles.open(str(place.hub_id), revision)
    if revision is not None:
        raise UsageError(
            "only a model on the hub has revisions", where=model, remedy="leave out --revision, or give a hub id"
        )
    if place.demo:
        return LocalFiles(place.directory, name=place.demo, follows_links=True)  # installers may link package files
    files = LocalFiles(place.directory)
    # In a manifest, "demo" means the model that is part of the package.
    return LocalFiles(place.directory, name=f"./{files.name}") if files.name in DEMOS else files


def _nothing_of_that_name(model: str, path: str) -> UsageError:
    if not model.strip():
        return UsageError("the model's name is empty", remedy="give a directory, a hub id, an alias or demo")
    if os.path.isfile(path):
        if path.endswith(".gguf"):
            return UsageError("is a GGUF file", where=model, remedy=EDIT_FIRST)
        return UsageError("is a file", where=model, remedy="give the directory that holds the checkpoint")
    if model.startswith(("http://", "https://")):
        return UsageError("is a URL", where=model, remedy="give the model's hub id, such as org/name")
    if PATH_LIKE.match(model):
        return UsageError("there is no such directory", where=model, remedy="check the path")
    similar = " or ".join(similar_aliases(model))
    return UsageError(
        "there is no directory or alias of this name",
        where=model,
        remedy=f"did you mean {similar}" if similar else "give a directory, a hub id such as org/name, or demo",
    )
