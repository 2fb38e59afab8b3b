"""The query-key product of a loaded model's layer, for whoever looks into one in Python."""

from __future__ import annotations

from typing import Any

import torch

from qkedit.runtime.loaded_files import checkpoint_of
from qkedit.spectral.product import QKProduct
from qkedit.steering.engine.layer_weights import LayerWeights
from qkedit.steering.plan import make_plan
from qkedit.steering.steer_options import SteerOptions


def product_of(model: Any, layer: int, *, heads: str = "all", device: str = "cpu") -> QKProduct:
    """Return the query-key product of one layer of a loaded model, as an edit sees it: norms folded in.

    Args:
        model: a model of transformers, with vision or without.
        layer: of its decoder, from 0.
        heads: query heads, such as "0,3,8-12".
        device: where the product is calculated.

    Raises:
        UsageError: the model has no such layer or head.
        UnsupportedForm: the model's projections are of a form that has no query-key product.

    Example:
        >>> product = qkedit.product_of(model, 12)
        >>> product.S[:, :4]  # the four dominant singular values of every head
    """
    checkpoint = checkpoint_of(model)
    plan = make_plan(checkpoint, SteerOptions(str(layer), heads, allow_text_only=True))
    return LayerWeights.read(checkpoint.files, plan.layers[0]).product(torch.device(device))
