"""Find the rows of each query head and key head from headers, config and records alone.

It uses the names on disk, so models with remote code, or without code yet, are supported too. Head counts come
from the config (or the defaults of its config class) and are then checked against the shapes; a disagreement is an
error, never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from qkedit.checkpoint.architecture.heads import AttentionLayer, AttentionStack, InputGain, SkippedLayer
from qkedit.checkpoint.architecture.library import architectures
from qkedit.checkpoint.architecture.mlx import stored_by_mlx
from qkedit.checkpoint.architecture.projections import (
    FLOAT_DTYPES,
    QUERY_OR_KEY_NORM,
    Projections,
    understand_layer,
)
from qkedit.checkpoint.architecture.schema import Decoder, Family, NormKind, ProjectionLayout, Rotation
from qkedit.checkpoint.architecture.text_config import TextConfig
from qkedit.checkpoint.architecture.unsupported import (
    ADD_A_RECORD,
    refuse_encoder_decoder,
    refuse_recorded_forms,
    refuse_text_only,
    unknown_layout,
)
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.errors import CheckpointError, UnsupportedForm

# The decoder assumed for a model without a record; its names and shapes must confirm it.
UNKNOWN_DECODER = Decoder(name="unknown", layouts=("separate",), rope=Rotation.UNKNOWN, model_types=())
# Modules that are in every layer, so they do not explain why a layer has no self-attention.
COMMON_MODULE = re.compile(r"norm|mlp|feed_forward|experts|router")


@dataclass(frozen=True)
class _Module:
    """The attention module of one layer: its path on disk, and its tensors by their names in the module."""

    path: str
    tensors: dict[str, TensorEntry]


def attention_layers(checkpoint: Checkpoint, *, allow_text_only: bool = False) -> tuple[AttentionLayer, ...]:
    """Return every text self-attention layer that can be edited, by index.

    Raises:
        UnsupportedForm: with the reason; for text-only checkpoints too, unless `allow_text_only`.
    """
    return attention_stack(checkpoint, allow_text_only=allow_text_only).layers


def attention_stack(checkpoint: Checkpoint, *, allow_text_only: bool = False) -> AttentionStack:
    """Return a checkpoint's language model: its layers with a query-key product, and the others.

    Raises:
        UnsupportedForm: with the reason; for text-only checkpoints too, unless `allow_text_only`.
    """
    if not allow_text_only:
        refuse_text_only(checkpoint)
    refuse_encoder_decoder(checkpoint)
    refuse_recorded_forms(checkpoint)
    family = _family(checkpoint)
    decoder = architectures().decoder_of(_decoder_type(checkpoint, family)) or UNKNOWN_DECODER
    layout, modules = _attention_modules(checkpoint, decoder)
    settings = TextConfig.of(decoder, checkpoint.text_config)
    contents = _layer_contents(checkpoint, modules)
    layer_count = _checked_layer_count(settings, contents)
    _refuse_norms_beside(contents, modules)
    by_mlx = stored_by_mlx(checkpoint)
    layers, skipped = [], []
    # Heads for multi-token prediction may be stored as layers after the last one; loaders ignore them.
    for index in range(layer_count):
        if index not in modules:
            skipped.append(SkippedLayer(index, _why_no_attention(contents[index])))
        elif settings.shares_keys(index, layer_count):
            skipped.append(SkippedLayer(index, "reads the keys of an earlier layer"))
        else:
            projections = Projections(index, layout, modules[index].tensors, settings.for_layer(index), by_mlx)
            layer = understand_layer(projections)
            layers.append(replace(layer, input_gain=_input_gain(checkpoint, decoder, modules[index], layer, by_mlx)))
    said = (
        _without_record(checkpoint, family, decoder, layers),
        _by_foreign_records(checkpoint, family, decoder, layout, modules),
    )
    return AttentionStack(
        family=family.name if family else "unknown",
        decoder=decoder.name,
        layer_count=layer_count,
        layers=tuple(layers),
        skipped=tuple(skipped),
        understood_as="; ".join(filter(None, said)) or None,
    )


def _family(checkpoint: Checkpoint) -> Family | None:
    vision = checkpoint.config.get("vision_config")
    vision_type = vision.get("model_type") if isinstance(vision, dict) else None
    for family in sorted(architectures().families.values(), key=lambda family: (family.vision is None, family.name)):
        if checkpoint.model_type in family.model_types and family.vision in (None, vision_type):
            return family
    return None


def _decoder_type(checkpoint: Checkpoint, family: Family | None) -> str:
    """Return the language model's `model_type`; a flat config has only that of the family."""
    nested = checkpoint.text_config is not checkpoint.config
    named = checkpoint.text_config.get("model_type") if nested else None
    return str(named or (family.decoder if family else checkpoint.model_type))


def _attention_modules(checkpoint: Checkpoint, decoder: Decoder) -> tuple[ProjectionLayout, dict[int, _Module]]:
    """Return the decoder's first layout that matches the headers, and the module with queries of each layer."""
    for name in decoder.layouts:
        layout = architectures().layouts[name]
        modules = _modules_of(checkpoint, layout)
        if modules:
            return layout, modules
    raise unknown_layout(checkpoint)


