"""The files of a LoRA adapter in the format of PEFT and vLLM: tensor names, the config, and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qkedit.strict_text import json_text, parse_json

# PEFT and vLLM both put this prefix before a module's path.
_PREFIX = "base_model.model."
# Without these, PEFT uses its own defaults.
_NEEDED = ("peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern")
# Values that vLLM accepts for `--max-lora-rank`; it allocates for this rank, and an adapter may have a smaller one.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def factor_names(module: str) -> tuple[str, str]:
    """Return the names of `A` `[r, D]` and `B` `[rows, r]` of a module in the adapter's tensor file."""
    return f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"


def vllm_rank(rank: int) -> int | None:
    """Return the smallest `--max-lora-rank` of vLLM that holds an adapter of this rank; None where none does."""
    return next((held for held in VLLM_RANKS if held >= rank), None)


def adapter_config(model: str, revision: str | None, ranks: Mapping[str, int]) -> bytes:
    """Return `adapter_config.json`; the arguments are those of `config_fields`."""
    return json_text(config_fields(model, revision, ranks), indent=2).encode()


def config_fields(model: str, revision: str | None, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the content of `adapter_config.json`.

    The scaling `lora_alpha / r` is 1 in every layer, so that `B A` is the change itself. A layer of a smaller rank
    is listed in `rank_pattern` and `alpha_pattern`. vLLM reads neither: it takes the rank from the tensors, and the
    scaling from `r` and `lora_alpha`, which is 1 as well.

    Args:
        model: the base: a hub id, `demo`, or the name of a directory without its path.
        revision: the commit of a base on the hub.
        ranks: the rank of each module, by its path.
    """
    rank = max(ranks.values())
    smaller = {module: own for module, own in ranks.items() if own < rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": model,
        "revision": revision,
        "r": rank,
        "lora_alpha": rank,
        # Whole paths: a name alone, such as q_proj, would also match layers that are not edited, and the vision
        # tower.
        "target_modules": list(ranks),
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def strange_settings(content: bytes, expected: Mapping[str, Any]) -> list[str]:
    """Return the settings of an adapter's config that would make PEFT add another change than `B A`.

    A missing setting changes nothing, nor does one of a later PEFT that is off.

    Args:
        content: the bytes of `adapter_config.json`.
        expected: the fields that it should hold; see `config_fields`.

    Raises:
        ValueError: the content is not JSON, or not an object.
    """
    found = parse_json(content)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    strange = []
    for name in sorted(expected.keys() | found.keys()):
        value, wanted = found.get(name), expected.get(name)
        if isinstance(value, list) and isinstance(wanted, list):
            value, wanted = sorted(map(str, value)), sorted(wanted)
        optional = name not in _NEEDED and (name not in found or not (value or wanted))
        # 1 equals True in Python, but not in a config.
        if (value != wanted or type(value) is not type(wanted)) and not optional:
            strange.append(name)
    return strange
