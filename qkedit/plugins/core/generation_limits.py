"""Settings of `generate` that plug-ins that act on decoding do not support."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from qkedit.errors import UsageError
from qkedit.plugins.core.decoding import Generation

# By setting: the values that are refused, and the reason.
_LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_beams": (lambda value: value > 1, "beam search reorders the rows of a batch"),
    "do_sample": (bool, "its search does not sample; ask for temperature 0"),
    "return_dict_in_generate": (bool, "its search returns tokens alone"),
    "num_return_sequences": (lambda value: value > 1, "it follows one answer per prompt"),
    "prefill_chunk_size": (bool, "it needs the whole prompt at once"),
    "cache_implementation": (lambda value: "static" in str(value), "compiled steps bypass it"),
    "assistant_model": (lambda value: value is not None, "draft tokens may be rejected"),
    "prompt_lookup_num_tokens": (bool, "draft tokens may be rejected"),
    "custom_generate": (lambda value: value is not None, "another decoding loop may remove tokens"),
    "past_key_values": (lambda value: value is not None, "it does not know the tokens in the cache"),
    "inputs_embeds": (lambda value: value is not None, "it needs the prompt's tokens"),
    "use_cache": (lambda value: value is False, "it needs a cache"),
}
# Settings that change which tokens a forward pass processes, or that hide the pass.
OF_EVERY_STEP = (
    "prefill_chunk_size", "cache_implementation", "assistant_model", "prompt_lookup_num_tokens", "custom_generate",
)  # fmt: skip
# All settings that a branch does not support.
OF_A_BRANCH = (*OF_EVERY_STEP, "num_beams", "num_return_sequences", "past_key_values", "inputs_embeds", "use_cache")


def refuse_settings(generation: Generation, settings: Iterable[str], plugin: str) -> None:
    """Refuse a call of `generate` that uses one of these settings.

    Raises:
        UsageError: it does; the message names the setting and the plug-in.
    """
    for name in settings:
        is_refused, reason = _LIMITS[name]
        value = generation.setting(name)
        if value is not None and is_refused(value):
            raise UsageError(f"{plugin} cannot act: {reason}", where=name, remedy="leave this setting out")


def refuse_own_search(plugins: Iterable[Any], purpose: str) -> None:
    """Refuse plug-ins whose class says, by `own_search`, that they search for answers by a loop of their own.

    Such a search exchanges and takes back tokens, so its forward passes are not those of the answer's tokens.

    Args:
        plugins: the plug-ins' settings.
        purpose: the measurement that needs the forward pass of each token, for the message.

    Raises:
        UsageError: there is such a plug-in.
    """
    for plugin in plugins:
        if getattr(plugin, "own_search", False):
            raise UsageError(
                f"{purpose} follows an answer token by token, and its search takes tokens back",
                where=plugin.name,
                remedy=f"compare its answers by `qkedit eval --plugin {plugin.name}`",
            )
