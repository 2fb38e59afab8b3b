"""The two stages of training: first the vision tower with patch labels, then the language model with text."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from demo_training.attention import PACKED
from demo_training.checkpoint import SIZES, fast_tokenizer
from demo_training.data import IGNORED, Packer, RenderedScenes, patch_labels, pixel_values
from demo_training.spectra import initialise, projections


@dataclass(frozen=True)
class Settings:
    """All settings that determine the result on a machine.

    Attributes:
        seed: the seed of the weights, of the order of the data, and of the scenes.
        scenes: the number of training scenes.
        vision_steps, vision_batch, vision_rate: steps, scenes per step and learning rate of the first stage.
        language_steps, language_batch, language_rate: the same of the second; rates are the peaks of a warm-up and a
            cosine.
        world: the world of the scenes, which also has the sizes of its model.
        language_fall: the share of the second stage's last steps in which its rate falls, in a straight line; 1 for
            the cosine. Before the fall, a step depends on neither, so that a run can be made shorter or longer.
        qk_std: the standard deviation of the initial query and key weights; 0 for `hidden ** -0.5`.
        qk_rate: the learning rate of query and key weights in units of the others'.
        missing_from: the step of the second stage from which questions can be about missing companions; -1 for never.
        missing_share: the share of scenes with such a question: one of the two absent kinds belongs to the place of an
            object that the scene shows. The more of them, the less often the model says yes to companions.
    """

    seed: int = 0
    scenes: int = 32_000
    vision_steps: int = 2_400
    vision_batch: int = 64
    vision_rate: float = 1e-3
    language_steps: int = 2_400
    language_batch: int = 32
    language_rate: float = 1.5e-3
    world: str = "small"
    language_fall: float = 1.0
    qk_std: float = 0.02
    qk_rate: float = 1.0
    missing_from: int = -1
    missing_share: float = 1.0

    _late: ClassVar[tuple[str, ...]] = ("language_steps", "language_fall", "missing_from", "missing_share")

    @property
    def language_fall_begins(self) -> int:
        """The first step of the second stage that depends on the number of its steps."""
        return round(self.language_steps * (1 - self.language_fall))

    def shared_steps(self, other: Settings) -> int:
        """Return how many steps of the second stage are the same with other settings; -1 if the first one is not."""
        late = {name: getattr(other, name) for name in self._late}
        if replace(self, **late) != other:
            return -1
        ends = [one.language_fall_begins for one in (self, other)]
        if (self.missing_from, self.missing_share) != (other.missing_from, other.missing_share):
            ends += [one.missing_from for one in (self, other) if one.missing_from >= 0]
        return min(ends)


SETTINGS = {
    "small": Settings(),
    "crowded": Settings(
        world="crowded",
        scenes=48_000,
        vision_steps=4_000,
        language_steps=3_600,
        language_batch=16,
        language_fall=0.25,
        qk_std=0.0,
        qk_rate=0.4,
        missing_from=2_000,
        missing_share=0.4,
    ),
}


class VisionStage:
    """Train the vision tower to recognise the kinds in each patch, with a linear head that is discarded."""

    name = "vision"

    def __init__(self, model: LlavaForConditionalGeneration, data: RenderedScenes, settings: Settings) -> None:
        torch.manual_seed(settings.seed + 1)
        self.steps, self.rate = settings.vision_steps, settings.vision_rate
        self._tower, self._data, self._settings = model.model.vision_tower, data, settings
        # The fused kernel's backward pass is slow for such short sequences on a CPU.
        model.set_attn_implementation({"vision_config": "eager"})
        self._head = torch.nn.Linear(SIZES[data.world.name].vision_hidden, len(patch_labels(data.world)))
        self.modules = torch.nn.ModuleDict({"tower": self._tower, "head": self._head})

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step."""
        return learning_rate(step, self.steps, self.rate)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters, with the factor of their learning rate."""
        return [{"params": list(self.modules.parameters()), "factor": 1.0}]

    def loss(self, step: int) -> torch.Tensor:
        """Return the loss on the scenes of a step."""
        chosen, _ = _scenes_of(step, self._settings, self._settings.vision_batch, salt=1)
        hidden = self._tower(pixel_values(self._data.images[chosen]), output_hidden_states=True).hidden_states[-1]
        wanted = torch.from_numpy(self._data.patches[chosen]).float()
        # Only a few patches show a given kind.
        return functional.binary_cross_entropy_with_logits(
            self._head(hidden[:, 1:]).float(), wanted, pos_weight=torch.tensor(4.0)
        )


class LanguageStage:
    """Train projector and language model on captions and questions, with the vision tower frozen.

    Query and key weights are drawn anew where the settings name another size than the library's.
    """

    name = "language"

    def __init__(self, model: LlavaForConditionalGeneration, data: RenderedScenes, settings: Settings) -> None:
        self.steps, self.rate = settings.language_steps, settings.language_rate
        self._model, self._data, self._settings = model, data, settings
        self._image_token = model.config.image_token_index
        model.set_attn_implementation({"text_config": PACKED})
        self._packer = Packer(fast_tokenizer(data.world), data.world)
        self.modules = language_modules(model)
        text = model.config.text_config
        if settings.qk_std != text.initializer_range:
            initialise(self.language_model, settings.qk_std or text.hidden_size**-0.5, settings.seed)
        self._features = patch_features(model, data.images)

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step."""
        if self._settings.language_fall == 1:
            return learning_rate(step, self.steps, self.rate)
        begins = self._settings.language_fall_begins
        left = min(1.0, (self.steps - step) / max(1, self.steps - begins))
        return self.rate * min(1.0, (step + 1) / 100) * max(0.02, left)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters, with the factor of their learning rate."""
        of_qk = [weight for layer in projections(self.language_model) for weight in layer]
        known = set(map(id, of_qk))
        others = [weight for weight in self.modules.parameters() if id(weight) not in known]
        return [{"params": others, "factor": 1.0}, {"params": of_qk, "factor": self._settings.qk_rate}]

    @property
    def language_model(self) -> torch.nn.Module:
        """The decoder."""
        return self._model.model.language_model

    def loss(self, step: int) -> torch.Tensor:
        """Return the loss on the answers of a step."""
        chosen, generator = _scenes_of(step, self._settings, self._settings.language_batch, salt=2)
        missing = self._settings.missing_share if 0 <= self._settings.missing_from <= step else 0.0
        return self._loss(self._data, self._features[chosen], chosen, generator, missing)

    def loss_on(self, data: RenderedScenes) -> float:
        """Return the loss on other scenes, each used once."""
        generator = np.random.default_rng(self._settings.seed)
        parts = np.array_split(np.arange(len(data.kinds)), math.ceil(len(data.kinds) / self._settings.language_batch))
        features = patch_features(self._model, data.images)
        missing = self._settings.missing_share if self._settings.missing_from >= 0 else 0.0
        with torch.no_grad():
            losses = [float(self._loss(data, features[part], part, generator, missing)) for part in parts]
        return float(np.mean(losses))

    def _loss(
        self,
        data: RenderedScenes,
        features: torch.Tensor,
        chosen: np.ndarray,
        generator: np.random.Generator,
        missing: float = 0.0,
    ) -> torch.Tensor:
        packed = self._packer(data, chosen, generator, missing)
        inner = self._model.model
        embedded = inner.language_model.get_input_embeddings()(packed.input_ids)
        projected = inner.multi_modal_projector(features.to(embedded.dtype))
        where = (packed.input_ids == self._image_token)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(where, projected.to(embedded.dtype))
        hidden = inner.language_model(
            inputs_embeds=embedded, position_ids=packed.positions, layout=packed.layout, use_cache=False
        ).last_hidden_state
        answered = packed.labels != IGNORED
        return functional.cross_entropy(self._model.lm_head(hidden[answered]).float(), packed.labels[answered])


def language_modules(model: LlavaForConditionalGeneration) -> torch.nn.ModuleDict:
    """Return the parts of a model that the second stage trains."""
    return torch.nn.ModuleDict(
        {
            "projector": model.model.multi_modal_projector,
            "language_model": model.model.language_model,
            "lm_head": model.lm_head,
        }
    )


def patch_features(model: LlavaForConditionalGeneration, images: np.ndarray) -> torch.Tensor:
    """Return the vision tower's features of pictures, bfloat16 `[N, tokens, hidden]`, before the projector."""
    parts = []
    with torch.no_grad():
        for first in range(0, len(images), 256):
            states = model.model.vision_tower(
                pixel_values(images[first : first + 256]), output_hidden_states=True
            ).hidden_states[-1]
            parts.append(states[:, 1:].bfloat16())
    return torch.cat(parts)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the rate of a step: 100 steps of warm-up, then a cosine down to a fiftieth of the peak."""
    warm = min(1.0, (step + 1) / 100)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _scenes_of(step: int, settings: Settings, batch: int, salt: int) -> tuple[np.ndarray, np.random.Generator]:
    """Return the scenes of a step: a new permutation per epoch, so that a resumed run gets the same scenes."""
    per_epoch = settings.scenes // batch
    order = np.random.default_rng([settings.seed, salt, step // per_epoch]).permutation(settings.scenes)
    first = step % per_epoch * batch
    return order[first : first + batch], np.random.default_rng([settings.seed, salt, step, 1])
