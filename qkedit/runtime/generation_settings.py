"""Check a model's generation settings before they are used.

transformers reads generation_config.json without checking most values, and fails later, deep in `generate`.
"""

from __future__ import annotations

from typing import Any

from qkedit.errors import QkeditError

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_COUNTS = (
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "num_beams",
    "num_return_sequences",
    "top_k",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
)
_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "length_penalty",
    "guidance_scale",
    "max_time",
)
_FLAGS = ("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values")


def check_generation_settings(settings: Any, where: str) -> None:
    """Check the types of a model's `generation_config`; `where` names the model.

    Raises:
        QkeditError: a value has the wrong type for its setting.
    """
    for names, is_right, kind in (
        (_TOKENS, _is_tokens, "a token id or a list of them"),
        (_COUNTS, _is_count, "a whole number"),
        (_NUMBERS, _is_number, "a number"),
        (_FLAGS, _is_flag, "true or false"),
    ):
        for name in names:
            value = getattr(settings, name, None)
            if value is not None and not is_right(value):
                raise QkeditError(
                    f"{name} of its generation settings is {value!a:.100}, not {kind}",
                    where=where,
                    remedy="correct generation_config.json",
                )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_tokens(value: object) -> bool:
    return all(map(_is_count, value)) if isinstance(value, list) else _is_count(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)
