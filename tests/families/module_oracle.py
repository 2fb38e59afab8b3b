"""Measure the projections of a loaded model's attention modules by their outputs, without reading names.

Each attention module of transformers is run on the basis vectors, with all rotary angles zero, and stopped when it
calls the attention function. The states that its own code passes to that function (or to its query and key norms)
are one column of each head's projection; norms are also probed with basis vectors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

IMPLEMENTATION = "qkedit_capture"
# Llama 4 calls the same norm without gains for the queries and then for the keys.
NORM_NAMES = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("qk_norm", "qk_norm"))


@dataclass(frozen=True)
class Heads:
    """One projection as its module computes it: `fold @ weight` enters the product."""

    weight: np.ndarray  # [heads, d_h, D]
    bias: np.ndarray  # [heads, d_h]
    fold: np.ndarray  # [heads, d_h, d_h]; the identity without a norm

    @property
    def folded(self) -> np.ndarray:
        """The projection with the norm's effect, [heads, d_h, D]."""
        return self.fold @ self.weight


@dataclass(frozen=True)
class Projections:
    """Queries and keys of one layer."""

    query: Heads
    key: Heads

    def products(self) -> np.ndarray:
        """The query-key product of each query head, [H, D, D]."""
        group = len(self.query.weight) // len(self.key.weight)
        keys = np.repeat(self.key.folded, group, axis=0)
        return self.query.folded.transpose(0, 2, 1) @ keys


class _Captured(Exception):
    def __init__(self, query: Tensor, key: Tensor) -> None:
        self.query, self.key = query, key


def attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Return every self-attention module of the language model, by layer."""
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    layers = decoder.layers if hasattr(decoder, "layers") else decoder.model.layers
    return {index: layer.self_attn for index, layer in enumerate(layers) if hasattr(layer, "self_attn")}


def projections(module: nn.Module, hidden_size: int) -> Projections:
    """Run one attention module on the zero vector and the basis vectors, and return its projections."""
    inputs = torch.cat([torch.zeros(1, hidden_size), torch.eye(hidden_size)])[None]
    norm_inputs: list[Tensor] = []

    def record(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        norm_inputs.append(arguments[0])

    query_norm, key_norm, hooks = _norms(module, record)
    query, key = _states(module, inputs, quarter_turn=False)
    for hook in hooks:
        hook.remove()
    if norm_inputs:
        query, key = norm_inputs
    tokens = inputs.shape[1]
    return Projections(
        _split(_heads(query, query_norm, tokens), module.head_dim),
        _split(_heads(key, key_norm, tokens), module.head_dim),
    )


def rotation(module: nn.Module, hidden_size: int) -> str:
    """Set every rotary angle to 90°, and find the pairs of dimensions from the queries.

    Returns "none", "interleaved" (2i with 2i + 1) or "halves" (i with i + d_h / 2).
    """
    inputs = torch.eye(hidden_size)[None]
    straight, _ = _states(module, inputs, quarter_turn=False)
    turned, _ = _states(module, inputs, quarter_turn=True)
    before, after = (_by_token(states, hidden_size)[:, 0] for states in (straight, turned))
    turn, *_ = np.linalg.lstsq(before, after, rcond=None)
    partners = np.abs(turn).argmax(axis=1)
    numbers = np.arange(len(partners))
    patterns = {
        "none": numbers,
        "interleaved": numbers ^ 1,
        "halves": (numbers + len(numbers) // 2) % len(numbers),
    }
    (found,) = (name for name, pattern in patterns.items() if (partners == pattern).all())
    return found


def _states(module: nn.Module, inputs: Tensor, *, quarter_turn: bool) -> tuple[Tensor, Tensor]:
    """Return the queries and keys that the module passes to its attention function."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _stop)
    implementation = module.config._attn_implementation
    module.config._attn_implementation = IMPLEMENTATION
    try:
        with torch.no_grad():
            module(**_arguments(module, inputs, quarter_turn))
    except _Captured as captured:
        return captured.query, captured.key
    finally:
        module.config._attn_implementation = implementation
    raise AssertionError("the module did not call the attention interface")


def _stop(module: nn.Module, query: Tensor, key: Tensor, *_: Any, **__: Any) -> None:
    raise _Captured(query, key)


