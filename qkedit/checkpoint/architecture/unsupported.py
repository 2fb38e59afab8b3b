"""Refuse checkpoints whose query-key product cannot be edited, with the reason, instead of guessing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qkedit.checkpoint.architecture.library import architectures
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import CONFIG_FILE
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.other_kinds import EDIT_FIRST
from qkedit.errors import UnsupportedForm

ADD_A_RECORD = "add a record for the model, as docs/adding-a-model.md shows"
# Modules that process pixels; a checkpoint without one is a text model.
VISION_TENSOR = re.compile(r"(?:^|[._])(?:vision|visual|vit|vpm|vq|vqmodel|image|img|pixel|mm)(?:[._]|$)")
LAYER_PATH = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.\d+\.(?P<rest>.+)$")
ATTENTION_WORD = re.compile(r"attn|attention|[qkv]_proj|qkv|query|key", re.IGNORECASE)
# The number of kinds of tensors that an error message lists.
NAMES_SHOWN = 8


def refuse_text_only(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedForm for a checkpoint without vision weights."""
    if not any(VISION_TENSOR.search(name) for name in checkpoint.tensors):
        raise UnsupportedForm(
            "the checkpoint does not hold vision weights, so it is a text model",
            where=checkpoint.files.name,
            remedy="pass --allow-text-only if this is intended; the edit is equally valid for text models",
        )


def refuse_encoder_decoder(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedForm for a config that declares an encoder-decoder."""
    if checkpoint.config.get("is_encoder_decoder") or checkpoint.text_config.get("is_encoder_decoder"):
        raise UnsupportedForm(
            "the model is an encoder-decoder, whose decoder reads the image through cross-attention",
            where=checkpoint.files.name,
            remedy="choose a decoder-only model",
        )


def refuse_recorded_forms(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedForm if a tensor of a text layer indicates a form that is recorded as not editable."""
    refusals = architectures().refusals
    for name in checkpoint.tensors:
        in_layer = LAYER_PATH.search(name)
        if in_layer is None or VISION_TENSOR.search(name):
            continue
        for refusal in refusals:
            if refusal.tensor.search(in_layer["rest"]):
                raise UnsupportedForm(
                    f"{refusal.name}: {refusal.reason}", where=f"tensor {name}", remedy=refusal.remedy
                )


def unknown_layout(checkpoint: Checkpoint) -> UnsupportedForm:
    """Return the error for projections that no layout record describes, listing the tensors in the headers."""
    if checkpoint.config.get("quantization_config"):
        return UnsupportedForm(
            f"{CONFIG_FILE} says that the weights are quantised, and no query projections are stored as floats",
            where=checkpoint.files.name,
            remedy=EDIT_FIRST,
        )
    text = [entry for name, entry in checkpoint.tensors.items() if not VISION_TENSOR.search(name)]
    attention = [entry for entry in text if ATTENTION_WORD.search(entry.name)]
    return UnsupportedForm(
        f"no query and key projections of a known layout; the headers hold {_kinds(attention or text)}",
        where=checkpoint.files.name,
        remedy=ADD_A_RECORD,
    )


def _kinds(entries: Iterable[TensorEntry]) -> str:
    """Return the names with numbers replaced by N, each once with a shape."""
    kinds: dict[str, str] = {}
    for entry in entries:
        kinds.setdefault(re.sub(r"\d+", "N", entry.name), str(list(entry.shape)))
    shown = [f"{name} {shape}" for name, shape in list(kinds.items())[:NAMES_SHOWN]]
    more = [f"{len(kinds) - NAMES_SHOWN} more kinds"] if len(kinds) > NAMES_SHOWN else []
    return ", ".join(shown + more) or "no tensors"
