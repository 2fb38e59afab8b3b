"""Find the modules of a loaded model that plug-ins act on, or explain why they cannot act on it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from qkedit.errors import UnsupportedForm, UsageError
from qkedit.plugins.core.grid_layouts import layout_of
from qkedit.plugins.core.modules import VLMModules, model_in

# The kinds of decoder layers (`layer_types`) that compute attention, which can be recorded and cached.
ATTENDING = ("full_attention", "sliding_attention", "chunked_attention")


def vlm_modules(model: Any) -> VLMModules:
    """Find the modules of a model.

    Raises:
        UsageError: the model is compiled, wrapped or not a vision-language model of transformers.
        UnsupportedForm: its image tokens do not form a grid, or its structure is unknown.
    """
    from transformers import PreTrainedModel

    model = model_in(model)
    if is_compiled(model):
        raise _compiled()
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"{type(model).__name__} is not a model of transformers",
            where="model",
            remedy="pass the model that AutoModelForImageTextToText.from_pretrained returns; merge adapters first",
        )
    layout_of(model.config)
    base, decoder = model.base_model, model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if base is model or not hasattr(base, "get_image_features") or not isinstance(layers, nn.ModuleList):
        raise UnsupportedForm(
            f"{type(model).__name__} does not consist of an image encoder and a decoder with layers",
            where="model",
            remedy="pass the model that AutoModelForImageTextToText.from_pretrained returns",
        )
    if is_compiled(base) or is_compiled(decoder):
        raise _compiled()
    kinds = getattr(decoder.config, "layer_types", None) or ["full_attention"] * len(layers)
    attending = tuple(index for index, kind in enumerate(kinds[: len(layers)]) if kind in ATTENDING)
    return VLMModules(model, base, decoder, layers, attending)


def is_compiled(module: Any) -> bool:
    """Return whether a module was compiled by torch.compile, which would bypass replaced methods."""
    return (
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(getattr(module, "forward", None), "_torchdynamo_orig_callable")
    )


def _compiled() -> UsageError:
    return UsageError(
        "a compiled model cannot be edited while it runs",
        where="model",
        remedy="attach to the model before torch.compile, or compile its layers one by one",
    )


def layers_uncompiled(layers: Iterable[Any]) -> AbstractContextManager[Any]:
    """Run individually compiled layers uncompiled in a block, since each request would compile them again.

    Only if there are such layers: flex attention is compiled too, and slow otherwise.
    """
    return torch.compiler.set_stance("force_eager") if any(map(is_compiled, layers)) else nullcontext()
