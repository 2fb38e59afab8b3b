"""Answer an evaluation set with a loaded model: greedy answers in batches, equal to those of single `generate` calls.

All prompts about a scene begin with the same picture, and a causal decoder computes the same states for it whatever
follows. For models known to be causal, each picture is prefilled once, and every question continues from a copy of its
key-value cache; that is four to five times as fast. Plug-ins act on whole prompts, so with plug-ins each prompt is
prefilled in full. Prompts about a scene are then in one batch, so that its picture is encoded once.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from qkedit.laboratory.eval_set import EvalSet
from qkedit.plugins.settings import PluginSettings, make_plugins
from qkedit.runtime.generation import LoadedModel, Prompt, batch_inputs, prompt_text, respond_batch

# Models with pictures before the text, and with causal attention.
SHARES_PICTURES = ("llava", "vipllava")
# Vision towers without any operation between the pictures of a batch: equal pictures have equal features, up to the
# rounding of another batch size.
SEPARATE_PICTURES = ("clip_vision_model", "siglip_vision_model")
CAPTION_TOKENS = 64
ANSWER_TOKENS = 16
# Small batches leave a core waiting for Python, large ones exceed its cache.
SCENES_AT_ONCE = 32
PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class EvalSetAnswers:
    """The answers of one arm.

    Attributes:
        captions: one per scene.
        yes_no: one per question in the evaluation set's `asked`.
        batches: the number of answers and the CPU seconds of each batch; the same batches for all arms that prefill in
            the same way. Empty for results that were written without them.
    """

    captions: tuple[str, ...]
    yes_no: tuple[str, ...]
    batches: tuple[tuple[int, float], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Request:
    """One prompt about one scene, by its position in the evaluation set."""

    scene: int
    prompt: str
    max_new_tokens: int


def run_eval_set(
    loaded: LoadedModel,
    eval_set: EvalSet,
    plugins: Sequence[PluginSettings] = (),
    *,
    share_pictures: bool | None = None,
) -> EvalSetAnswers:
    """Return the model's answers to an evaluation set.

    Args:
        loaded: the model, with its weights already edited.
        eval_set: the evaluation set.
        plugins: the plug-ins to attach; a `dscr` without a depth uses the true depth of the scenes.
        share_pictures: whether to prefill each picture once for all its questions; by default for causal models.

    Raises:
        UsageError: the plug-ins do not fit the model.
    """
    requests = [Request(place, q.prompt, CAPTION_TOKENS) for place, q in enumerate(eval_set.captions)]
    requests += [Request(scene, prompt, ANSWER_TOKENS) for scene, prompt in eval_set.asked]
    if share_pictures is None:
        share_pictures = loaded.model.config.model_type in SHARES_PICTURES and not plugins
    answer = _SharedPictures(loaded, eval_set) if share_pictures else _WholePrompts(loaded, eval_set, tuple(plugins))
    said: dict[Request, str] = {}
    batches = []
    with torch.inference_mode(), equal_pictures_once(loaded.model):
        for batch in answer.batches(requests):
            started = time.process_time()
            said.update(answer(batch))
            batches.append((len(batch), time.process_time() - started))
    texts = [said[request] for request in requests]
    captions = len(eval_set.captions)
    return EvalSetAnswers(tuple(texts[:captions]), tuple(texts[captions:]), tuple(batches))


Batch = list[Request]
Said = Iterator[tuple[Request, str]]


@dataclass
class _WholePrompts:
    """Prefills every prompt with its picture; works with any model and any plug-in."""

    loaded: LoadedModel
    eval_set: EvalSet
    plugins: tuple[PluginSettings, ...]
    done: int = 0  # batches

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        # Prompts about a picture are adjacent, and so in one or two batches; their lengths differ little.
        ordered = sorted(requests, key=lambda request: (request.max_new_tokens, request.scene, request.prompt))
        for alike in _grouped(ordered, lambda request: request.max_new_tokens):
            for start in range(0, len(alike), PROMPTS_AT_ONCE):
                yield alike[start : start + PROMPTS_AT_ONCE]

    def __call__(self, batch: Batch) -> Said:
        prompts = [_prompt(self.loaded, self.eval_set, request) for request in batch]
        answers = respond_batch(self.loaded, prompts, self._plugins(batch), max_new_tokens=batch[0].max_new_tokens)
        self.done += 1
        yield from ((request, answer.text) for request, answer in zip(batch, answers, strict=True))

    def _plugins(self, batch: Batch) -> list[Any]:
        plugins = make_plugins(self.plugins)
        for place, (settings, plugin) in enumerate(zip(self.plugins, plugins, strict=True)):
            if settings.name == "dscr" and "depth" not in settings.options:
                depths = [torch.from_numpy(self.eval_set.scenes[request.scene].depth) for request in batch]
                plugins[place] = replace(plugin, depth=depths, processor=self.loaded.processor)
            elif settings.name == "scr" and plugin.selection == "uniform":
                # Attaching restarts the random draws, but different batches need different draws.
                plugins[place] = replace(plugin, seed=plugin.seed + self.done)
            elif settings.options.get("control") is not None:
                plugins[place] = replace(plugin, control=plugin.control + self.done)
        return plugins


@dataclass
class _SharedPictures:
    """Prefills the pictures of a few scenes once, then continues from copies of the cache with all questions."""

    loaded: LoadedModel
    eval_set: EvalSet
    ids: dict[str, Tensor] = field(default_factory=dict)  # by prompt, `[length]`

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        yield from _grouped(requests, lambda request: request.scene // SCENES_AT_ONCE)

    def __call__(self, batch: Batch) -> Said:
        from transformers import DynamicCache

        model = self.loaded.model
        scenes = {request.scene: request for request in batch}
        alike = [replace(request, prompt=batch[0].prompt) for request in scenes.values()]
        inputs = batch_inputs(self.loaded, [_prompt(self.loaded, self.eval_set, request) for request in alike])
        end = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1]) + 1
        until_end = {name: inputs[name][:, :end] for name in ("input_ids", "attention_mask")}
        pictures = DynamicCache(config=model.config.get_text_config())
        model(**{**inputs, **until_end}, past_key_values=pictures, use_cache=True, logits_to_keep=1)
        place = {scene: row for row, scene in enumerate(scenes)}
        for group in _grouped(batch, lambda request: (request.max_new_tokens, len(self._ids(request)))):
            cache = copy.deepcopy(pictures)
            cache.batch_select_indices(torch.tensor([place[request.scene] for request in group], device=model.device))
            ids = torch.stack([self._ids(request) for request in group]).to(model.device)
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=group[0].max_new_tokens,
                do_sample=False,
            )
            texts = self.loaded.processor.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            yield from zip(group, (text.strip() for text in texts), strict=True)

    def _ids(self, request: Request) -> Tensor:
        """Return the tokens of a prompt, which are the same for all scenes, since their pictures have one size."""
        if request.prompt not in self.ids:
            inputs = batch_inputs(self.loaded, [_prompt(self.loaded, self.eval_set, request)])
            self.ids[request.prompt] = inputs["input_ids"][0].cpu()
        return self.ids[request.prompt]


def _prompt(loaded: LoadedModel, eval_set: EvalSet, request: Request) -> Prompt:
    picture = Image.fromarray(eval_set.scenes[request.scene].image)
    return Prompt(prompt_text(loaded, request.prompt, images=1), (picture,), request.prompt)


def _grouped(requests: Iterable[Request], key: Callable[[Request], Hashable]) -> list[Batch]:
    groups: dict[Hashable, Batch] = defaultdict(list)
    for request in requests:
        groups[key(request)].append(request)
    return list(groups.values())


@contextmanager
def equal_pictures_once(model: Any) -> Iterator[None]:
    """During a block, run the vision tower on the distinct pictures of each batch; other families run as usual.

    Args:
        model: a model of transformers.
    """
    config = model.config
    vision = getattr(config, "vision_config", None)
    if config.model_type not in SHARES_PICTURES or getattr(vision, "model_type", None) not in SEPARATE_PICTURES:
        yield
        return
    tower = model.model.vision_tower
    before, original = vars(tower).get("forward"), tower.forward

    def forward(pixel_values: Any, *arguments: Any, **named: Any) -> Any:
        firsts, places = _distinct(pixel_values)
        if len(firsts) == len(places):
            return original(pixel_values, *arguments, **named)
        output = original(pixel_values[firsts], *arguments, **named)
        at = torch.tensor(places, device=pixel_values.device)
        return type(output)(**{name: _repeated(value, at) for name, value in output.items()})

    tower.forward = forward
    try:
        yield
    finally:
        if before is None:
            del tower.forward
        else:
            tower.forward = before


def _distinct(pictures: Tensor) -> tuple[list[int], list[int]]:
    """Return the row of each distinct picture's first copy, and for each row the place of its picture among them.

    Pictures are compared by their bytes, so that one with noise of its own is distinct.
    """
    number: dict[bytes, int] = {}
    firsts: list[int] = []
    places: list[int] = []
    for row, picture in enumerate(pictures):
        key = picture.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes()
        if key not in number:
            number[key] = len(firsts)
            firsts.append(row)
        places.append(number[key])
    return firsts, places


def _repeated(value: Any, at: Tensor) -> Any:
    """Return a tensor of pictures, or each of a tuple of them, with a row for every picture of the batch."""
    if isinstance(value, tuple):
        return tuple(_repeated(one, at) for one in value)
    return value.index_select(0, at) if isinstance(value, Tensor) else value
