"""Write the model card of an output: the base's licence fields, a description of the edit, and how to undo it."""

from __future__ import annotations

from statistics import mean
from typing import Any

from qkedit.checkpoint.card_fields import LONGEST_BLOCK, card_fields
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import MANIFEST_FILE, ORIGINALS_FILE
from qkedit.checkpoint.manifest_file import Derivation, Manifest, RecordedOptions
from qkedit.errors import counted
from qkedit.selection import describe
from qkedit.steering.adapters.peft_files import vllm_rank
from qkedit.steering.base import recorded_base
from qkedit.steering.outputs.names import BASE_CARD_FILE, CARD_FILE, name_in_output

# The fields that a derived model takes over from its base's card.
INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag", "library_name")


def _original_card(checkpoint: Checkpoint) -> str | None:
    """Return the output's file name of the card of the model that was first steered; None if it had none."""
    steered_before = MANIFEST_FILE in checkpoint.side_files
    file = BASE_CARD_FILE if steered_before else CARD_FILE
    return name_in_output(checkpoint, file) if file in checkpoint.side_files else None


def make_card(checkpoint: Checkpoint, manifest: Manifest) -> bytes:
    """Return the `README.md` of a steered checkpoint."""
    return _front_matter(checkpoint, manifest, "finetune") + _encoded(_body(manifest, checkpoint))


def make_adapter_card(checkpoint: Checkpoint, manifest: Manifest) -> bytes:
    """Return the `README.md` of an adapter; `checkpoint` is its base."""
    fields = {"library_name": "peft"}
    return _front_matter(checkpoint, manifest, "adapter", fields, "lora") + _encoded(_adapter_body(manifest))


def _front_matter(
    checkpoint: Checkpoint, manifest: Manifest, relation: str, own: dict[str, str] | None = None, *own_tags: str
) -> bytes:
    """Return the metadata block of a card: the base's fields, such as its licence, and `own` fields and tags."""
    from huggingface_hub import ModelCardData

    base_fields = _base_fields(checkpoint)
    fields: dict[str, Any] = {name: base_fields[name] for name in INHERITED if _is_text(base_fields.get(name))}
    base_model = _base_model(manifest, base_fields)
    if base_model:
        fields |= {"base_model": base_model, "base_model_relation": relation}
    tags = base_fields.get("tags")
    fields["tags"] = sorted({*(tags if isinstance(tags, list) and _is_text(tags) else []), *own_tags, "qkedit"})
    block = ModelCardData(ignore_metadata_errors=True, **(fields | (own or {}))).to_yaml()
    return _encoded(f"---\n{block}\n---\n\n")


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _base_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the metadata block of the base's own card; empty if no block can be read."""
    if CARD_FILE not in checkpoint.side_files:
        return {}
    files = checkpoint.files
    end = min(files.sizes()[CARD_FILE], LONGEST_BLOCK)
    return card_fields(files.read(CARD_FILE, 0, end).decode("utf-8", errors="replace"))


def _is_text(value: Any) -> bool:
    """Return whether a field of a card has the type that its readers expect: a text or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _base_model(manifest: Manifest, base_fields: dict[str, Any]) -> str | None:
    """Return the hub id of the base; a steered local directory passes on the one in its own card."""
    if manifest.base.revision:
        return manifest.base.model
    inherited = base_fields.get("base_model")
    return inherited if manifest.history and inherited and isinstance(inherited, str) else None


def _percent(share: float) -> str:
    """Return a share as the user gave it: 0.001 must not be rounded to nothing, nor 0.999 to all."""
    return f"{100 * share:.6g}%"


def _what(manifest: Manifest) -> str:
    """Return the description of the edit, as the first point of a card's list."""
    if manifest.options is not None:
        return f"* **What**: {_suppressed(manifest.options)} (QK Product Steering, arXiv:2606.20419)."
    done = {
        Derivation.STACKED: "the changes of several edits of the query projections are added up; `made_of` in\n"
        "  `qkedit.json` names them",
        Derivation.SCALED: "the change of an edit of the query projections is multiplied by\n"
        f"  {manifest.strength or 1:.6g}; `made_of` in `qkedit.json` names it",
        Derivation.EXTRACTED: "the query projections are those of another checkpoint",
    }
    return f"* **What**: {done[manifest.derivation or Derivation.EXTRACTED]}."


