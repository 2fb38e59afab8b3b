"""Undo the rotation of keys by position in one step of vLLM: its own module rotates them again.

A layer's rotary module is called just before its attention, with the keys before their rotation. A mix of those goes
through it at the same positions, so nothing here depends on the kind of rotary embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qkedit.errors import UnsupportedForm
from qkedit.integrations.vllm.prompts import PromptBatch
from qkedit.plugins.core.modules import VLMModules


@dataclass(frozen=True)
class StepRotation:
    """The rotation of the tokens of some grids in the layer that runs now; see `Rotation`.

    Attributes:
        rotary: the rotary module.
        positions: of all tokens of the step, as the module was given them.
        unrotated: the keys of all tokens before their rotation, `[tokens, H_kv, d]`.
        places: the place of each token of the grids in the step's row, `[G, N]`.
    """

    rotary: Any
    positions: Tensor
    unrotated: Tensor
    places: Tensor

    def back(self, states: Tensor) -> Tensor:
        """Return the keys as they were before their rotation; `states` must be those that the layer has cached."""
        return self.unrotated[self.places].float()

    def forth(self, states: Tensor) -> Tensor:
        """Rotate `[G, N, H_kv, d]` as the layer does, in its own precision."""
        keys = self.unrotated.clone()
        keys[self.places] = states.to(keys.dtype)
        # The module may rotate both of its inputs in place.
        _, rotated = self.rotary.forward(self.positions, keys.flatten(1).clone(), keys.flatten(1))
        return rotated.view(keys.shape)[self.places].float()


class StepRotations:
    """The rotations of one step; see `KeyRotations`.

    Args:
        parts: the modules of vLLM's model.
        prompts: the prompts of the step.
        layers: the layers whose keys are edited.

    Raises:
        UnsupportedForm: a layer has no rotary module.
    """

    entered_layers: frozenset[int] = frozenset()

    def __init__(self, parts: VLMModules, prompts: PromptBatch, layers: Iterable[int]) -> None:
        self._prompts = prompts
        every: list[Any] = list(parts.layers)
        self._attentions = {layer: every[layer].self_attn for layer in layers}
        for layer, attention in self._attentions.items():
            if not hasattr(attention, "rotary_emb"):
                raise UnsupportedForm(
                    f"layer {layer} has no rotary embedding that is known",
                    where="dscr space",
                    remedy="mix the keys in the form of the cache (space=cache)",
                )
        self._last: tuple[Tensor, Tensor] | None = None

    def see(self, layer: int, arguments: Mapping[str, Any]) -> None:
        """Do nothing: the rotary module is watched instead."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the keys that go into a rotary module, until the next layer calls its own."""

        def before(module: Any, arguments: tuple[Tensor, Tensor, Tensor]) -> None:
            positions, _, keys = arguments
            self._last = positions, keys.clone()

        with ExitStack() as hooks:
            # Layers usually share one module.
            for module in {id(one.rotary_emb): one.rotary_emb for one in self._attentions.values()}.values():
                hooks.callback(module.register_forward_pre_hook(before).remove)
            yield

    def of(self, layer: int, rows: Tensor, columns: Tensor) -> StepRotation:
        """Return the rotation of chosen tokens in the layer that runs now."""
        assert self._last is not None, "the layer did not rotate its keys"
        positions, keys = self._last
        attention = self._attentions[layer]
        unrotated = keys.reshape(len(keys), -1, attention.attn.head_size)
        places = self._prompts.places.to(columns.device)[rows[:, None], columns]
        return StepRotation(attention.rotary_emb, positions, unrotated, places)
