"""Read the rotary positions of a layer's heads from the config and the decoder's record.

The frequencies equal those of transformers for the rotary types `default`, `linear`, `dynamic`, `llama3`, `yarn`,
`longrope` and `proportional`, within the length that the model was trained for. The factor by which `yarn` and
`longrope` scale every logit is left out, as is `1/√d_h`: both scale all singular values alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.architecture.library import architectures
from qkedit.checkpoint.architecture.schema import Decoder, Rotation
from qkedit.checkpoint.architecture.text_config import TextConfig
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.errors import CheckpointError, UnsupportedForm, UsageError
from qkedit.spectral.rotary import RotaryPositions

# The default base of the config classes, as in the first rotary models.
DEFAULT_BASE = 10_000.0
# No model has a longer context; beyond it the angles would lose their digits.
MAX_OFFSET = 10_000_000


def rotary_positions(checkpoint: Checkpoint, decoder_name: str, layer: AttentionLayer) -> RotaryPositions | None:
    """Return the rotation of the heads of `layer`; None for a layer without positions.

    Args:
        checkpoint: the checkpoint that has the config.
        decoder_name: the name of the language model's record (`AttentionStack.decoder`).
        layer: one of its layers.

    Raises:
        UnsupportedForm: no record describes the layer's positions, or the rotary type is unknown.
        CheckpointError: the numbers in the config do not fit the head.
    """
    if layer.rope is Rotation.NONE:
        return None
    decoder = architectures().decoders.get(decoder_name)
    if decoder is None or layer.rope is Rotation.UNKNOWN:
        raise UnsupportedForm(
            "no record describes this model's rotary positions",
            where=checkpoint.files.name,
            remedy="inspect it without --offset, or describe them in a record, as docs/adding-a-model.md shows",
        )
    return _positions(decoder, checkpoint.text_config, layer)


def _positions(decoder: Decoder, text_config: dict[str, Any], layer: AttentionLayer) -> RotaryPositions:
    values = TextConfig.of(decoder, text_config).for_layer(layer.index).values
    parameters = _parameters(values, layer.index)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    frequencies_of = _FREQUENCIES.get("default" if kind == "mrope" else kind)
    if frequencies_of is None:
        raise UnsupportedForm(
            f"the rotary type {kind!r} is unknown",
            where="config.json",
            remedy="inspect the model without --offset",
        )
    try:
        frequencies = frequencies_of(parameters, values, layer.head_size)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(
            f"the rotary settings of type {kind!r} cannot be read ({type(error).__name__}: {error})",
            where="config.json",
            remedy="correct them, or inspect the model without --offset",
        ) from error
    return RotaryPositions(
        layer.head_size,
        tuple(frequencies),
        adjacent=layer.rope.is_interleaved,
        axes=_axes(parameters, values, len(frequencies)) if layer.rope.is_multimodal else (),
    )


def _parameters(values: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the layer's rotary settings as one mapping, in whichever form the config has them."""
    found = values.get("rope_parameters") or values.get("rope_scaling") or {}
    parameters: dict[str, Any] = dict(found) if isinstance(found, dict) else {}
    kinds = values.get("layer_types")
    if isinstance(kinds, list) and index < len(kinds) and isinstance(parameters.get(kinds[index]), dict):
        parameters = dict(parameters[kinds[index]])
    elif values.get("rope_local_base_freq") is not None and _is_sliding(values, index):
        # Gemma 3 as first published: sliding layers have their own base and no scaling.
        parameters = {"rope_theta": values["rope_local_base_freq"]}
    for name, default in (("rope_theta", DEFAULT_BASE), ("partial_rotary_factor", 1.0)):
        if parameters.get(name) is None:
            parameters[name] = default if values.get(name) is None else values[name]
    return parameters


def _is_sliding(values: dict[str, Any], index: int) -> bool:
    kinds, period = values.get("layer_types"), values.get("sliding_window_pattern")
    if isinstance(kinds, list) and index < len(kinds):
        return bool(kinds[index] == "sliding_attention")
    return isinstance(period, int) and period > 0 and (index + 1) % period != 0


