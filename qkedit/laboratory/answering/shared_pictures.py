"""Answer the requests of an evaluation set with one prefill of each picture for all its questions.

All prompts about a scene begin with the same picture, and a causal decoder computes the same states for it whatever
follows. So each picture is prefilled once, and every question continues from a copy of its key-value cache.

Two plug-ins change only the picture's part of the cache, whatever the question is. SCR with random sources edits it
while the picture is prefilled. DSCR refines it before the last token of the question, so that token continues from the
refined cache, and those before it from the unchanged one. Random sources are drawn once for each picture here, and for
each prompt where whole prompts are prefilled.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from qkedit.laboratory.answering.batches import Batch, Request, Said, grouped, plugins_for, prompt_of
from qkedit.laboratory.eval_set import EvalSet
from qkedit.plugins.settings import PluginSettings
from qkedit.plugins.transformers.attach import attach
from qkedit.runtime.generation import LoadedModel, batch_inputs

# Small batches leave a core waiting for Python, large ones exceed its cache.
SCENES_AT_ONCE = 32


def needs_no_question(plugins: Sequence[PluginSettings]) -> bool:
    """Return whether the plug-ins change only the picture's part of the cache, and do so whatever the question is."""
    if len(plugins) != 1:
        return not plugins
    options = plugins[0].options
    if plugins[0].name == "scr":
        return options.get("selection") == "uniform"
    return plugins[0].name == "dscr" and "depth" not in options and "when" not in options


@dataclass
class SharedPictures:
    """Prefills the pictures of a few scenes once, then continues from copies of the cache with all questions."""

    loaded: LoadedModel
    eval_set: EvalSet
    plugins: tuple[PluginSettings, ...] = ()
    ids: dict[str, Tensor] = field(default_factory=dict)  # by prompt, `[length]`
    done: int = 0  # batches

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield batches of all requests about a few scenes."""
        yield from grouped(requests, lambda request: request.scene // SCENES_AT_ONCE)

    def __call__(self, batch: Batch) -> Said:
        """Yield the answer to each request of a batch."""
        scenes = {request.scene: request for request in batch}
        alike = [replace(request, prompt=batch[0].prompt) for request in scenes.values()]
        inputs = batch_inputs(self.loaded, [prompt_of(self.loaded, self.eval_set, request) for request in alike])
        end = int((inputs["input_ids"][0] == self.loaded.model.config.image_token_id).nonzero()[-1]) + 1
        refines = any(plugin.name == "dscr" for plugin in self.plugins)
        before = self._prefilled(inputs, end, [] if refines else self._plugins_for(alike))
        after = self._prefilled(inputs, end, self._plugins_for(alike)) if refines else None
        self.done += 1
        place = {scene: row for row, scene in enumerate(scenes)}
        for group in grouped(batch, lambda request: (request.max_new_tokens, len(self._ids(request)))):
            rows = torch.tensor([place[request.scene] for request in group], device=self.loaded.model.device)
            ids = torch.stack([self._ids(request) for request in group]).to(self.loaded.model.device)
            cache = copy.deepcopy(before)
            cache.batch_select_indices(rows)
            if after is not None:
                self._read(ids[:, :-1], end, cache)
                for own, refined in zip(cache.layers, after.layers, strict=True):
                    own.keys[:, :, :end] = refined.keys[rows]
                    own.values[:, :, :end] = refined.values[rows]
            output = self.loaded.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=group[0].max_new_tokens,
                do_sample=False,
            )
            texts = self.loaded.processor.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            yield from zip(group, (text.strip() for text in texts), strict=True)

    def _prefilled(self, inputs: Mapping[str, Any], end: int, plugins: Sequence[Any]) -> Any:
        """Return the cache of the prompts' first `end` tokens, with the effect of plug-ins.

        A plug-in may wait for the token after the picture, so one more token runs and is dropped.
        """
        from transformers import DynamicCache

        model = self.loaded.model
        first = {name: inputs[name][:, : end + 1] for name in ("input_ids", "attention_mask")}
        cache = DynamicCache(config=model.config.get_text_config())
        with attach(model, *plugins) if plugins else nullcontext():
            model(**{**inputs, **first}, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)
        return cache

    def _read(self, ids: Tensor, end: int, cache: Any) -> None:
        """Continue the cache of a picture, which has `end` tokens, with further tokens of prompts."""
        self.loaded.model(
            input_ids=ids[:, end:], attention_mask=torch.ones_like(ids), past_key_values=cache, logits_to_keep=1
        )

    def _plugins_for(self, batch: Batch) -> list[Any]:
        return plugins_for(self.plugins, self.loaded, self.eval_set, batch, self.done)

    def _ids(self, request: Request) -> Tensor:
        """Return the tokens of a prompt, which are the same for all scenes, since their pictures have one size."""
        if request.prompt not in self.ids:
            inputs = batch_inputs(self.loaded, [prompt_of(self.loaded, self.eval_set, request)])
            self.ids[request.prompt] = inputs["input_ids"][0].cpu()
        return self.ids[request.prompt]
