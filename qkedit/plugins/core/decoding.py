"""A call of `generate`, as plug-ins that act on decoding see it, and what they may add to it."""

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
    """What one plug-in does while one call of `generate` decodes; subclasses override what they need.

    The state of a request belongs here, not to the plug-in: several requests may be under way.
    """

    def logits_processors(self) -> Sequence[Any]:
        """Return transformers' logits processors, which run before those of the caller, so that
        a constraint of the caller's holds."""
        return ()

    def arguments(self) -> Mapping[str, Any]:
        """Return further arguments of `generate`, such as `custom_generate`; none that the caller sets."""
        return {}

    def report(self) -> PluginReport:
        """Return what was done; called when the answer is complete."""
        return PluginReport()