def _modules_of(checkpoint: Checkpoint, layout: ProjectionLayout) -> dict[int, _Module]:
    pattern = re.compile(rf"(?P<module>{layout.attention.pattern})\.(?P<tensor>.+)")
    modules: dict[int, _Module] = {}
    for name, entry in checkpoint.tensors.items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        index = int(match["layer"])
        module = modules.setdefault(index, _Module(match["module"], {}))
        if module.path != match["module"]:
            raise UnsupportedForm(
                f"layer {index} of the language model occurs twice, as {module.path} and {match['module']}",
                where=checkpoint.files.name,
                remedy=ADD_A_RECORD,
            )
        module.tensors[match["tensor"]] = entry
    query = f"{layout.query.tensor}.weight"
    return {index: module for index, module in modules.items() if query in module.tensors}


def _input_gain(
    checkpoint: Checkpoint, decoder: Decoder, module: _Module, layer: AttentionLayer, by_mlx: bool
) -> InputGain | None:
    """Return the gain of the norm before the projections; None if no record names it, or it is not stored so."""
    record = decoder.input_norm
    if record is None:
        return None
    kind = record.mlx if by_mlx and record.kind is NormKind.ONE_PLUS_RMS else record.kind
    entry = checkpoint.tensors.get(f"{module.path.rpartition('.')[0]}.{record.tensor}.weight")
    if kind is None or entry is None or entry.shape != layer.query.tensor.shape[1:]:
        return None
    return InputGain(kind, entry) if entry.dtype in FLOAT_DTYPES else None


def _layer_contents(checkpoint: Checkpoint, modules: dict[int, _Module]) -> dict[int, set[str]]:
    """Return the names of the modules in each layer of the language model."""
    index, module = next(iter(modules.items()))
    # "model.layers.3.self_attn" → "model.layers."
    path = module.path.rpartition(f".{index}.")[0] + "."
    contents: dict[int, set[str]] = {}
    for name in checkpoint.tensors:
        number, _, rest = name.removeprefix(path).partition(".")
        if name.startswith(path) and number.isdecimal():
            contents.setdefault(int(number), set()).add(rest.split(".")[0])
    return contents


def _refuse_norms_beside(contents: dict[int, set[str]], modules: dict[int, _Module]) -> None:
    """Raise UnsupportedForm for a norm of queries or keys that is stored next to its attention module."""
    for index, module in modules.items():
        for name in sorted(contents[index]):
            if QUERY_OR_KEY_NORM.match(f"{name}."):
                raise UnsupportedForm(
                    f"{name} is next to the attention block, and no record says how it normalises queries or keys",
                    where=f"layer {index}, {module.path}",
                    remedy=ADD_A_RECORD,
                )


def _checked_layer_count(settings: TextConfig, contents: dict[int, set[str]]) -> int:
    layer_count = settings.count("num_hidden_layers")
    missing = next((index for index in range(layer_count) if index not in contents), None)
    if missing is not None:
        raise CheckpointError(
            f"num_hidden_layers is {layer_count}, but the shards do not hold layer {missing}",
            where="config.json",
            remedy="download the config and the shards again, from the same revision",
        )
    return layer_count


def _by_foreign_records(
    checkpoint: Checkpoint,
    family: Family | None,
    decoder: Decoder,
    layout: ProjectionLayout,
    modules: dict[int, _Module],
) -> str | None:
    """Return the sentence about records of users or packages that were used; None if only qkedit's own were."""
    known = architectures()
    tensors = {name for module in modules.values() for name in module.tensors}
    explanations = [one for one in known.explanations if any(one.tensor.fullmatch(name) for name in tensors)]
    origins = [known.origin(record) for record in (family, decoder, layout, *explanations) if record is not None]
    foreign = sorted({origin.identity for origin in origins if origin is not None and not origin.is_shipped})
    if not foreign:
        return None
    several = "a record that does" if len(foreign) == 1 else "records that do"
    return f"{checkpoint.model_type or 'the model'} is read by {several} not come with qkedit: {', '.join(foreign)}"


def _without_record(
    checkpoint: Checkpoint, family: Family | None, decoder: Decoder, layers: list[AttentionLayer]
) -> str | None:
    """Return the sentence about a model that no record names; None for a model that a record names."""
    known_decoder = decoder is not UNKNOWN_DECODER
    if known_decoder and (family is not None or architectures().decoder_of(checkpoint.model_type)):
        return None
    # Without a record a norm is refused, so there is none to mention.
    norm = layers[0].norm_kind if layers else None
    taken_for = f"{decoder.name} ({norm or 'no'} norm)" if known_decoder else "plain projections without norms"
    return (
        f"{checkpoint.model_type or 'a model without a model type'} is not a known family: understood as {taken_for}; "
        "compare `qkedit models CHECKPOINT` with the model's own code"
    )


def _why_no_attention(modules: set[str]) -> str:
    instead = sorted(module for module in modules if not COMMON_MODULE.search(module))
    return f"has no self-attention, but {', '.join(instead)}" if instead else "has no self-attention"
