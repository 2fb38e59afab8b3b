"""Compare what a config describes with what is stored, before a model of the wrong size fills the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qkedit.errors import QkeditError

# Bytes a parameter takes at the least, in any quantisation that is loaded: two bits.
_FEWEST_BYTES = 0.25


def refuse_much_larger(config: Any, directory: Path, *, where: str, trust_remote_code: bool = False) -> None:
    """Refuse a config that describes far more parameters than the weights can hold.

    transformers fills what is missing with random numbers: a config that lost its `text_config` describes a language
    model of seven billion parameters by default, whatever lies next to it.

    Args:
        config: as `AutoConfig` loads it.
        directory: the model's files.
        where: what to call the model in an error.
        trust_remote_code: whether Python code of the model's own may run.

    Raises:
        QkeditError: the weights are too few bytes for such a model.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    stored = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    except Exception:  # whatever is wrong with the config, loading it says so
        return
    described = sum(parameter.numel() for parameter in model.parameters())
    if stored < described * _FEWEST_BYTES:
        raise QkeditError(
            f"config.json describes {described:.2g} parameters, and the weights have {stored:,} bytes",
            where=where,
            remedy="fetch config.json and the weights again, from the same place",
        )
