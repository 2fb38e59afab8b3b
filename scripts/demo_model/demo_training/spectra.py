"""Measure the rank of query and key weights after training, and the effect of their dominant modes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from qkedit.spectral.mode_selection import effective_rank, top_energy


def projections(language_model: torch.nn.Module) -> list[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """Return query and key weights of each layer."""
    return [(layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight) for layer in language_model.layers]


def middle_layers(layers: int) -> range:
    """Return the middle half of a number of layers."""
    return range(layers // 4, layers - layers // 4)


def initialise(language_model: torch.nn.Module, deviation: float, seed: int) -> None:
    """Draw new query and key weights from a normal distribution."""
    generator = torch.Generator().manual_seed(seed + 2)
    for pair in projections(language_model):
        for weight in pair:
            torch.nn.init.normal_(weight, 0.0, deviation, generator)


def spectra(language_model: torch.nn.Module, layers: Sequence[int]) -> dict[str, float]:
    """Return the mean over heads of layers: the energy share of the top four modes, and the effective rank."""
    values = torch.cat([_modes(language_model, layer)[1] for layer in layers])
    counts = torch.full(values.shape[:1], 4)
    return {
        "top_4": float(top_energy(values, counts).mean()),
        "effective_rank": float(effective_rank(values).mean()),
    }


@contextmanager
def without_modes(
    language_model: torch.nn.Module, layers: Sequence[int], count: int, which: str, seed: int = 0
) -> Iterator[None]:
    """Remove modes of every head's product from the query weights exactly, while the context is open.

    Args:
        language_model: the decoder.
        layers: the layers, by number.
        count: the number of modes per head.
        which: "top", or "random" for random ones of the others.
        seed: the seed of random modes.
    """
    generator = torch.Generator().manual_seed(seed)
    saved = {}
    for layer in layers:
        query = projections(language_model)[layer][0]
        saved[layer] = query.detach().clone()
        left, values = _modes(language_model, layer)
        heads = []
        for head, weight in enumerate(query.detach().unflatten(0, (left.shape[0], -1))):
            others = count + torch.randperm(values.shape[-1] - count, generator=generator)[:count]
            chosen = left[head][:, torch.arange(count) if which == "top" else others]
            heads.append(weight - weight @ chosen @ chosen.T)
        query.data.copy_(torch.cat(heads))
    yield
    for layer, before in saved.items():
        projections(language_model)[layer][0].data.copy_(before)


def _modes(language_model: torch.nn.Module, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return left singular vectors `[H, hidden, d]` and singular values `[H, d]` of each head's `W_qᵀ W_k`."""
    attention = language_model.layers[layer].self_attn
    query = attention.q_proj.weight.detach().unflatten(0, (-1, attention.head_dim))
    key = attention.k_proj.weight.detach().unflatten(0, (-1, attention.head_dim))
    key = key.repeat_interleave(query.shape[0] // key.shape[0], 0)
    q_left, q_right = torch.linalg.qr(query.mT)
    _, k_right = torch.linalg.qr(key.mT)
    left, values, _ = torch.linalg.svd(q_right @ k_right.mT)
    return q_left @ left, values
