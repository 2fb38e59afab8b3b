"""Let a loaded model sit an exam: greedy answers in batches, as `generate` gives them one by one.

Everything asked about a scene begins with the same picture, and a decoder that reads from left to right computes the
same states for it whatever comes after. Where that is known of a model, its pictures are read once and every question
continues from a copy of their key-value cache; that is four to five times as fast. Plug-ins act on whole prompts, so
with plug-ins each prompt is read in full.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from qkedit.laboratory.exam import Exam
from qkedit.plugins.attach import attach
from qkedit.plugins.settings import PluginSettings, make_plugins
from qkedit.serving.on_transformers import LoadedModel, prompt_text

# Pictures stand before the text, and nothing looks ahead.
SHARES_PICTURES = ("llava", "vipllava")
CAPTION_TOKENS = 64
ANSWER_TOKENS = 16
# Small batches leave a core waiting for Python, large ones spill its cache.
SCENES_AT_ONCE = 32
PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class ExamAnswers:
    """What one arm said.

    Attributes:
        captions: one a scene.
        yes_no: one for each of the exam's `asked`.
    """

    captions: tuple[str, ...]
    yes_no: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """One prompt about one scene, by its position in the exam."""

    scene: int
    prompt: str
    max_new_tokens: int


def sit(
    loaded: LoadedModel, exam: Exam, plugins: Sequence[PluginSettings] = (), *, share_pictures: bool | None = None
) -> ExamAnswers:
    """Return the model's answers to everything that is asked.

    Args:
        loaded: the model; its weights as they shall be.
        exam: what is asked.
        plugins: attached meanwhile; a `dscr` without a depth reads the scenes' true one.
        share_pictures: read each picture once for all its questions; by default where that is known to be right.

    Raises:
        UsageError: the plug-ins do not fit the model.
    """
    requests = [Request(place, q.prompt, CAPTION_TOKENS) for place, q in enumerate(exam.captions)]
    requests += [Request(scene, prompt, ANSWER_TOKENS) for scene, prompt in exam.asked]
    if share_pictures is None:
        share_pictures = loaded.model.config.model_type in SHARES_PICTURES and not plugins
    answer = _SharedPictures(loaded, exam) if share_pictures else _WholePrompts(loaded, exam, tuple(plugins))
    with torch.inference_mode():
        said = dict(pair for batch in answer.batches(requests) for pair in answer(batch))
    texts = [said[request] for request in requests]
    return ExamAnswers(tuple(texts[: len(exam.captions)]), tuple(texts[len(exam.captions) :]))


Batch = list[Request]
Said = Iterator[tuple[Request, str]]


@dataclass
class _WholePrompts:
    """Every prompt with its picture, in batches of equally long answers; works with any model and any plug-in."""

    loaded: LoadedModel
    exam: Exam
    plugins: tuple[PluginSettings, ...]
    done: int = 0  # batches

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        # Prompts alike stand together, so that hardly any padding is needed.
        ordered = sorted(requests, key=lambda request: (request.max_new_tokens, request.prompt))
        for alike in _by_length_of_answer(ordered):
            for start in range(0, len(alike), PROMPTS_AT_ONCE):
                yield alike[start : start + PROMPTS_AT_ONCE]

    def __call__(self, batch: Batch) -> Said:
        inputs = self.loaded.processor(
            text=[prompt_text(self.loaded.processor, request.prompt, images=1) for request in batch],
            images=[Image.fromarray(self.exam.scenes[request.scene].image) for request in batch],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        ).to(self.loaded.model.device, self.loaded.model.dtype)
        with self._attached(batch):
            output = _generate(self.loaded, inputs, batch[0].max_new_tokens)
        self.done += 1
        yield from _decoded(self.loaded, batch, output, inputs["input_ids"].shape[1])

    def _attached(self, batch: Batch) -> AbstractContextManager[Any]:
        if not self.plugins:
            return nullcontext()
        plugins = make_plugins(self.plugins)
        for place, (settings, plugin) in enumerate(zip(self.plugins, plugins, strict=True)):
            if settings.name == "dscr" and "depth" not in settings.options:
                depths = [torch.from_numpy(self.exam.scenes[request.scene].depth) for request in batch]
                plugins[place] = replace(plugin, depth=depths, processor=self.loaded.processor)
            elif settings.name == "scr" and plugin.selection == "uniform":
                # Attaching begins the draws anew; other batches are to have other ones.
                plugins[place] = replace(plugin, seed=plugin.seed + self.done)
        return attach(self.loaded.model, *plugins)


@dataclass
class _SharedPictures:
    """Read the pictures of a few scenes once, then continue from copies of the cache with all that is asked."""

    loaded: LoadedModel
    exam: Exam
    prompts: dict[str, Tensor] = field(default_factory=dict)  # token ids, `[length]`

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        by_scene = defaultdict(list)
        for request in requests:
            by_scene[request.scene // SCENES_AT_ONCE].append(request)
        yield from by_scene.values()

    def __call__(self, batch: Batch) -> Said:
        from transformers import DynamicCache

        model, processor = self.loaded.model, self.loaded.processor
        scenes = sorted({request.scene for request in batch})
        inputs = processor(
            text=[prompt_text(processor, batch[0].prompt, images=1)] * len(scenes),
            images=[Image.fromarray(self.exam.scenes[scene].image) for scene in scenes],
            return_tensors="pt",
        ).to(model.device, model.dtype)
        end = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1]) + 1
        pictures = DynamicCache(config=model.config.get_text_config())
        model(
            **{
                **inputs,
                "input_ids": inputs["input_ids"][:, :end],
                "attention_mask": inputs["attention_mask"][:, :end],
            },
            past_key_values=pictures,
            use_cache=True,
            logits_to_keep=1,
        )
        for alike in _by_length_of_answer(batch):
            by_length = defaultdict(list)
            for request in alike:
                by_length[len(self._ids(request))].append(request)
            for equally_long in by_length.values():
                cache = copy.deepcopy(pictures)
                cache.batch_select_indices(torch.tensor([scenes.index(request.scene) for request in equally_long]))
                ids = torch.stack([self._ids(request) for request in equally_long]).to(model.device)
                prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                output = _generate(self.loaded, prompt, alike[0].max_new_tokens, past_key_values=cache)
                yield from _decoded(self.loaded, equally_long, output, ids.shape[1])

    def _ids(self, request: Request) -> Tensor:
        """The tokens of a prompt, which are the same for all scenes, since their pictures are of one size."""
        if request.prompt not in self.prompts:
            text = prompt_text(self.loaded.processor, request.prompt, images=1)
            picture = Image.fromarray(self.exam.scenes[request.scene].image)
            self.prompts[request.prompt] = self.loaded.processor(text=text, images=[picture], return_tensors="pt")[
                "input_ids"
            ][0]
        return self.prompts[request.prompt]


def _by_length_of_answer(requests: Sequence[Request]) -> list[Batch]:
    groups: dict[int, Batch] = defaultdict(list)
    for request in requests:
        groups[request.max_new_tokens].append(request)
    return list(groups.values())


def _generate(loaded: LoadedModel, inputs: Any, max_new_tokens: int, **more: Any) -> Tensor:
    output: Tensor = loaded.model.generate(**inputs, **more, max_new_tokens=max_new_tokens, do_sample=False)
    return output


def _decoded(loaded: LoadedModel, batch: Batch, output: Tensor, length: int) -> Said:
    texts = loaded.processor.batch_decode(output[:, length:], skip_special_tokens=True)
    return zip(batch, (text.strip() for text in texts), strict=True)
