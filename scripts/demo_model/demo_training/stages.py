"""The two stages of training: first the vision tower with patch labels, then the language model with text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from demo_training.attention import PACKED
from demo_training.checkpoint import VISION_HIDDEN, fast_tokenizer
from demo_training.data import IGNORED, Packer, RenderedScenes, pixel_values
from qkedit.demo.scenes import KINDS


@dataclass(frozen=True)
class Settings:
    """All settings that determine the result on a machine.

    Attributes:
        seed: the seed of the weights, of the order of the data, and of the scenes.
        scenes: the number of training scenes.
        vision_steps, vision_batch, vision_rate: steps, scenes per step and learning rate of the first stage.
        language_steps, language_batch, language_rate: the same of the second; rates are the peaks of a warm-up and a
            cosine.
    """

    seed: int = 0
    scenes: int = 32_000
    vision_steps: int = 2_400
    vision_batch: int = 64
    vision_rate: float = 1e-3
    language_steps: int = 2_400
    language_batch: int = 32
    language_rate: float = 1.5e-3


class VisionStage:
    """Train the vision tower to recognise the kinds in each patch, with a linear head that is discarded."""

    name = "vision"

    def __init__(self, model: LlavaForConditionalGeneration, data: RenderedScenes, settings: Settings) -> None:
        torch.manual_seed(settings.seed + 1)
        self.steps, self.rate = settings.vision_steps, settings.vision_rate
        self._tower, self._data, self._settings = model.model.vision_tower, data, settings
        self._head = torch.nn.Linear(VISION_HIDDEN, len(KINDS))
        self.modules = torch.nn.ModuleDict({"tower": self._tower, "head": self._head})

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
    """Train projector and language model on captions and questions, with the vision tower frozen."""

    name = "language"

    def __init__(self, model: LlavaForConditionalGeneration, data: RenderedScenes, settings: Settings) -> None:
        self.steps, self.rate = settings.language_steps, settings.language_rate
        self._model, self._data, self._settings = model, data, settings
        self._image_token = model.config.image_token_index
        model.set_attn_implementation({"text_config": PACKED})
        self._packer = Packer(fast_tokenizer())
        self.modules = torch.nn.ModuleDict(
            {
                "projector": model.model.multi_modal_projector,
                "language_model": model.model.language_model,
                "lm_head": model.lm_head,
            }
        )
        self._features = patch_features(model, data.images)

    @property
    def language_model(self) -> torch.nn.Module:
        """The decoder."""
        return self._model.model.language_model

    def loss(self, step: int) -> torch.Tensor:
        """Return the loss on the answers of a step."""
        chosen, generator = _scenes_of(step, self._settings, self._settings.language_batch, salt=2)
        return self._loss(self._data, self._features[chosen], chosen, generator)

    def loss_on(self, data: RenderedScenes) -> float:
        """Return the loss on other scenes, each used once."""
        generator = np.random.default_rng(self._settings.seed)
        parts = np.array_split(np.arange(len(data.kinds)), math.ceil(len(data.kinds) / self._settings.language_batch))
        features = patch_features(self._model, data.images)
        with torch.no_grad():
            return float(np.mean([float(self._loss(data, features[part], part, generator)) for part in parts]))

    def _loss(
        self, data: RenderedScenes, features: torch.Tensor, chosen: np.ndarray, generator: np.random.Generator
    ) -> torch.Tensor:
        packed = self._packer([data.kinds[i] for i in chosen], [data.captions[i] for i in chosen], generator)
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
