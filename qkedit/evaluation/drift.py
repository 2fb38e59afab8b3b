"""Measure how far an edit moves a model on the user's own images, before any benchmark.

The base answers the prompt about each image with greedy search. The edited model is then forced along the base's
answer, token by token, so that both predict the next token after the same text:

    kl         Σ p_base (log p_base − log p_edited) over the vocabulary, in nats, mean over all positions
    agreement  share of positions where the most probable next token is the same

Then it generates its own answer:

    overlap    F1 of the words that both answers share, counting repeats (ROUGE-1 F, Lin 2004), mean over images
    identical  share of images with the same answer

The models are loaded one after the other; the base's logits are kept in main memory: 2 bytes (16-bit models) ×
vocabulary × tokens, 20 MB per image for 64 tokens with a vocabulary of 152,000.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qkedit.errors import UsageError
from qkedit.evaluation.drift_metrics import DRIFT
from qkedit.evaluation.drift_metrics import word_f1 as word_f1
from qkedit.evaluation.forced_answers import AnswerWithLogits, answer_with_logits, divergences
from qkedit.evaluation.metric import sum_of_ratios
from qkedit.evaluation.statistics.intervals import LEVEL, RESAMPLES, SEED
from qkedit.evaluation.statistics.resampling import percentiles, resampled
from qkedit.images import read_image
from qkedit.plugins.core.pictures import check_files
from qkedit.plugins.settings import PluginSettings, make_plugins
from qkedit.prompts import CAPTION_PROMPT

if TYPE_CHECKING:
    from qkedit.runtime.generation import LoadedModel

PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


@dataclass(frozen=True)
class ImageDrift:
    """The drift of the answer about one image.

    Attributes:
        image: the image file.
        kl: the divergence at each position of the base's answer, including its end, in nats.
        agrees: whether the most probable next token is the same, for each position.
        base: the base's answer.
        edited: the edited model's own answer.
    """

    image: str
    kl: tuple[float, ...]
    agrees: tuple[bool, ...]
    base: str
    edited: str

    @property
    def mean_kl(self) -> float:
        """The mean divergence over the positions."""
        return sum(self.kl) / len(self.kl)

    @property
    def overlap(self) -> float:
        """The F1 of the words that the two answers share."""
        return word_f1(self.base, self.edited)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "image": self.image,
            "kl": self.mean_kl,
            "agreement": sum(self.agrees) / len(self.agrees),
            "overlap": self.overlap,
            "base": self.base,
            "edited": self.edited,
            "kl_by_position": list(self.kl),
        }


@dataclass(frozen=True)
class Drift:
    """The drift of the answers about some images.

    Attributes:
        images: the drift of each image.
        base_template: the base's chat template, in the form of run records; None for the bare prompt.
        template: the edited model's chat template.
    """

    images: tuple[ImageDrift, ...]
    base_template: Mapping[str, Any] | None = None
    template: Mapping[str, Any] | None = None

    @property
    def worst(self) -> tuple[ImageDrift, ...]:
        """The images, those with the largest drift first."""
        return tuple(sorted(self.images, key=lambda image: -image.mean_kl))

    @property
    def metrics(self) -> Mapping[str, float]:
        """Every metric by its name; `kl_worst` is that of the worst image."""
        means = {name: float(parts[:, 0].sum() / parts[:, 1].sum()) for name, parts in self._parts().items()}
        return {**means, "kl_worst": self.worst[0].mean_kl}

    def intervals(self, level: float = LEVEL) -> Mapping[str, tuple[float, float]]:
        """Return percentile intervals of the bootstrap over images; empty for a single image."""
        if len(self.images) < 2:
            return {}
        intervals = {}
        for name, parts in self._parts().items():
            sums = resampled(parts, RESAMPLES, SEED)
            intervals[name] = percentiles(sum_of_ratios(sums), level)
        return intervals

    def result(self) -> dict[str, Any]:
        """Return one entry of `results`, as `qkedit gate` reads it."""
        return {
            "benchmark": DRIFT,
            "split": None,
            "n": len(self.images),
            "metrics": dict(self.metrics),
            "intervals": {name: list(bounds) for name, bounds in self.intervals().items()},
            "items": [image.as_dict() for image in self.images],
        }

    def _parts(self) -> dict[str, np.ndarray]:
        """Return the numerators and denominators of each image, [images, 2]: all positions weigh the same."""
        of_images = {
            "kl": [(sum(image.kl), len(image.kl)) for image in self.images],
            "agreement": [(sum(image.agrees), len(image.agrees)) for image in self.images],
            "overlap": [(image.overlap, 1) for image in self.images],
            "identical": [(image.base == image.edited, 1) for image in self.images],
        }
        return {name: np.array(rows, dtype=np.float64) for name, rows in of_images.items()}


def drift(
    base: str,
    edited: str,
    images: Sequence[Path],
    *,
    prompt: str = CAPTION_PROMPT,
    plugins: Sequence[PluginSettings] = (),
    edits: Sequence[str] = (),
    base_revision: str | None = None,
    revision: str | None = None,
    max_new_tokens: int = 64,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    **loading: Any,
) -> Drift:
    """Measure how far an edited model, or one with plug-ins, is from its base.

    Args:
        base: the model before: a directory, a hub id, an alias or `demo`.
        edited: the model after; the same as `base` where plug-ins or `edits` alone make the difference.
        images: the image files.
        prompt: the question about each image.
        plugins: the plug-ins attached to the edited model.
        edits: directories of edits, which are applied together to the loaded weights of the edited model.
        base_revision: the revision of a base on the hub.
        revision: the revision of an edited model on the hub.
        max_new_tokens: the maximum length of an answer.
        on_image: called with the number of finished answers and their total, over both models.
        loading: `device`, `dtype` and the other arguments of `load`, for both models.

    Raises:
        UsageError: there are no images, one is not a picture, a plug-in searches by a loop of its own, or the models
            have different vocabularies.
        QkeditError: a model cannot be loaded, or gives no finite probabilities.
    """
    import torch

    from qkedit.plugins.core.generation_limits import refuse_own_search
    from qkedit.plugins.transformers.attach import attach
    from qkedit.runtime.editing import edit
    from qkedit.runtime.generation import load
    from qkedit.steering.sources.edit_source import open_edits

    if edits:
        open_edits(edits)  # report what is not an edit before loading models
    if not images:
        raise UsageError("there are no images", where="--images", remedy="name a directory with pictures")
    for image in images:
        read_image(image)  # report what is not a picture before loading models
    made = make_plugins(plugins)
    refuse_own_search(made, "drift")
    check_files(made, images)
    total = 2 * len(images)
    loaded = load(base, revision=base_revision, **loading)
    base_template = loaded.template_record
    answers = []
    for number, image in enumerate(images):
        answers.append(answer_with_logits(loaded, read_image(image), prompt, max_new_tokens))
        on_image(number + 1, total)
    if (edited, revision) != (base, base_revision):
        # Two large models need not fit in memory together.
        del loaded
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        loaded = load(edited, revision=revision, **loading)
    drifts = []
    with (
        edit(loaded.model, edits) if edits else nullcontext(),
        attach(loaded.model, *made) if made else nullcontext(),
    ):
        for number, (image, answer) in enumerate(zip(images, answers, strict=True)):
            drifts.append(_drift_of(loaded, image, prompt, answer, max_new_tokens))
            on_image(len(images) + number + 1, total)
    return Drift(tuple(drifts), base_template, loaded.template_record)


def pictures_in(place: Path, limit: int | None = None) -> tuple[tuple[Path, ...], int]:
    """Return at most `limit` image files of a directory, sorted by name, and their total number; a file counts as one.

    Raises:
        UsageError: there is no such place or no picture in it.
    """
    if place.is_file():
        return (place,), 1
    if not place.is_dir():
        raise UsageError("there is no such directory", where=str(place), remedy="name a directory with pictures")
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
    if not files:
        raise UsageError("holds no pictures", where=str(place), remedy="name a directory with PNG or JPEG files")
    return tuple(files[:limit]), len(files)


def _drift_of(
    loaded: LoadedModel, image: Path, prompt: str, base: AnswerWithLogits, max_new_tokens: int
) -> ImageDrift:
    """Force a model along the base's answer, and let it generate its own."""
    picture = read_image(image)
    led = answer_with_logits(loaded, picture, prompt, max_new_tokens, given=base.tokens)
    kl = divergences(base, led, loaded.name, str(image))
    own = answer_with_logits(loaded, picture, prompt, max_new_tokens)
    agrees = base.logits.argmax(-1) == led.logits.argmax(-1)
    return ImageDrift(str(image), kl, tuple(agrees.tolist()), base.text, own.text)
