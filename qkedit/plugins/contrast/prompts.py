"""The prompts of a contrasted branch: without their images, or with a sentence after the last image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qkedit.plugins.core.grid import ImageGrids

# Inputs with one number per token.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def without_images(inputs: Mapping[str, Any], grids: ImageGrids) -> dict[str, Tensor]:
    """Return the text of prompts as model inputs, padded on the left.

    Everything from an image's first to its last token is removed, including newline tokens and tile separators. The
    tokens that mark its start and end stay: to the model they are text.

    Args:
        inputs: the model inputs of the prompts with their images; only inputs with one number per token are used.
        grids: the positions of the images.
    """
    kept = _real(inputs)
    for extent in grids.extents:
        kept[extent.row, extent.first : extent.last + 1] = False
    return _rebuilt(inputs, [row.nonzero().flatten() for row in kept], ())


def with_sentence(inputs: Mapping[str, Any], grids: ImageGrids, sentence: Sequence[int]) -> dict[str, Tensor]:
    """Return prompts with a sentence right after their last image as model inputs, padded on the left.

    One token stays between image and sentence: the one that ends an image, or the newline that templates put there.

    Args:
        inputs, grids: as for `without_images`.
        sentence: the tokens of the sentence.
    """
    rows = []
    for number, row in enumerate(_real(inputs)):
        last = max((extent.last for extent in grids.extents if extent.row == number), default=row.numel())
        columns = row.nonzero().flatten()
        before = columns <= last + 1
        rows.append(torch.cat([columns[before], -1 - torch.arange(len(sentence)), columns[~before]]))
    return _rebuilt(inputs, rows, sentence)


def _real(inputs: Mapping[str, Any]) -> Tensor:
    """Return the mask of columns that are not padding, `[batch, length]` bool on the CPU."""
    mask = inputs.get("attention_mask")
    return torch.ones(inputs["input_ids"].shape, dtype=torch.bool) if mask is None else mask.detach().bool().cpu()


def _rebuilt(inputs: Mapping[str, Any], rows: Sequence[Tensor], sentence: Sequence[int]) -> dict[str, Tensor]:
    """Return the inputs with other columns: `rows[i]` lists row i's columns, or −1 − an index into the sentence."""
    length = max(row.numel() for row in rows)
    ids: Tensor = inputs["input_ids"]
    given = {name: inputs[name] for name in PER_TOKEN if inputs.get(name) is not None}
    given.setdefault("attention_mask", torch.ones_like(ids))
    added = torch.tensor([*sentence, 0], dtype=ids.dtype)  # never empty, to be indexed
    rebuilt = {}
    for name, values in given.items():
        new = torch.zeros(len(rows), length, dtype=values.dtype)
        of_sentence = {"input_ids": added, "attention_mask": torch.ones_like(added)}.get(name, torch.zeros_like(added))
        for number, columns in enumerate(rows):
            old = values[number].cpu()[columns.clamp(min=0)]
            own = of_sentence[(-1 - columns).clamp(min=0)].to(values.dtype)
            new[number, length - columns.numel() :] = torch.where(columns < 0, own, old)
        rebuilt[name] = new.to(values.device)
    return rebuilt
