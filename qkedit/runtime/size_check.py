"""Compare a config with the stored weights, before a model of the wrong size fills the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from qkedit.checkpoint.io.header import read_header
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.errors import QkeditError

# The minimum number of bytes per parameter in any supported quantisation: two bits.
_FEWEST_BYTES = 0.25
_REMEDY = "fetch config.json and the weights again, from the same place"
# How configs count what becomes modules, each with a tensor of its own at the least.
_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth", "num_experts", "num_local_experts")


def refuse_much_larger(config: Any, directory: Path, *, where: str, trust_remote_code: bool = False) -> None:
    """Refuse a config that describes far more parameters than the weights can hold.

    transformers fills missing weights with random numbers: a config without its `text_config` describes by default a
    language model of seven billion parameters, whatever the weights.

    Args:
        config: the config from `AutoConfig`.
        directory: the directory of the model's files.
        where: the name of the model in an error.
        trust_remote_code: whether the model's own Python code may run.

    Raises:
        QkeditError: the weights have too few bytes for the model, or too few tensors for its layers.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    # First of all: to build a million layers, even without memory for them, takes hours.
    most, tensors = max(_counts(config.to_dict()), default=0), _tensors_in(directory)
    if most > tensors:
        raise QkeditError(
            f"config.json describes {most:,} layers or experts, and the weights have {tensors:,} tensors",
            where=where,
            remedy=_REMEDY,
        )
    stored = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    except Exception:  # loading the config will report any fault in it
        return
    described = sum(parameter.numel() for parameter in model.parameters())
    if stored < described * _FEWEST_BYTES:
        raise QkeditError(
            f"config.json describes {described:.2g} parameters, and the weights have {stored:,} bytes",
            where=where,
            remedy=_REMEDY,
        )


def _counts(config: Any) -> Iterator[int]:
    """Yield every count of layers or experts in a config and its parts."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _counts(value)
        elif key in _COUNTS and isinstance(value, int):
            yield value


def _tensors_in(directory: Path) -> int:
    """Return the number of tensors in the weights; a file that cannot be read has none."""
    files, count = LocalFiles(directory, follows_links=True), 0
    for file, size in files.sizes().items():
        if file.endswith(".safetensors"):
            with suppress(QkeditError):  # loading says what is wrong with it
                count += len(read_header(partial(files.read, file), size, file).tensors)
    return count