def _axes(parameters: dict[str, Any], values: dict[str, Any], pairs: int) -> tuple[int, ...]:
    """Return for each pair the axis that turns it: time, row or column."""

    def setting(name: str) -> Any:
        return parameters[name] if name in parameters else values.get(name)

    sections = setting("mrope_section")
    well_formed = isinstance(sections, list | tuple) and all(isinstance(size, int) and size >= 0 for size in sections)
    if not well_formed or len(sections) < 3 or sum(sections) != pairs:
        raise CheckpointError(
            f"mrope_section {sections!a} does not add up to the {pairs} rotated pairs of a head",
            where="config.json",
            remedy="correct it, or inspect the model without --offset",
        )
    if setting("mrope_rows_and_columns_first"):
        # ERNIE-4.5-VL: row and column alternate, the remaining pairs are time; its sections are in that order.
        spatial = sections[0] + sections[1]
        return tuple(1 + pair % 2 if pair < spatial else 0 for pair in range(pairs))
    if setting("mrope_interleaved"):
        # Qwen3-VL: time, row, column in turn, until an axis has as many pairs as its section; the rest is time.
        return tuple(
            axis if (axis := pair % 3) and pair < 3 * sections[axis] else 0  # axis 0 is time either way
            for pair in range(pairs)
        )
    return tuple(part % 3 for part, size in enumerate(sections) for _ in range(size))


def _default(parameters: dict[str, Any], values: dict[str, Any], head_size: int) -> list[float]:
    rotated = int(head_size * parameters["partial_rotary_factor"])
    return [parameters["rope_theta"] ** (-2 * pair / rotated) for pair in range(rotated // 2)]


def _linear(parameters: dict[str, Any], values: dict[str, Any], head_size: int) -> list[float]:
    return [frequency / parameters["factor"] for frequency in _default(parameters, values, head_size)]


def _llama3(parameters: dict[str, Any], values: dict[str, Any], head_size: int) -> list[float]:
    """Llama 3.1: long waves are stretched, short waves are kept, and those in between are blended."""
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    factor, length = parameters["factor"], parameters["original_max_position_embeddings"]

    def scaled(frequency: float) -> float:
        turns = length * frequency / (2 * math.pi)  # full turns within the trained length
        if turns > high:
            return frequency
        if turns < low:
            return frequency / factor
        share = (turns - low) / (high - low)
        return (1 - share) * frequency / factor + share * frequency

    return [scaled(frequency) for frequency in _default(parameters, values, head_size)]


def _yarn(parameters: dict[str, Any], values: dict[str, Any], head_size: int) -> list[float]:
    """YaRN (arXiv 2309.00071): from kept to stretched along a ramp over the pairs."""
    length = parameters.get("original_max_position_embeddings") or values["max_position_embeddings"]
    factor = parameters.get("factor") or values["max_position_embeddings"] / length
    rotated, base = int(head_size * parameters["partial_rotary_factor"]), parameters["rope_theta"]

    def pair_of(turns: float) -> float:
        """Return the (fractional) pair that makes this many turns within the trained length."""
        return rotated * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_of(parameters.get("beta_fast") or 32), pair_of(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotated - 1)
    width = (last - first) or 0.001

    def scaled(pair: int, frequency: float) -> float:
        stretched = min(max((pair - first) / width, 0.0), 1.0)
        return frequency / factor * stretched + frequency * (1 - stretched)

    return [scaled(pair, frequency) for pair, frequency in enumerate(_default(parameters, values, head_size))]


def _longrope(parameters: dict[str, Any], values: dict[str, Any], head_size: int) -> list[float]:
    """LongRoPE (arXiv 2402.13753), within the length the model was trained for."""
    frequencies = _default(parameters, values, head_size)
    return [frequency / stretch for frequency, stretch in zip(frequencies, parameters["short_factor"], strict=True)]


def _proportional(parameters: dict[str, Any], values: dict[str, Any], head_size: int) -> list[float]:
    """Gemma 4: a first share of the pairs rotates; the other pairs have frequency 0."""
    turning = int(parameters["partial_rotary_factor"] * head_size // 2)
    base, factor = parameters["rope_theta"], parameters.get("factor") or 1.0
    return [base ** (-2 * pair / head_size) / factor if pair < turning else 0.0 for pair in range(head_size // 2)]


_FREQUENCIES: dict[str, Callable[[dict[str, Any], dict[str, Any], int], list[float]]] = {
    "default": _default,
    "dynamic": _default,  # it stretches only beyond the trained length
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}


def parse_offset(text: str) -> tuple[int, int, int]:
    """Return the offset given as `5` (the same in every part) or `0,3,-2` (temporal, height, width).

    Raises:
        UsageError: the text is neither.
    """
    parts = text.split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or any(abs(number) > MAX_OFFSET for number in numbers):
        raise UsageError(
            f"{text!r} is not an offset",
            where="offset",
            remedy="write 5, or 0,3,-2 for the temporal, height and width parts",
        )
    temporal, height, width = numbers * (3 // len(numbers))
    return temporal, height, width
