"""The query-key product of a loaded model's layer, for analysis in Python."""

from __future__ import annotations

from typing import Any

import torch

from qkedit.plugins.core.modules import model_in
from qkedit.runtime.loaded_files import checkpoint_of
from qkedit.spectral.product import QKProduct
from qkedit.steering.engine.layer_weights import LayerWeights
from qkedit.steering.plan import make_plan
from qkedit.steering.steer_options import SteerOptions


def product_of(model: Any, layer: int, *, heads: str = "all", device: str = "cpu") -> QKProduct:
    """Return the query-key product of one layer of a loaded model, with norms folded in, as an edit uses it.

    Args:
        model: as for `edit`; a model without vision is accepted, too.
        layer: the index of the decoder layer, from 0.
        heads: the query heads, such as "0,3,8-12".
        device: the device of the computation.

    Raises:
        UsageError: it is not a model of transformers, or the model does not have the layer or the heads.
        UnsupportedForm: the model's projections have a form without a query-key product.

    Example:
        >>> product = qkedit.product_of(model, 12)  # or qkedit.QKProduct.from_model(model, 12)
        >>> product.S[:, :4]  # the four dominant singular values of every head
    """
    checkpoint = checkpoint_of(model_in(model))
    plan = make_plan(checkpoint, SteerOptions(str(layer), heads, allow_text_only=True))
    return LayerWeights.read(checkpoint.files, plan.layers[0]).product(torch.device(device))


QKProduct.from_model = staticmethod(product_of)
