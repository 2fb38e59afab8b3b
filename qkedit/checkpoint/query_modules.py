"""Find the modules of a loaded model that hold the queries. Adapters name modules, and checkpoints name tensors.

When libraries load a checkpoint they rename the path before the layers and keep the name within a layer. So a module
is found from its layer, in a model of the checkpoint's class without weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qkedit.checkpoint.architecture.heads import AttentionLayer, HeadRows
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import CONFIG_FILE
from qkedit.checkpoint.pretrained import from_pretrained
from qkedit.errors import QkeditError, UnsupportedForm, first_sentence

_QUERIES_ALONE = "q_proj"
_REMEDY = "write the full layout or a delta"


@dataclass(frozen=True)
class QueryModule:
    """A linear module of a loaded model.

    Attributes:
        path: the path for `model.get_submodule`.
        rows: the number of rows of its weight.
        starts: the first row of each query head.
    """

    path: str
    rows: int
    starts: tuple[int, ...]


def query_modules(checkpoint: Checkpoint, layers: Iterable[AttentionLayer]) -> dict[str, QueryModule]:
    """Return the module with the queries of each layer, by the name of the tensor on disk.

    A class from the checkpoint's own Python code is not built, since that would run the code. Such a class loads a
    checkpoint under the names that it saved, so the modules have the names of the tensors.

    Raises:
        UnsupportedForm: transformers has no class for the checkpoint, or the class has no linear module for a tensor.
    """
    model = _empty_model(checkpoint)
    return {layer.query.tensor.name: _module_of(model, layer) for layer in layers}


def parameter_place(model: Any, layer: int, name: str) -> tuple[str, Any] | None:
    """Return the name and value of a model's parameter, given the tensor name in the checkpoint.

    Args:
        model: a model of transformers, with weights or without.
        layer: the index of the decoder layer.
        name: the name of the tensor on disk.

    Returns:
        The parameter's full name in the model and the parameter; None if the layer does not have it.
    """
    decoder = _decoder_layer(model, layer)
    if decoder is not None:
        for place, parameter in decoder.named_parameters():
            if name.endswith(f".{place}"):
                return f"{_path_of(model, decoder)}.{place}", parameter
    return None


def _decoder_layer(model: Any, layer: int) -> Any:
    decoder = model.get_decoder()
    layers: Any = getattr(decoder, "layers", None)
    if layers is None:  # Llama 4's decoder is a language model with a head
        layers = getattr(getattr(decoder, "model", None), "layers", ())
    return layers[layer] if layer < len(layers) else None


def _path_of(model: Any, module: Any) -> str:
    return next(path for path, found in model.named_modules() if found is module)


def _module_of(model: Any | None, layer: AttentionLayer) -> QueryModule:
    rows = layer.query
    name = rows.tensor.name.removesuffix(".weight")
    if model is None:
        return QueryModule(name, rows.tensor.shape[0], rows.starts)
    place = parameter_place(model, layer.index, rows.tensor.name)
    if place is not None:
        path = place[0].removesuffix(".weight")
        if _is_linear(model.get_submodule(path), rows.tensor.shape):
            return QueryModule(path, rows.tensor.shape[0], rows.starts)
        raise _not_linear(path, layer)
    return _queries_alone(model, layer, rows)


def _queries_alone(model: Any, layer: AttentionLayer, rows: HeadRows) -> QueryModule:
    """Return the query module of a class that splits a fused tensor on loading; its heads are in a row."""
    decoder = _decoder_layer(model, layer.index)
    attention = rows.tensor.name.split(".")[-3]  # "…layers.3.self_attn.att_proj.weight"
    module = getattr(getattr(decoder, attention, None), _QUERIES_ALONE, None)
    count = len(rows.starts) * rows.head_size
    if module is None or not _is_linear(module, (count, rows.tensor.shape[1])):
        raise _not_linear(rows.tensor.name, layer)
    return QueryModule(_path_of(model, module), count, tuple(range(0, count, rows.head_size)))


def _is_linear(module: Any, shape: tuple[int, ...]) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear) and tuple(module.weight.shape) == tuple(shape)


def _not_linear(name: str, layer: AttentionLayer) -> UnsupportedForm:
    return UnsupportedForm(
        f"the model class has no linear module of shape {list(layer.query.tensor.shape)} for the queries of layer "
        f"{layer.index}, so no adapter can hold the edit",
        where=name,
        remedy=_REMEDY,
    )


def _empty_model(checkpoint: Checkpoint) -> Any | None:
    """Build the checkpoint's model without weights; return None if that would run the checkpoint's own code."""
    import torch
    import transformers as library

    name = checkpoint.files.name
    if checkpoint.config.get("auto_map") and not _is_known(checkpoint.model_type):
        return None
    reason = "none accepts its config"
    try:
        # In a separate directory: in a hub cache the file's name would be its hash.
        with TemporaryDirectory() as directory:
            (Path(directory) / CONFIG_FILE).write_text(json.dumps(checkpoint.config))
            config = from_pretrained(library.AutoConfig, directory, where=name)
        for kind, known in (
            (library.AutoModelForImageTextToText, library.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
            (library.AutoModelForCausalLM, library.MODEL_FOR_CAUSAL_LM_MAPPING),
        ):
            if type(config) in known:
                with torch.device("meta"):
                    return kind.from_config(config, attn_implementation="eager")
    except QkeditError:
        raise
    except Exception as error:  # transformers fails on a config in many ways, which all mean the same
        reason = first_sentence(error)
    raise UnsupportedForm(
        f"transformers has no model class for it that would give the module names of an adapter ({reason})",
        where=name,
        remedy=_REMEDY,
    )


def _is_known(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING
