"""Answer the requests of an evaluation set by a prefill of every whole prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qkedit.laboratory.answering.batches import Batch, Request, Said, grouped, plugins_for, prompt_of
from qkedit.laboratory.eval_set import EvalSet
from qkedit.plugins.settings import PluginSettings
from qkedit.runtime.generation import LoadedModel, respond_batch

# Small batches leave a core waiting for Python, large ones exceed its cache.
PROMPTS_AT_ONCE = 64


@dataclass
class WholePrompts:
    """Prefills every prompt with its picture; works with any model and any plug-in."""

    loaded: LoadedModel
    eval_set: EvalSet
    plugins: tuple[PluginSettings, ...] = ()
    done: int = 0  # batches

    def batches(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield batches in which prompts about a picture are adjacent, so that it is encoded once or twice."""
        ordered = sorted(requests, key=lambda request: (request.max_new_tokens, request.scene, request.prompt))
        for alike in grouped(ordered, lambda request: request.max_new_tokens):
            for start in range(0, len(alike), PROMPTS_AT_ONCE):
                yield alike[start : start + PROMPTS_AT_ONCE]

    def __call__(self, batch: Batch) -> Said:
        """Yield the answer to each request of a batch."""
        prompts = [prompt_of(self.loaded, self.eval_set, request) for request in batch]
        plugins = plugins_for(self.plugins, self.loaded, self.eval_set, batch, self.done)
        answers = respond_batch(self.loaded, prompts, plugins, max_new_tokens=batch[0].max_new_tokens)
        self.done += 1
        yield from ((request, answer.text) for request, answer in zip(batch, answers, strict=True))
