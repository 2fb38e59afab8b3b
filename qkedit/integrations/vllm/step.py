"""One step of vLLM with plug-ins: edit its whole prompts with images, and no other tokens.

An exception inside the engine's forward pass would end the engine. So failures are caught and counted, and the prompts
of that step run without plug-ins; the worker's report and its log name the last failure.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from qkedit.errors import first_sentence
from qkedit.integrations.vllm.families import image_inputs
from qkedit.integrations.vllm.hashed_images import hash_in
from qkedit.integrations.vllm.prompts import PromptBatch, attention_rows
from qkedit.integrations.vllm.rotations import StepRotations
from qkedit.plugins.core.grid import image_grids
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.prefill import Prefill, Span, StopForward
from qkedit.plugins.core.protocol import RequestEdit
from qkedit.plugins.core.recorded_attention import AttentionRecorder, attention_scores

_logger = logging.getLogger(__name__)

Run = Callable[[Tensor], Any]
Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StepPrefill(Prefill):
    """The prefill of the whole prompts of a step.

    Attributes:
        prompts: the prompts, with their indices in the step.
        run: the model's unedited forward for the step, from its embeddings.
        embeddings: the embeddings of all tokens of the step, `[tokens, D]`.
        mean_over_ranks: a function that averages a tensor over the tensor-parallel ranks.
        rotations: the rotations that plug-ins have asked for.
    """

    prompts: PromptBatch = field(repr=False)
    run: Run = field(repr=False)
    embeddings: Tensor = field(repr=False)
    mean_over_ranks: Reduce = field(repr=False)
    rotations: list[StepRotations] = field(default_factory=list, repr=False)

    def key_rotations(self, layers: Iterable[int]) -> StepRotations:
        """See `Prefill.key_rotations`."""
        self.rotations.append(StepRotations(self.parts, self.prompts, layers))
        return self.rotations[-1]

    def image_hashes(self) -> Sequence[str] | None:
        """See `Prefill.image_hashes`."""
        return [hash_in(image) for prompt in self.prompts.prompts for image in prompt.images]

    def preview(self, last_layer: int, observe: Callable[[int, Tensor], None] | None = None) -> None:
        """Run the unedited decoder; see `Prefill.preview`."""

        def after(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
                if observe is not None:
                    observe(index, self.prompts.batched(output[0] + output[1]))
                if index == last_layer:
                    raise StopForward

            return hook

        with ExitStack() as hooks:
            for index, layer in enumerate(self.parts.layers[: last_layer + 1]):
                hooks.callback(layer.register_forward_hook(after(index)).remove)
            try:
                # A copy, since vLLM's first norm adds in place.
                self.run(self.embeddings.clone())
            except StopForward:
                return

    @contextmanager
    def recording(self, recorder: AttentionRecorder) -> Iterator[None]:
        """See `Prefill.recording`."""

        def record(index: int, attention: Any, query: Tensor, key: Tensor) -> None:
            of_rank = attention_scores(
                recorder.readings,
                self.prompts.batched(query).transpose(1, 2),
                self.prompts.batched(key).transpose(1, 2),
                self.real.to(query.device),
                {"scaling": attention.impl.scale},
            )
            recorder.scores[index] = [self.mean_over_ranks(scores) for scores in of_rank]
            if index == recorder.leave_after:
                raise StopForward

        def before(index: int, usual: Callable[..., Any]) -> Callable[..., Any]:
            def forward(attention: Any, query: Tensor, key: Tensor, *rest: Any, **settings: Any) -> Any:
                record(index, attention, query, key)
                return usual(attention, query, key, *rest, **settings)

            return forward

        with wrapped(self.parts.layers, recorder.layers, before):
            yield


@dataclass(frozen=True)
class _Begun:
    """The prompts of a step for which the plug-ins started, their edits, and the rotations that these undo."""

    prompts: PromptBatch
    edits: Sequence[RequestEdit]
    rotations: Sequence[StepRotations]


@contextmanager
def wrapped(
    layers: nn.ModuleList, chosen: frozenset[int], wrap: Callable[[int, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace the attention of chosen layers by `wrap(layer, usual attention)` while the context is open."""
    every: list[Any] = list(layers)
    implementations = {index: every[index].self_attn.attn.impl for index in chosen}
    with ExitStack() as undone:
        for index, implementation in implementations.items():
            before = vars(implementation).get("forward")
            implementation.forward = wrap(index, implementation.forward)
            undone.callback(_restore, implementation, before)
        yield


def _restore(implementation: Any, before: Any) -> None:
    if before is None:
        del implementation.forward
    else:
        implementation.forward = before


