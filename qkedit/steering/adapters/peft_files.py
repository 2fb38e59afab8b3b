"""The files of a LoRA adapter, as PEFT and vLLM read them: names of tensors, the config, and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qkedit.strict_text import json_text

# What both put before the path of a module.
_PREFIX = "base_model.model."
# What vLLM takes as `--max-lora-rank`; it makes room for this rank once, and an adapter may have any smaller one.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def factor_names(module: str) -> tuple[str, str]:
    """Return the names of `A` `[r, D]` and `B` `[rows, r]` of a module in the adapter's tensor file."""
    return f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"


def vllm_rank(rank: int) -> int | None:
    """Return the smallest `--max-lora-rank` of vLLM that holds an adapter of this rank; None where none does."""
    return next((held for held in VLLM_RANKS if held >= rank), None)


def adapter_config(model: str, revision: str | None, ranks: Mapping[str, int]) -> bytes:
    """Return `adapter_config.json`.

    The scaling `lora_alpha / r` is 1 in every layer, so that `B A` is the change itself. A layer of a smaller rank
    stands in `rank_pattern` and `alpha_pattern`. vLLM reads neither: it takes the rank from the tensors, and the
    scaling from `r` and `lora_alpha`, which is 1 as well.

    Args:
        model: the base: a hub id, `demo`, or the name alone of a directory.
        revision: of a base on the hub.
        ranks: of each module, by its path.
    """
    rank = max(ranks.values())
    smaller = {module: own for module, own in ranks.items() if own < rank}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": model,
        "revision": revision,
        "r": rank,
        "lora_alpha": rank,
        # Whole paths: a name alone, such as q_proj, would take in layers that are not edited, and those of the vision
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
    return json_text(config, indent=2).encode()
