"""The key-value cache of transformers, as plug-ins edit it."""

from __future__ import annotations

from typing import Any

from qkedit.errors import UnsupportedForm, UsageError


def cache_layer(cache: Any, index: int, plugin: str) -> Any:
    """Return one layer of a cache whose `keys` and `values`, `[batch, heads, slots, d]`, can be edited in place.

    Args:
        cache: the cache.
        index: of the decoder layer.
        plugin: the plug-in's name, for messages.

    Raises:
        UsageError: the cache keeps its keys in another form.
        UnsupportedForm: the layer shares its keys with another one.
    """
    from transformers.cache_utils import DynamicLayer, QuantizedLayer, StaticLayer

    layers = getattr(cache, "layers", ())
    layer = layers[index] if index < len(layers) else None
    if isinstance(layer, QuantizedLayer) or not isinstance(layer, DynamicLayer | StaticLayer):
        raise UsageError(
            f"keys in a {type(layer or cache).__name__} cannot be edited",
            where="cache",
            remedy="generate with the default cache or cache_implementation='static'",
        )
    if not layer.is_initialized:
        raise UnsupportedForm(
            f"layer {index} has no keys of its own in the cache",
            where=f"{plugin} layers",
            remedy="choose other layers",
        )
    return layer


def columns_held(layer: Any, length: int) -> tuple[int, int]:
    """Return the prompt column of a cache layer's first slot, and the first column that the next token still reads.

    A sliding layer holds only the last columns; a static sliding layer has one slot more than the next token reads.
    """
    from transformers.cache_utils import StaticLayer

    slots = layer.keys.shape[2]
    first = max(0, length - slots)
    return first, max(0, length - slots + 1) if layer.is_sliding and isinstance(layer, StaticLayer) else first
