"""A slow reference for DSCR: one prompt at a time, without the plug-in, its hooks or its batches.

The prompt is put into a cache, the keys are replaced token by token by the formulas, and plain `generate` answers with
that cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.plugins.dscr import dscr_oracle as oracle
from tests.plugins.tiny_requests import Request


@dataclass(frozen=True)
class SlowGrid:
    """One grid of one prompt: the prompt column of each cell, and the weights w of the cells."""

    columns: list[int]
    weights: list[list[float]]


def grids_of(request: Request, maps: Sequence[Tensor], tiles: tuple[int, int]) -> list[SlowGrid]:
    """Return the grids of the only prompt of a request.

    Args:
        maps: depth of every pixel of each image; every grid divides the sides.
        tiles: rows and columns of the tiles of each image that has tiles.
    """
    cells: dict[tuple[int, str], list[tuple[int, int, int]]] = {}
    for column, (image, part, row, across) in sorted(request.cells[0].items()):
        cells.setdefault((image, part), []).append((row, across, column))
    found = []
    for (image, part), places in cells.items():
        depth = maps[image]
        if part.startswith("tile "):
            row, column = divmod(int(part.split()[1]), tiles[1])
            height, width = depth.shape[0] // tiles[0], depth.shape[1] // tiles[1]
            depth = depth[row * height : (row + 1) * height, column * width : (column + 1) * width]
        rows, columns = (1 + max(place[axis] for place in places) for axis in (0, 1))
        height, width = depth.shape[0] // rows, depth.shape[1] // columns
        means = [
            depth[row * height : (row + 1) * height, column * width : (column + 1) * width].double().mean().item()
            for row, column, _ in places
        ]
        weights = oracle.weights(oracle.z_scores(means), [place[:2] for place in places])
        found.append(SlowGrid([column for _, _, column in places], weights))
    return found


def refine(states: Tensor, grids: Sequence[SlowGrid], first: int = 0, blend: float = 1.0) -> None:
    """Replace the states `[1, H, S, d]` of every grid, whose prompt columns begin at `first`, by their mix."""
    before = states.clone()
    for grid in grids:
        there = [number for number, column in enumerate(grid.columns) if column >= first]
        weights = [[grid.weights[i][j] for j in there] for i in there]
        totals = [sum(row[j] for row in weights) for j in range(len(there))]
        weights = [[weight / total for weight, total in zip(row, totals, strict=True)] for row in weights]
        for head in range(states.shape[1]):
            columns = [grid.columns[number] - first for number in there]
            mix = oracle.mix(weights, before[0, head, columns].tolist()) if there else []
            for column, new in zip(columns, mix, strict=True):
                states[0, head, column] = (1 - blend) * before[0, head, column] + blend * torch.tensor(new)


@torch.no_grad()
def answer(
    model: Any,
    request: Request,
    grids: Sequence[SlowGrid],
    layers: Sequence[int],
    *,
    refine_keys: bool = True,
    refine_values: bool = False,
    blend: float = 1.0,
    after: int | None = None,
    whole_prompt_first: bool = False,
    new_tokens: int = 3,
) -> Tensor:
    """Return the logits of the answer to one prompt, `[new tokens, vocabulary]`.

    Args:
        after: the number of prompt tokens in the cache when it is refined; all but the last by default.
        whole_prompt_first: run the last token, refine, and run it again, for prompts with bidirectional attention.
    """
    inputs = request.inputs
    length = inputs["input_ids"].shape[1]
    after = length - 1 if after is None else after
    cut = length if whole_prompt_first else after
    of_prompt = {
        name: value[:, :cut] if value.shape[:2] == inputs["input_ids"].shape else value
        for name, value in inputs.items()
    }
    cache = DynamicCache(config=model.config.get_text_config())
    model(**of_prompt, past_key_values=cache, use_cache=True)
    for layer in layers:
        for states, wanted in ((cache.layers[layer].keys, refine_keys), (cache.layers[layer].values, refine_values)):
            if wanted:
                refine(states, grids, cut - states.shape[2], blend)
    if whole_prompt_first:
        cache.crop(-1)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in inputs}
    output = model.generate(
        **text, past_key_values=cache, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **GREEDY
    )
    return torch.stack(output.logits)[:, 0]


GREEDY: dict[str, Any] = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def plugged_answers(model: Any, request: Request, new_tokens: int = 3, **options: Any) -> Tensor:
    """Return the logits of plain `generate`, `[rows, new tokens, vocabulary]`."""
    output = model.generate(
        **request.inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **{**GREEDY, **options}
    )
    return torch.stack(output.logits, dim=1)


@contextmanager
def keys_before_rotation(model: Any, layer: int) -> Iterator[list[Tensor]]:
    """Collect a layer's keys before their rotation, `[B, H, S, d]`, from the module."""
    attention = model.get_decoder().layers[layer].self_attn
    shapes: list[tuple[int, int]] = []
    seen: list[Tensor] = []

    def entered(module: Any, args: Any, arguments: dict[str, Any]) -> None:
        hidden = arguments.get("hidden_states", args[0] if args else None)
        shapes.append(hidden.shape[:2])

    def keep(module: Any, args: Any, output: Tensor) -> None:
        batch, length = shapes[-1]
        heads = attention.k_proj.out_features // attention.head_dim
        # Some families apply the norm before the axis of heads is moved before that of tokens, some after.
        moved = output.shape == (batch, heads, length, attention.head_dim) and heads != length
        seen.append(output if moved else output.reshape(batch, length, heads, -1).transpose(1, 2))

    handles = [
        attention.register_forward_pre_hook(entered, with_kwargs=True),
        getattr(attention, "k_norm", attention.k_proj).register_forward_hook(keep),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
