"""Run a loaded model on one token, to find the query directions that make its queries attend to the first token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.errors import UnsupportedForm
from qkedit.inspection.positions import rotary_positions
from qkedit.plugins.core.modules import model_in
from qkedit.runtime.loaded_files import checkpoint_of
from qkedit.spectral.rotary import RotaryPositions
from qkedit.spectral.sink import Sink

# Distances of a query from the first token; beyond some hundred the directions hardly change.
DISTANCES = 512


def sink_of(model: Any) -> Sink:
    """Return the keys of the first token of a loaded model, as the queries of later tokens meet them.

    The model is run on its begin-of-text token alone. What follows cannot change the first token's keys, and which
    token it is changes them little.

    Args:
        model: as for `edit`, with vision or without, with its weights as they are to be edited.

    Raises:
        UnsupportedForm: the model names no token to begin with, keeps no keys, or its positions are unknown.

    Example:
        >>> loaded = qkedit.load("demo")
        >>> qkedit.steer("demo", out="./edited", protect="sink:4", sink=qkedit.sink_of(loaded))
    """
    model = model_in(model)
    checkpoint = checkpoint_of(model)
    stack = attention_stack(checkpoint, allow_text_only=True)
    token = _first_token(model)
    cache = _cache(model, token)
    turns: dict[RotaryPositions | None, Tensor] = {}
    moments = {}
    for layer in stack.layers:
        keys = _keys(cache, layer.index, (layer.key_heads, layer.head_size))
        positions = rotary_positions(checkpoint, stack.decoder, layer)
        if positions not in turns:
            turns[positions] = _rotations(positions, layer.head_size)
        met = torch.einsum("nij,hi->hnj", turns[positions], keys)  # R_nᵀ k
        moments[layer.index] = met.mT @ met
    return Sink(token, moments)


def _first_token(model: Any) -> int:
    config = model.config.get_text_config()
    for token in (config.bos_token_id, config.eos_token_id):
        first = token[0] if isinstance(token, list | tuple) and token else token
        if isinstance(first, int) and 0 <= first < config.vocab_size:
            return first
    raise _unsupported("its config names no token that begins or ends a text", model)


def _cache(model: Any, token: int) -> Any:
    """Return the cache of keys after a run on one token."""
    ids = torch.tensor([[token]], device=next(model.parameters()).device)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
    finally:
        model.train(training)


def _keys(cache: Any, index: int, shape: tuple[int, int]) -> Tensor:
    """Return the first token's keys in one layer, float64 `[H_kv, d_h]` on the CPU; at position 0 none is rotated."""
    layers = getattr(cache, "layers", ())
    keys = getattr(layers[index], "keys", None) if index < len(layers) else None
    if keys is None or (tuple(keys.shape[1::2]), keys.shape[2]) != (shape, 1):
        raise _unsupported(f"its cache does not hold the keys of layer {index}", cache)
    own: Tensor = keys[0, :, 0].clone().cpu().double()
    return own


def _rotations(positions: RotaryPositions | None, head_size: int) -> Tensor:
    """Return `R_n` for all distances, float64 `[n, d_h, d_h]`; the identity alone without positions."""
    if positions is None:
        return torch.eye(head_size, dtype=torch.float64)[None]
    return torch.stack([positions.rotation((n, n, n)) for n in range(1, DISTANCES + 1)])


def _unsupported(what: str, where: Any) -> UnsupportedForm:
    return UnsupportedForm(what, where=type(where).__name__, remedy="edit it without --protect")
