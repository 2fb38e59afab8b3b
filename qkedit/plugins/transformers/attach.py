"""Attach plug-ins to a loaded model, so that every prefill with images passes through them.

    with attach(model, SCR()) as attached:
        model.generate(**inputs)
        attached.report()

A few methods of the model are replaced on this instance: its forward, and that of the part that merges images into the
prompt, to recognise a request; its image encoder, to know the images of a request (`generate` encodes them first and
passes on only features); and the forward of the decoder, where the plug-ins act. So plug-ins act in the same way under
`generate`, servers and harnesses, and prompts without images and decoding steps run unchanged. Plug-ins that act on
decoding wrap `generate` itself, to which they add logits processors and arguments, and see the logits of each of its
forward passes. Weights do not change, and detaching restores the original attributes.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.core.decoding import AttentionEdit, DecodingEdit, Generation
from qkedit.plugins.core.grid import image_grids
from qkedit.plugins.core.pictures import pictures_of, reads_pictures
from qkedit.plugins.core.protocol import BoundPlugin, DecodingPlugin, Plugin, PrefillPlugin
from qkedit.plugins.core.report import RequestReport
from qkedit.plugins.transformers.attention_scores import edited_attention, in_this_branch
from qkedit.plugins.transformers.branch import LockstepBranch
from qkedit.plugins.transformers.counts import counted, counted_in
from qkedit.plugins.transformers.decoding import (
    EditedLogits,
    ReportedLogits,
    editing_states,
    observing,
    with_decoding,
)
from qkedit.plugins.transformers.modules import layers_uncompiled, vlm_modules
from qkedit.plugins.transformers.prefill import DecoderPrefill, Forward, run_prefill
from qkedit.plugins.transformers.request import (
    Request,
    bound,
    check_request,
    has_images,
    image_inputs,
    merged,
    remember_inputs,
)
from qkedit.plugins.transformers.spans import real_tokens
from qkedit.stopwatch import Stopwatch

# Reports of earlier requests are dropped, so that a server's memory does not grow.
REPORTS_KEPT = 1000
_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def attach(model: Any, *plugins: Plugin) -> Attachment:
    """Attach plug-ins to a model, for use in a `with` statement or with `detach()` at the end.

    Args:
        model: what `qkedit.load` returns, or a vision-language model of transformers, such as that in it.
        plugins: settings such as `SCR()`; several act in one prefill, in this order.

    Raises:
        UsageError: there is no plug-in, or one twice; the model is compiled or already has plug-ins; or the settings
            do not fit the model.
        UnsupportedForm: the model's image tokens do not form a grid, or its modules have an unknown structure.
    """
    attachment = Attachment(model, *plugins)
    attachment.attach()
    return attachment


class Attachment:
    """Plug-ins on one model: `attach()`, `detach()`, `report()`; a context manager that detaches at its end."""

    def __init__(self, model: Any, *plugins: Plugin) -> None:
        if not plugins:
            raise UsageError("no plug-in is given", where="attach", remedy="give one, such as SCR()")
        names = [plugin.name for plugin in plugins]
        if len(set(names)) < len(names):
            raise UsageError(f"plug-ins {names} are not distinct", where="attach", remedy="give each one once")
        self._parts = vlm_modules(model)
        bound_plugins: dict[str, BoundPlugin] = {plugin.name: plugin.bind(self._parts) for plugin in plugins}
        self._prefill = {name: bound for name, bound in bound_plugins.items() if isinstance(bound, PrefillPlugin)}
        self._decoding = {name: bound for name, bound in bound_plugins.items() if isinstance(bound, DecodingPlugin)}
        self._reads_pictures = any(map(reads_pictures, plugins))
        self._reports: deque[RequestReport] = deque(maxlen=REPORTS_KEPT)
        self._replaced: list[tuple[nn.Module, str, Any]] = []
        self._one_prefill = threading.RLock()
        self._thread = threading.local()

    def __enter__(self) -> Self:
        """Attach the plug-ins unless they are attached already."""
        if not self._replaced:
            self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()

    def attach(self) -> None:
        """Attach the plug-ins. Raises UsageError if the model already has plug-ins."""
        model, base, decoder = self._parts.model, self._parts.base, self._parts.decoder
        if decoder in _attached:
            raise UsageError(
                "plug-ins are already attached to the model",
                where="attach",
                remedy="detach them first, or attach all of them in one call",
            )
        _attached.add(decoder)
        if self._prefill:
            self._replace(base, "get_image_features", self._encode)
            self._replace(model, "forward", self._model_forward)
            self._replace(base, "forward", self._base_forward)
            if decoder is not base:
                self._replace(decoder, "forward", self._decode)
            self._replace(model, "_get_candidate_generator", self._guess)
            if self._reads_pictures:
                self._replace(model, "generate", self._generate_with_pictures)
        if self._decoding:
            # Around the other one: a branch of the model has a prefill too, and waits until this one's has ended.
            self._replace(model, "forward", self._decoding_forward)
            self._replace(model, "generate", self._generate)

    def detach(self) -> None:
        """Restore the original model; without attached plug-ins, do nothing."""
        while self._replaced:
            module, name, before = self._replaced.pop()
            if before is None:
                delattr(module, name)
            else:
                setattr(module, name, before)
        _attached.discard(self._parts.decoder)

    @property
    def needs_images(self) -> bool:
        """True if no plug-in acts on a request without images."""
        return not self._decoding

    def report(self) -> tuple[RequestReport, ...]:
        """Return the reports on the last 1000 requests, the oldest first.

        A request is a prefill with images, or a call of `generate` if a plug-in acts on decoding.
        """
        return tuple(self._reports)

    def _replace(self, module: nn.Module, name: str, replacement: Callable[..., Any]) -> None:
        original = getattr(module, name)
        before = vars(module).get(name)  # set if another library has replaced the method

        @functools.wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs)

        self._replaced.append((module, name, before))
        setattr(module, name, replaced)

    def _encode(self, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run the image encoder, and store its inputs with the features."""
        features = original(*args, **kwargs)
        remember_inputs(features, bound(original, args, kwargs))
        return features

    def _model_forward(self, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run the whole model, recognising a prefill with images."""
        given = bound(original, args, kwargs) if args else kwargs
        if not has_images(given):
            return original(*args, **kwargs)
        return self._edited_forward(original, given)

    def _base_forward(self, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run the part that merges images and prompt, inside the whole model's forward or by itself."""
        given = bound(original, args, kwargs) if args else kwargs
        if not has_images(given):
            return original(*args, **kwargs)
        request = self._waiting()
        if request is None:
            return self._edited_forward(functools.partial(self._base_forward, original), given)
        if self._parts.decoder is self._parts.base and not request.done:
            return self._run(request, original, merged(self._parts, original, given))
        return original(*args, **kwargs)

    # A prefill with images runs outside any compilation of the model.
    @torch.compiler.disable
    def _edited_forward(self, original: Forward, given: Mapping[str, Any]) -> Any:
        check_request(given)
        if self._parts.model.training:
            raise UsageError("the model is in training mode", where="model", remedy="call model.eval()")
        with (
            self._one_prefill,
            layers_uncompiled(self._parts.layers),
            self._held("request", Request(given)) as request,
        ):
            output = original(**given)
            if not request.done:
                raise QkeditError(
                    "the plug-ins did not act: the model did not call its decoder",
                    where=type(self._parts.model).__name__,
                    remedy="detach and attach again if a part of the model was replaced, else report the model's name",
                )
        return output

    def _decoding_forward(self, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """The whole model in a call of `generate` on which plug-ins act: they see its logits."""
        output = original(*args, **kwargs)
        stage: EditedLogits | ReportedLogits | None = getattr(self._thread, "logits", None)
        if stage is None or torch.compiler.is_compiling():
            return output
        return stage.after(output, bound(original, args, kwargs) if args else kwargs)

    def _generate_with_pictures(self, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run `generate` with its pictures at hand for the prefill."""
        with self._held("pictures", pictures_of(bound(original, args, kwargs))):
            return original(*args, **kwargs)

    def _generate(self, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run `generate` with the additions of plug-ins to its decoding."""
        given = bound(original, args, kwargs)
        if given.get("inputs") is not None:  # another name of `generate` for them
            given["input_ids"] = given.pop("inputs")
        in_branches: list[AttentionEdit | None] = []
        generation = Generation(self._parts, given, functools.partial(self._start_branch, original, in_branches))
        edits: dict[str, DecodingEdit] = {}
        before = self._last_report()
        with ExitStack() as ends:
            for name, plugin in self._decoding.items():
                edits[name] = plugin.start_decoding(generation)
                ends.callback(edits[name].close)
            started = list(edits.values())
            ends.enter_context(self._held("logits", EditedLogits(started)))
            ends.enter_context(editing_states(self._parts.layers, given, started))
            ends.enter_context(observing(self._parts.layers, started))
            ends.enter_context(edited_attention(self._parts.text_config, given, started, in_branches))
            output = original(**with_decoding(given, edits))
        of_decoding = {name: edit.report() for name, edit in edits.items()}
        # A prefill with images has already reported; together they are one request.
        if (last := self._last_report()) is not None and last is not before:
            self._reports[-1] = replace(last, plugins={**last.plugins, **of_decoding})
        else:
            self._reports.append(replace(counted(self._parts.config, given), plugins=of_decoding))
        return output

    def _start_branch(
        self, original: Forward, begun: list[Any], inputs: Mapping[str, Any], attention: AttentionEdit | None = None
    ) -> LockstepBranch:
        """Return a branch: the unwrapped `generate`, in whose thread plug-ins edit prefills and nothing reports."""

        def generate(**arguments: Any) -> Any:
            with self._held("logits", ReportedLogits(branch.forwarded)), in_this_branch(attention):
                return original(**arguments)

        begun.append(attention)
        return (branch := LockstepBranch(self._parts.model, generate, inputs))

    @contextmanager
    def _held(self, name: str, value: Any) -> Iterator[Any]:
        """Keep a value for this thread during a block: its prefill, its pictures, or the stage for its logits."""
        setattr(self._thread, name, value)
        try:
            yield value
        finally:
            setattr(self._thread, name, None)

    def _guess(self, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """Refuse assisted generation: draft tokens would be in the prefill like a part of the prompt."""
        if has_images(bound(original, args, kwargs).get("model_kwargs", {})):
            raise UsageError(
                "draft tokens would be mistaken for the question",
                where="assisted generation",
                remedy="generate without an assistant and without prompt_lookup_num_tokens",
            )
        return original(*args, **kwargs)

    def _decode(self, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run the decoder, with the edited prefill if a request is waiting for it."""
        # A compiled step is a decoding step; reading thread-local state would cause its recompilation.
        if torch.compiler.is_compiling():
            return original(*args, **kwargs)
        request = self._waiting()
        if request is None or request.done:
            return original(*args, **kwargs)
        return self._run(request, original, bound(original, args, kwargs))

    def _run(self, request: Request, decode: Forward, arguments: Mapping[str, Any]) -> Any:
        given = request.given
        input_ids, inputs = given["input_ids"], image_inputs(given)
        grids = image_grids(self._parts.config, input_ids, inputs)
        real = real_tokens(given.get("attention_mask"), *input_ids.shape)
        pictures = getattr(self._thread, "pictures", None)
        prefill = DecoderPrefill(self._parts, grids, input_ids, real, inputs, arguments, decode, pictures)
        request.done = True  # from here on the plug-ins call the decoder
        stopwatch = Stopwatch()
        edits = {}
        for name, plugin in self._prefill.items():
            with stopwatch(name):
                edits[name] = plugin.start(prefill)
        output = run_prefill(prefill, edits, stopwatch)
        if isinstance(getattr(self._thread, "logits", None), ReportedLogits):
            return output  # the request is that of the answer
        self._reports.append(
            replace(
                counted_in(grids),
                plugins={name: edit.report() for name, edit in edits.items()},
                seconds=dict(stopwatch.seconds),
            )
        )
        return output

    def _last_report(self) -> RequestReport | None:
        return self._reports[-1] if self._reports else None

    def _waiting(self) -> Request | None:
        """The running prefill of this thread."""
        return getattr(self._thread, "request", None)