def _suppressed(options: RecordedOptions) -> str:
    energy = options.energy
    amount = f"as many as carry {_percent(energy)} of its energy" if energy else f"{options.k}"
    modes = {
        "none": f"the dominant modes ({amount} per head)",
        "index": f"randomly drawn other modes ({amount} per head; a control, seed {options.seed})",
        "norm": f"a random frame of matched size ({amount} directions per head; a control, seed {options.seed})",
    }[options.control]
    channel = {"full": ""}.get(options.channel, f"the {options.channel} part of ")
    protected = ""
    if options.protect is not None:
        directions = counted(options.protect.directions, "query direction")
        protected = f",\n  orthogonal to the {directions} that find the first token,"
    kept = f"down to {_percent(options.retain)} of their size" if options.retain else "completely"
    gain = ", with the gain of the norm before it" if options.product == "folded" else ""
    product = f"{channel}the query-key product `W_qᵀ W_k` of each chosen head{gain}"
    return f"in {product}, {modes}{protected}\n  are suppressed {kept}"


def _where(manifest: Manifest) -> str:
    layers = describe([tensor.layer for tensor in manifest.tensors])
    edited = f"{counted(len(manifest.heads), 'head')} in {counted(len(manifest.tensors), 'tensor')}"
    spared = manifest.options.spared if manifest.options else None
    alone = f"\n  {counted(sum(map(len, spared.values())), 'head')} of these layers left alone" if spared else ""
    return f"* **Where**: layers {layers}, {edited}{',' if alone else ''}{alone}."


def _how_much(manifest: Manifest) -> str:
    options, heads = manifest.options, manifest.heads
    energy_of = (
        "the energy of these products"
        if options is None or options.channel == "full"
        else f"the energy of their {options.channel} part was to be removed"
    )
    error = max((layer.error for layer in manifest.adapter or ()), default=0.0)
    lacking = f"\n  Of each layer's change the adapter lacks up to {error:.2g} (Frobenius)." if error else ""
    removed, moved = mean(head.energy_removed for head in heads), mean(head.relative_change for head in heads)
    share = f"{removed:.1%} of {energy_of}" if removed >= 0 else f"{-removed:.1%} of {energy_of} was added"
    return f"""* **How much**: {share} on average; the
  query weights of a head moved by {moved:.1%} of their norm on average.{lacking}"""


def _revision(manifest: Manifest) -> str:
    return f" (revision `{manifest.base.revision}`)" if manifest.base.revision else ""


def _undo(manifest: Manifest) -> str:
    """Return the instructions to restore the base: from the kept original bytes, or from the base itself."""
    recorded = recorded_base(manifest)
    if ORIGINALS_FILE in manifest.generated:
        return f"`qkedit revert DIRECTORY` puts back\n  the original bytes, which `{ORIGINALS_FILE}` holds."
    if recorded is not None:
        return f"`qkedit revert DIRECTORY` puts back\n  the original bytes, which it takes from `{recorded.model}`."
    return "`qkedit revert DIRECTORY --base BASE`\n  puts back the original bytes from the base; none are kept here."


def _body(manifest: Manifest, checkpoint: Checkpoint) -> str:
    base = manifest.base
    earlier = (
        f"\nThe base was steered before, {len(manifest.history)} time(s): see `history` in `qkedit.json`.\n"
        if manifest.history
        else ""
    )
    original = _original_card(checkpoint)
    own_card = f" The original card is kept as `{original}`." if original else ""
    return f"""# {base.model}, steered

This is `{base.model}`{_revision(manifest)} with edited query projections. No training was done.{own_card}

{_what(manifest)}
{_where(manifest)} Every other tensor and file is that of the base,
  byte for byte.
{_how_much(manifest)}
* **Check**: `qkedit.json` names every changed tensor with its SHA-256 before and after;
  `qkedit verify DIRECTORY --base BASE` compares them and everything else.
* **Undo**: the edit removes information and cannot be calculated back. {_undo(manifest)}
{earlier}
Written by qkedit {manifest.tool.version}.
"""


def _adapter_body(manifest: Manifest) -> str:
    base, layers = manifest.base, manifest.adapter or ()
    rank = max(layer.rank for layer in layers)
    held = vllm_rank(rank)
    vllm = f"`--max-lora-rank {held}` of vLLM holds it" if held else "vLLM holds no adapter of this rank"
    return f"""# {base.model}, steered by an adapter

A LoRA for `{base.model}`{_revision(manifest)} that edits its query projections. No training was done.

{_what(manifest)}
{_where(manifest)} Nothing else changes.
{_how_much(manifest)}
* **Rank**: {rank}; {vllm}. The scaling is 1.
* **Check**: `qkedit verify DIRECTORY --base BASE` compares the adapter and the base with `qkedit.json`.
* **Use**: load it with `PeftModel.from_pretrained(model, DIRECTORY)` of peft, or make a whole checkpoint with
  `qkedit apply DIRECTORY --base BASE --out OUT`.

Written by qkedit {manifest.tool.version}.
"""
