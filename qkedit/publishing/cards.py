"""The model card to push: the output's own card, or a short one for an output of edited tensors only."""

from __future__ import annotations

from typing import Any

from qkedit.checkpoint.card_fields import card_fields, with_fields
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.errors import UsageError, counted
from qkedit.publishing.licences import Licence
from qkedit.selection import describe


def outgoing_card(card: str, licence: Licence, *, is_stated: bool) -> str:
    """Return an output's card for the push, adding the licence if the card has none or the user stated one.

    Args:
        card: the card in the directory.
        licence: the licence to publish under.
        is_stated: whether the user stated the licence.

    Raises:
        UsageError: the card's licence is not the base's, and the user did not state one.
    """
    own = Licence.of(card_fields(card))
    if own.identifiers and set(own.identifiers) == set(licence.identifiers):
        return card
    if own.identifiers and not is_stated:
        raise UsageError(
            f"gives the licence {own}, and the base's licence is {licence}",
            where="README.md",
            remedy="correct the card, or name the licence to publish under with --license",
        )
    return with_fields(card, licence.as_fields())


def delta_card(manifest: Manifest, repository: str, base_model: str | None, licence: Licence) -> str:
    """Return the card of a repository that holds only the edited tensors.

    Args:
        manifest: the manifest of the edit.
        repository: the repository to publish to, for the download command.
        base_model: the hub id of the model that was edited, if it is on the hub.
        licence: the licence to publish under.
    """
    import yaml

    base = manifest.base
    heads = counted(len(manifest.heads), "head")
    revision = f" (revision `{base.revision}`)" if base.revision else ""
    fields: dict[str, Any] = {name: value for name, value in licence.as_fields().items() if value}
    if base_model:
        fields |= {"base_model": base_model, "base_model_relation": "adapter"}
    block = yaml.safe_dump(fields | {"tags": ["qkedit"]}, sort_keys=False)
    return f"""---
{block}---

# {base.model}, steered: the edited tensors

This is an edit of `{base.model}`{revision}, without the model: the query projections of layers
{describe([tensor.layer for tensor in manifest.tensors])} ({heads}) after the edit. `qkedit.json` records the
options of the edit, and the SHA-256 of each tensor before and after. The base and these files make the edited model:

    hf download {repository} --local-dir ./edit
    qkedit apply ./edit --base {base_model or "BASE"} --out ./edited

Written by qkedit {manifest.tool.version}.
"""
