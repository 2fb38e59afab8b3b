"""Our model classes: a mix-in over vLLM's own class of each family. vLLM imports them by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qkedit.integrations.vllm.binding import forward_with_plugins
from qkedit.integrations.vllm.families import ARCHITECTURES, PREFIX
from qkedit.integrations.vllm.hashed_images import FIELD, hashing


class PluginModel:
    """A mix-in for vLLM's class of a vision-language model."""

    qkedit_plugins: Any = None

    def forward(
        self,
        input_ids: Any,
        positions: Any,
        intermediate_tensors: Any = None,
        inputs_embeds: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run one step, with the plug-ins if they are bound."""
        usual = super().forward  # type: ignore[misc]  # of vLLM's class
        rest = {"intermediate_tensors": intermediate_tensors, **kwargs}
        return forward_with_plugins(self, usual, input_ids, positions, inputs_embeds, rest)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Encode images, without their hashes, which are for plug-ins."""
        kwargs.pop(FIELD, None)
        return super().embed_multimodal(**kwargs)  # type: ignore[misc]


def __getattr__(name: str) -> Any:
    """Return our class of a name; it is made at the first call, since only then vLLM is imported."""
    known = name.removeprefix(PREFIX)
    if name == known or known not in ARCHITECTURES.values():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm.model_executor.models import ModelRegistry

    base = ModelRegistry.models[known].load_model_cls()
    made = type(name, (PluginModel, base), {"__module__": __name__, "__doc__": f"{known} with plug-ins."})
    factories = base._processor_factory
    made._processor_factory = replace(factories, processor=hashing(factories.processor))  # type: ignore[attr-defined]
    globals()[name] = made
    return made