class StepEditor:
    """Edit the steps of one worker with bound plug-ins.

    Args:
        parts: the modules of vLLM's model.
        plugins: the bound plug-ins by name.
        update_cache: a function that writes a step's keys and values, `[tokens, H_kv, d]`, into an attention
            module's cache.
        mean_over_ranks: a function that averages a tensor over the tensor-parallel ranks.
    """

    def __init__(
        self,
        parts: VLMModules,
        plugins: Mapping[str, Any],
        update_cache: Callable[[Any, Tensor, Tensor], None],
        mean_over_ranks: Reduce,
    ) -> None:
        self.parts = parts
        self.plugins = plugins
        self.counts: Counter[str] = Counter()
        self.failure: str | None = None
        self._update_cache = update_cache
        self._mean_over_ranks = mean_over_ranks

    @torch.no_grad()
    def run(self, prompts: PromptBatch, run: Run, embeddings: Tensor) -> Any:
        """Return the model's output for a step, with the plug-ins' edits of its whole prompts."""
        begun = self._begun(prompts, run, embeddings)
        if begun is None:
            return run(embeddings)
        self.counts["edited"] += len(begun.prompts.prompts)
        with ExitStack() as stack:
            for rotations in begun.rotations:
                stack.enter_context(rotations.watched())
            for edit in begun.edits:
                stack.enter_context(self._states(begun.prompts, edit))
            stack.enter_context(self._caches(begun.prompts, begun.edits))
            return run(embeddings)

    def _begun(self, prompts: PromptBatch, run: Run, embeddings: Tensor) -> _Begun | None:
        """Start the plug-ins for the prompts; those for which they fail are counted and left out. None without any."""
        try:
            return self._started(prompts, run, embeddings)
        except Exception as error:
            reason = error
        own = prompts.prompts
        if len(own) > 1:
            kept = [one for one in own if self._begun(PromptBatch((one,)), run, embeddings)]
            if len(kept) < len(own):
                return self._begun(PromptBatch(kept), run, embeddings) if kept else None
        self.note_failure(reason, len(own))
        return None

    def _started(self, prompts: PromptBatch, run: Run, embeddings: Tensor) -> _Begun:
        images = [image for prompt in prompts.prompts for image in prompt.images]
        inputs = image_inputs(self.parts.config.model_type, images)
        prefill = StepPrefill(
            parts=self.parts,
            grids=image_grids(self.parts.config, prompts.input_ids, inputs),
            input_ids=prompts.input_ids,
            real=prompts.real,
            inputs=inputs,
            arguments={"inputs_embeds": prompts.batched(embeddings)},
            prompts=prompts,
            run=run,
            embeddings=embeddings,
            mean_over_ranks=self._mean_over_ranks,
        )
        return _Begun(prompts, [plugin.start(prefill) for plugin in self.plugins.values()], prefill.rotations)

    @contextmanager
    def _states(self, prompts: PromptBatch, edit: RequestEdit) -> Iterator[None]:
        """Edit the states after `edit.edited_layers` while the context is open."""
        span = Span(0, prompts.length)

        def after(index: int) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> Any:
                state = output[0] + output[1]
                with self._unedited_on_failure():
                    state = prompts.put_back(edit.edit_layer(index, prompts.batched(state), span), state)
                # The next norm adds the two, and zero changes no bit of the edited state.
                return torch.zeros_like(state), state

            return hook

        with ExitStack() as hooks:
            for index in sorted(edit.edited_layers):
                hooks.callback(self.parts.layers[index].register_forward_hook(after(index)).remove)
            yield

    def _caches(self, prompts: PromptBatch, edits: Sequence[RequestEdit]) -> AbstractContextManager[None]:
        """Edit the cache of their `cached_layers`, as soon as each has filled it, while the context is open."""

        def around(index: int, usual: Callable[..., Any]) -> Callable[..., Any]:
            own = [edit for edit in edits if index in edit.cached_layers]

            def forward(
                attention: Any, query: Tensor, key: Tensor, value: Tensor, cache: Any, metadata: Any, output: Tensor,
                **settings: Any,
            ) -> Any:  # fmt: skip
                found = usual(attention, query, key, value, cache, metadata, output=output, **settings)
                with self._unedited_on_failure():
                    self._edit_cache(prompts, own, index, attention, query, key, value, output)
                return found

            return forward

        return wrapped(self.parts.layers, frozenset[int]().union(*(edit.cached_layers for edit in edits)), around)

    def _edit_cache(
        self,
        prompts: PromptBatch,
        edits: Sequence[RequestEdit],
        index: int,
        attention: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
    ) -> None:
        """Edit and cache the keys and values of one layer, and repeat the attention of the queries that read them."""
        keys, values = prompts.batched(key).transpose(1, 2), prompts.batched(value).transpose(1, 2)
        layer = SimpleNamespace(keys=keys, values=values, is_sliding=False)
        attended: list[tuple[slice, Tensor]] = []
        ends = [edit.refine_after or (None,) * len(prompts.prompts) for edit in edits]
        # Queries behind a later edit read that one, too: their attention is repeated again, and the last one counts.
        for length in sorted({end for own in ends for end in own if end is not None}):
            edited: set[int] = set()
            for edit, own_ends in zip(edits, ends, strict=True):
                if rows := tuple(row for row, end in enumerate(own_ends) if end == length):
                    edit.edit_cache_layer(index, layer, rows, length)
                    edited.update(rows)
            edited_keys = prompts.put_back(layer.keys.transpose(1, 2), key)
            edited_values = prompts.put_back(layer.values.transpose(1, 2), value)
            for row in sorted(edited):
                prompt = prompts.prompts[row]
                own = slice(prompt.first, prompt.first + len(prompt.tokens))
                first = length - (prompts.length - len(prompt.tokens))
                read = attention_rows(query[own], edited_keys[own], edited_values[own], first, attention.impl.scale)
                attended.append((slice(prompt.first + first, own.stop), read))
        if not attended:
            return
        # Written last, so that a failure above leaves nothing half edited.
        self._update_cache(attention, edited_keys, edited_values)
        for place, read in attended:
            output.view(output.shape[0], *read.shape[1:])[place] = read.to(output.dtype)

    @contextmanager
    def _unedited_on_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.note_failure(error, 1)

    def note_failure(self, error: Exception, prompts: int) -> None:
        """Count prompts that ran without plug-ins, and keep the reason for the worker's report."""
        self.counts["failed"] += prompts
        self.failure = first_sentence(error)
        _logger.error("prompts ran without plug-ins (%s)", self.failure)
