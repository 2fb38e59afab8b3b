"""The model card of an output: what the base says of its licence, what was done, and how to undo it."""

from __future__ import annotations

from statistics import mean
from typing import Any

from qkedit.checkpoint.card_fields import LONGEST_BLOCK, card_fields
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import MANIFEST_FILE
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.errors import counted
from qkedit.selection import describe
from qkedit.steering.outputs.names import BASE_CARD_FILE, CARD_FILE, name_in_output

# What a derived model takes over from its base's card.
INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag", "library_name")


def _original_card(checkpoint: Checkpoint) -> str | None:
    """Under which name the card of the model that was first steered stands in the output; None if it had none."""
    steered_before = MANIFEST_FILE in checkpoint.side_files
    file = BASE_CARD_FILE if steered_before else CARD_FILE
    return name_in_output(checkpoint, file) if file in checkpoint.side_files else None


def make_card(checkpoint: Checkpoint, manifest: Manifest) -> bytes:
    """Return the `README.md` of a steered checkpoint."""
    from huggingface_hub import ModelCardData

    base_fields = _base_fields(checkpoint)
    fields: dict[str, Any] = {name: base_fields[name] for name in INHERITED if _is_text(base_fields.get(name))}
    base_model = _base_model(manifest, base_fields)
    if base_model:
        fields |= {"base_model": base_model, "base_model_relation": "finetune"}
    tags = base_fields.get("tags")
    fields["tags"] = sorted({*(tags if isinstance(tags, list) and _is_text(tags) else []), "qkedit"})
    front_matter = ModelCardData(ignore_metadata_errors=True, **fields).to_yaml()
    return f"---\n{front_matter}\n---\n\n{_body(manifest, checkpoint)}".encode(errors="backslashreplace")


def _base_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """The metadata block of the base's own card; empty where there is none that can be read."""
    if CARD_FILE not in checkpoint.side_files:
        return {}
    files = checkpoint.files
    end = min(files.sizes()[CARD_FILE], LONGEST_BLOCK)
    return card_fields(files.read(CARD_FILE, 0, end).decode("utf-8", errors="replace"))


def _is_text(value: Any) -> bool:
    """Whether a field of a card is what its readers expect: a text or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _base_model(manifest: Manifest, base_fields: dict[str, Any]) -> str | None:
    """The hub id of the base; a steered local directory passes on the one in its own card."""
    if manifest.base.revision:
        return manifest.base.model
    inherited = base_fields.get("base_model")
    return inherited if manifest.history and inherited and isinstance(inherited, str) else None


def _percent(share: float) -> str:
    """A share as it was asked for: neither 0.001 nor 0.999 may be rounded to nothing or all."""
    return f"{100 * share:.6g}%"


def _body(manifest: Manifest, checkpoint: Checkpoint) -> str:
    options, base, heads = manifest.options, manifest.base, manifest.heads
    layers = describe([tensor.layer for tensor in manifest.tensors])
    revision = f" (revision `{base.revision}`)" if base.revision else ""
    energy = options.energy
    amount = f"as many as carry {_percent(energy)} of its energy" if energy else f"{options.k}"
    modes = {
        "none": f"the dominant modes ({amount} per head)",
        "index": f"randomly drawn other modes ({amount} per head; a control, seed {options.seed})",
        "norm": f"a random frame of matched size ({amount} directions per head; a control, seed {options.seed})",
    }[options.control]
    channel = {"full": ""}.get(options.channel, f"the {options.channel} part of ")
    energy_of = (
        "the energy of these products"
        if options.channel == "full"
        else f"the energy of their {options.channel} part was asked to be removed"
    )
    kept = f"down to {_percent(options.retain)} of their size" if options.retain else "completely"
    earlier = (
        f"\nThe base was steered before, {len(manifest.history)} time(s): see `history` in `qkedit.json`.\n"
        if manifest.history
        else ""
    )
    original = _original_card(checkpoint)
    own_card = f" The original card is kept as `{original}`." if original else ""
    edited = f"{counted(len(heads), 'head')} in {counted(len(manifest.tensors), 'tensor')}"
    return f"""# {base.model}, steered

This is `{base.model}`{revision} with edited query projections. No training was done.{own_card}

* **What**: in {channel}the query-key product `W_qᵀ W_k` of each chosen head, {modes}
  are suppressed {kept} (QK Product Steering, arXiv:2606.20419).
* **Where**: layers {layers}, {edited}. Every other tensor and file is that of the base,
  byte for byte.
* **How much**: {mean(head.energy_removed for head in heads):.1%} of {energy_of} on average; the
  query weights of a head moved by {mean(head.relative_change for head in heads):.1%} of their norm on average.
* **Check**: `qkedit.json` names every changed tensor with its SHA-256 before and after;
  `qkedit verify DIRECTORY --base BASE` compares them and everything else.
* **Undo**: the edit removes information and cannot be calculated back; use the base, or copy the tensors named in
  `qkedit.json` from it.
{earlier}
Written by qkedit {manifest.tool.version}.
"""
