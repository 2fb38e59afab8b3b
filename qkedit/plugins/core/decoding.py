"""A call of `generate` for plug-ins that act on decoding, and what they may add to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.report import PluginReport


@dataclass(frozen=True)
class Generation:
    """One call of `generate` before it runs.

    Attributes:
        modules: the model's modules.
        inputs: the call's arguments by name: `input_ids` `[batch, length]`, `pixel_values`, `max_new_tokens`, …
    """

    modules: VLMModules
    inputs: Mapping[str, Any]


class DecodingEdit:
    """One plug-in's actions during one call of `generate`; subclasses override what they need.

    The state of a request belongs here, not in the plug-in, since several requests may run concurrently.
    """

    def logits_processors(self) -> Sequence[Any]:
        """Return logits processors of transformers. They run before those of the caller, so that the
        caller's constraints hold."""
        return ()

    def arguments(self) -> Mapping[str, Any]:
        """Return further arguments of `generate`, such as `custom_generate`, which the caller must not have set."""
        return {}

    def report(self) -> PluginReport:
        """Return a report on this call, when the answer is complete."""
        return PluginReport()
