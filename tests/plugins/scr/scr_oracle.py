"""Compute SCR by its formulas: one prompt at a time, without padding, cache or batch, layer by layer, cell by cell.

Arguments of layers (masks, rotations) are recorded in an ordinary run, and so are the terms that the model adds to
the state between two layers (DeepStack), which do not depend on the state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scores(
    model: Any, inputs: dict[str, Any], cells: list[int], queries: list[int], layers: list[int]
) -> dict[int, float]:
    """Return eager attention from `queries` to each of `cells`, averaged over heads, layers and queries by loops."""
    weights = eager_attention(model, inputs, layers)
    found = {}
    for cell in cells:
        total, count = 0.0, 0
        for layer in layers:
            for head in range(weights[layer].shape[1]):
                for query in queries:
                    total += float(weights[layer][0, head, query, cell])
                    count += 1
        found[cell] = total / count
    return found


def eager_attention(model: Any, inputs: dict[str, Any], layers: list[int]) -> dict[int, Tensor]:
    """Return eager attention of some layers, `[batch, heads, length, length]` each."""
    weights: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        return lambda module, args, output: weights.update({index: output[1]})

    attentions = [(index, model.get_decoder().layers[index].self_attn) for index in layers]
    hooks = [attention.register_forward_hook(keep(index)) for index, attention in attentions]
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(usual)
    return weights


def sources_and_neighbours(grid: list[list[int]], score: dict[int, float], count: int) -> list[tuple[int, list[int]]]:
    """Return the greedy sources of a grid of columns, the strongest first, each with its neighbours."""
    rows, columns = len(grid), len(grid[0])
    inner = [(-score[grid[r][c]], r * columns + c, r, c) for r in range(1, rows - 1) for c in range(1, columns - 1)]
    used: set[int] = set()
    chosen = []
    for _, _, r, c in sorted(inner)[:count]:
        if grid[r][c] in used:
            continue
        used.add(grid[r][c])
        own = []
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                if (dr or dc) and 0 <= r + dr < rows and 0 <= c + dc < columns and grid[r + dr][c + dc] not in used:
                    used.add(grid[r + dr][c + dc])
                    own.append(grid[r + dr][c + dc])
        chosen.append((grid[r][c], own))
    return chosen


def logits(
    model: Any, inputs: dict[str, Any], pairs: list[tuple[int, list[int]]], factor: float, layers: list[int]
) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """Run one prompt with the edit `pairs` (each source with its neighbours) after every one of `layers`.

    Returns:
        Logits `[length, vocabulary]`; by layer the state after it without and with the edit, `[length, D]` each.
    """
    decoder = model.get_decoder()
    arguments: list[dict[str, Any]] = []
    entering: list[Tensor] = []
    leaving: list[Tensor] = []

    def before(module: Any, args: Any, kwargs: Any) -> None:
        entering.append(args[0])
        arguments.append({**kwargs, "past_key_values": None, "use_cache": False})

    def after(module: Any, args: Any, output: Any) -> None:
        leaving.append(output if isinstance(output, Tensor) else output[0])

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in decoder.layers]
    hooks += [layer.register_forward_hook(after) for layer in decoder.layers]
    with torch.no_grad():
        plain = model(**inputs, use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()

    state = entering[0]
    states = {}
    for index, layer in enumerate(decoder.layers):
        with torch.no_grad():
            output = layer(state, **arguments[index])
        state = (output if isinstance(output, Tensor) else output[0]).clone()
        if index in layers:
            old = state.clone()
            for source, neighbours in pairs:
                for neighbour in neighbours:
                    state[0, neighbour] = old[0, neighbour] + (factor - 1) * old[0, source]
                state[0, source] = old[0, source] / factor
        states[index] = (leaving[index][0], state[0])
        if index + 1 < len(decoder.layers):
            state = state + (entering[index + 1] - leaving[index])
    with torch.no_grad():
        edited = model.lm_head(decoder.norm(state))[0]
    # Chameleon excludes image tokens: their logits are the lowest finite number.
    lowest = torch.finfo(plain.dtype).min
    return torch.where(plain == lowest, plain, edited), states
