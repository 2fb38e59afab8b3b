"""Resolve the user's name for a model to its files.

A name is tried in this order:

1. `demo` and the aliases of `configs/presets/`, in upper or lower case. If the working directory contains a directory
   of the same name, the name is refused as ambiguous; `./NAME` is the directory.
2. An existing directory. It takes precedence over a hub id of the same spelling, as in `from_pretrained`.
3. A hub id, `org/name`. Names that look like paths (`./…`, `/…`, `~/…`, several slashes) are never sent to the hub.
"""

from __future__ import annotations

import os
import re

from qkedit.checkpoint.hub.files import HubFiles
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.checkpoint.other_kinds import EDIT_FIRST
from qkedit.checkpoint.presets import DEMO, HUB_ID, presets_by_alias, similar_aliases
from qkedit.demo import demo_checkpoint
from qkedit.errors import UsageError

PATH_LIKE = re.compile(r"[.~]?[/\\]|\.\.|~|[A-Za-z]:|.*[\\]|.*/.*/|.*/$")


def resolve(model: str, revision: str | None = None) -> CheckpointFiles:
    """Find the files of a model.

    Args:
        model: `demo`, an alias, a directory or a hub id.
        revision: branch, tag or commit; only for a model on the hub.

    Raises:
        UsageError: the name is unknown, or `revision` is given for a directory.
        CheckpointError: the hub refuses or is unreachable.
    """
    path = os.path.expanduser(model)
    is_directory = os.path.isdir(path)
    is_demo = model.lower() == DEMO
    preset = presets_by_alias().get(model.lower())
    if is_directory and (is_demo or preset):
        raise UsageError(
            "the name means both a known model and a directory here",
            where=model,
            remedy=f"write ./{model} for the directory" + (f", or {preset.hub_id} for the model" if preset else ""),
        )
    if preset:
        return HubFiles.open(preset.hub_id, revision)
    if is_demo or is_directory:
        if revision is not None:
            raise UsageError(
                "only a model on the hub has revisions", where=model, remedy="leave out --revision, or give a hub id"
            )
        if is_demo:
            return LocalFiles(demo_checkpoint(), name=DEMO, follows_links=True)  # installers may link package files
        files = LocalFiles(path)
        # In a manifest, "demo" means the model that is part of the package.
        return LocalFiles(path, name=f"./{DEMO}") if files.name == DEMO else files
    if HUB_ID.fullmatch(model) and not PATH_LIKE.match(model) and not os.path.exists(path):
        return HubFiles.open(model, revision)
    raise _nothing_of_that_name(model, path)


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