def _norms(module: nn.Module, record: Callable[..., None]) -> tuple[Any, Any, list[Any]]:
    for query_name, key_name in NORM_NAMES:
        if hasattr(module, query_name):
            norms = (getattr(module, query_name), getattr(module, key_name))
            return *norms, [norm.register_forward_pre_hook(record) for norm in dict.fromkeys(norms)]
    return None, None, []


def _arguments(module: nn.Module, inputs: Tensor, quarter_turn: bool) -> dict[str, Any]:
    """Return the arguments for running a module separately; every rotation is by 0° or 90°."""
    shape = (1, inputs.shape[1], module.head_dim)
    cos, sin = (torch.zeros, torch.ones) if quarter_turn else (torch.ones, torch.zeros)
    if type(module).__name__.startswith("Llama4"):
        halved = (*shape[:2], shape[2] // 2)
        angles: Any = torch.complex(cos(halved), sin(halved))
    else:
        angles = (cos(shape), sin(shape))
    offered = {
        "hidden_states": inputs,
        "position_embeddings": angles,
        "attention_mask": None,
        "past_key_values": None,
        "shared_kv_states": {},
    }
    accepted = inspect.signature(module.forward).parameters
    return {name: value for name, value in offered.items() if name in accepted}


def _heads(states: Tensor, norm: nn.Module | None, tokens: int) -> Heads:
    """Return `states` of all tokens, with axes in any order, as a linear map, and the effect of a norm on it."""
    by_token = _by_token(states, tokens)
    bias = by_token[0]
    weight = (by_token[1:] - bias).transpose(1, 2, 0)
    heads, head_size = bias.shape
    if norm is None:
        return Heads(weight, bias, np.tile(np.eye(head_size), (heads, 1, 1)))
    fold = _fold(norm, heads, head_size, _token_axis(states, tokens))
    return Heads(weight, bias, fold)


def _split(heads: Heads, head_size: int) -> Heads:
    """Split the result of a norm over the full projection into heads."""
    count = heads.bias.shape[1] // head_size
    if count == 1:
        return heads
    blocks = heads.fold[0].reshape(count, head_size, count, head_size)
    return Heads(
        weight=heads.weight.reshape(count, head_size, -1),
        bias=heads.bias.reshape(count, head_size),
        fold=np.stack([blocks[head, :, head] for head in range(count)]),
    )


def _by_token(states: Tensor, tokens: int) -> np.ndarray:
    """Return `[tokens, heads, d_h]`; the axis of a head's dimensions is always last."""
    return states.reshape(states.shape[-3:]).movedim(_token_axis(states, tokens), 0).double().numpy()


def _token_axis(states: Tensor, tokens: int) -> int:
    """Return the axis of the tokens among the last three axes, by its length."""
    return states.shape[-3:].index(tokens)


def _fold(norm: nn.Module, heads: int, head_size: int, token_axis: int) -> np.ndarray:
    """Return F, `[heads, d_h, d_h]`, of a norm N(y) = F y / n(y) + s."""

    def apply(probes: Tensor) -> Tensor:  # [probes, d_h] → [probes, heads, d_h]
        states = probes[:, None].expand(-1, heads, -1).movedim(0, token_axis).contiguous()
        with torch.no_grad():
            return norm(states).movedim(token_axis, 0).double()

    basis = torch.eye(head_size) * head_size**0.5
    shift = apply(torch.zeros(1, head_size))
    outputs = apply(basis) - shift
    # A norm that subtracts the mean does not see a constant; its normaliser is then the standard deviation.
    subtracts_mean = torch.allclose(outputs, apply(basis + 3.0) - shift, atol=1e-4)
    scale = basis.std(1, correction=0) if subtracts_mean else basis.square().mean(1).sqrt()
    return (outputs * scale[:, None, None] / head_size**0.5).permute(1, 2, 0).numpy()


def suppressed(before: Projections, heads: range, k: int) -> np.ndarray:
    """Return the products without the k dominant modes of `heads`, from dense decompositions."""
    expected = before.products()
    for head in heads:
        left, _, _ = np.linalg.svd(expected[head])
        expected[head] -= left[:, :k] @ (left[:, :k].T @ expected[head])
    return expected
