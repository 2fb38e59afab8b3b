"""Attach plug-ins to a loaded model, so that every prefill that brings images passes through them.

    with attach(model, SCR()) as attached:
        model.generate(**inputs)
        attached.report()

Two or three methods of the model are replaced on this instance: the forward of the part that merges images into the
prompt, where a request is recognised; its image encoder, to know which images a request brings (`generate` encodes
them ahead and hands on features alone); and the forward of the decoder, where the plug-ins act. So `generate`, servers
and harnesses get the plug-ins alike, whatever they do around it, and prompts without images and decoding steps run as
they were. No weight changes, and detaching restores the very attributes there were.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.grid import image_grids
from qkedit.plugins.parts import ModelParts, model_parts
from qkedit.plugins.prefill import Forward, Prefill, Stopwatch, run_prefill
from qkedit.plugins.protocol import BoundPlugin, Plugin
from qkedit.plugins.spans import real_tokens

# Reports of earlier requests are dropped, so that a server does not grow.
REPORTS_KEPT = 1000
# Where the encoder's inputs are remembered, on the features it returned.
INPUTS = "_qkedit_inputs"

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class RequestReport:
    """What the plug-ins did to one prefill.

    Attributes:
        prompts: rows of the batch (beams and several answers to one prompt count each).
        images: images in these rows.
        image_tokens: placeholders, including those that are no cell.
        cells: image tokens that are cells of a grid.
        plugins: each plug-in's own report, by its name.
        seconds: host time spent in each plug-in, by its name.
    """

    prompts: int
    images: int
    image_tokens: int
    cells: int
    plugins: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]


def attach(model: Any, *plugins: Plugin) -> Attachment:
    """Attach plug-ins to a model; use it in a `with` statement or call `detach()` at the end.

    Args:
        model: a vision-language model of transformers, as `AutoModelForImageTextToText` loads it.
        plugins: settings such as `SCR()`; several act in one prefill, in this order.

    Raises:
        UsageError: no plug-in or one twice, a model that is compiled or has plug-ins attached, settings that do not
            fit the model.
        UnsupportedForm: a model whose image tokens form no grid, or whose parts are not where they are known to be.
    """
    attachment = Attachment(model, *plugins)
    attachment.attach()
    return attachment


class Attachment:
    """Plug-ins on one model: `attach()`, `detach()`, `report()`; a context manager that detaches at its end."""

    def __init__(self, model: Any, *plugins: Plugin) -> None:
        if not plugins:
            raise UsageError("no plug-in is given", where="attach", remedy="name one, such as SCR()")
        names = [plugin.name for plugin in plugins]
        if len(set(names)) < len(names):
            raise UsageError(f"plug-ins {names} are not different", where="attach", remedy="name each one once")
        self._parts = model_parts(model)
        self._plugins: dict[str, BoundPlugin] = {plugin.name: plugin.bind(self._parts) for plugin in plugins}
        self._reports: deque[RequestReport] = deque(maxlen=REPORTS_KEPT)
        self._replaced: list[tuple[nn.Module, str, Any]] = []
        self._one_prefill = threading.RLock()
        self._thread = threading.local()

    def __enter__(self) -> Self:
        """Attach if that has not been done."""
        if not self._replaced:
            self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()

    def attach(self) -> None:
        """Begin to act. Raises UsageError if plug-ins are attached to the model already."""
        base, decoder = self._parts.base, self._parts.decoder
        if decoder in _attached:
            raise UsageError(
                "plug-ins are attached to the model already",
                where="attach",
                remedy="detach them first, or attach all of them in one call",
            )
        _attached.add(decoder)
        self._replace(base, "get_image_features", self._encode)
        self._replace(base, "forward", self._forward)
        if decoder is not base:
            self._replace(decoder, "forward", self._decode)

    def detach(self) -> None:
        """Restore the model as it was; does nothing if nothing is attached."""
        while self._replaced:
            module, name, before = self._replaced.pop()
            if before is None:
                delattr(module, name)
            else:
                setattr(module, name, before)
        _attached.discard(self._parts.decoder)

    def report(self) -> tuple[RequestReport, ...]:
        """Return what was done to each prefill that brought images, the oldest first, the last 1000 at most."""
        return tuple(self._reports)

    def _replace(self, module: nn.Module, name: str, replacement: Callable[..., Any]) -> None:
        original = getattr(module, name)
        before = vars(module).get(name)  # set where another library has replaced the method before

        @functools.wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs)

        self._replaced.append((module, name, before))
        setattr(module, name, replaced)

    def _encode(self, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """The image encoder, remembering on the features what they were made from."""
        features = original(*args, **kwargs)
        object.__setattr__(features, INPUTS, _bound(original, args, kwargs))
        return features

    def _forward(self, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """The whole model: recognise a prefill with images."""
        given = _bound(original, args, kwargs) if args else kwargs
        if not _brings_images(given):
            return original(*args, **kwargs)
        return self._edited_forward(original, given)

    @torch.compiler.disable
    def _edited_forward(self, original: Forward, given: Mapping[str, Any]) -> Any:
        _check_request(given)
        if self._parts.model.training:
            raise UsageError("the model is in training mode", where="model", remedy="call model.eval()")
        with self._one_prefill, self._request(given) as request:
            if self._parts.decoder is self._parts.base:
                output = self._run(request, original, _merged(self._parts, original, given))
            else:
                output = original(**given)
            if not request.done:
                raise QkeditError(
                    "the plug-ins did not act: the model passed its decoder by",
                    where=type(self._parts.model).__name__,
                    remedy="report it with the model's name",
                )
        return output

    def _decode(self, original: Forward, *args: Any, **kwargs: Any) -> Any:
        """The decoder: run the edited prefill if a request is waiting for it."""
        # A compiled step is a decoding step: prefills with images are kept out of compilation above.
        if torch.compiler.is_compiling():
            return original(*args, **kwargs)
        request = getattr(self._thread, "request", None)
        if request is None or request.done:
            return original(*args, **kwargs)
        return self._run(request, original, _bound(original, args, kwargs))

    def _run(self, request: _Request, decode: Forward, arguments: Mapping[str, Any]) -> Any:
        given = request.given
        input_ids, inputs = given["input_ids"], _image_inputs(given)
        grids = image_grids(self._parts.config, input_ids, inputs)
        real = real_tokens(given.get("attention_mask"), *input_ids.shape)
        prefill = Prefill(self._parts, grids, input_ids, real, inputs, arguments, decode)
        request.done = True  # from here on the decoder is called by the plug-ins
        stopwatch = Stopwatch()
        edits = {}
        for name, plugin in self._plugins.items():
            with stopwatch(name):
                edits[name] = plugin.start(prefill)
        output = run_prefill(prefill, edits, stopwatch)
        self._reports.append(
            RequestReport(
                prompts=grids.batch,
                images=len(grids.extents),
                image_tokens=int(grids.placeholders.sum()),
                cells=sum(grid.positions.numel() for grid in grids.grids),
                plugins={name: edit.report() for name, edit in edits.items()},
                seconds=dict(stopwatch.seconds),
            )
        )
        return output

    @contextmanager
    def _request(self, given: Mapping[str, Any]) -> Iterator[_Request]:
        """Let the decoder know, in this thread, that a prefill is on its way."""
        self._thread.request = _Request(given)
        try:
            yield self._thread.request
        finally:
            self._thread.request = None


class _Request:
    """A prefill with images that has been recognised; `done` once the plug-ins have taken it up."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.done = False


def _bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, those in `**kwargs` among the others."""
    signature = inspect.signature(function)
    bound = dict(signature.bind_partial(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            bound.update(bound.pop(name, {}))
    return bound


def _encoded(given: Mapping[str, Any]) -> Mapping[str, Any]:
    encoded = given.get("mm_encoder_outputs")
    return encoded if isinstance(encoded, Mapping) else {}


def _brings_images(given: Mapping[str, Any]) -> bool:
    encoded = _encoded(given)
    return any(
        value is not None
        for value in (
            given.get("pixel_values"),
            given.get("pixel_values_videos"),
            encoded.get("image"),
            encoded.get("video"),
        )
    )


def _check_request(given: Mapping[str, Any]) -> None:
    """Refuse prefills that the plug-ins would get wrong."""
    if given.get("pixel_values_videos") is not None or _encoded(given).get("video") is not None:
        raise UsageError(
            "plug-ins act on images, not on videos", where="pixel_values_videos", remedy="pass frames as images"
        )
    if given.get("input_ids") is None:
        raise UsageError(
            "image tokens cannot be found in embeddings", where="inputs_embeds", remedy="pass input_ids instead"
        )
    cache = given.get("past_key_values")
    if cache is not None and int(cache.get_seq_length()) > 0:
        raise UsageError(
            "images come on top of a conversation that is in the cache already",
            where="past_key_values",
            remedy="begin with an empty cache and the whole conversation, without prefill_chunk_size",
        )


def _image_inputs(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the image encoder was given, whether the model runs it now or it ran before."""
    if given.get("pixel_values") is not None:
        return given
    inputs = getattr(_encoded(given)["image"], INPUTS, None)
    if inputs is None:
        raise UsageError(
            "the images were encoded before the plug-ins were attached",
            where="mm_encoder_outputs",
            remedy="attach first, or pass pixel_values",
        )
    return inputs


class _Merged(Exception):
    """Leaves the model once image features and prompt are merged."""

    def __init__(self, state: torch.Tensor) -> None:
        self.state = state


def _merged(parts: ModelParts, forward: Forward, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a model that is its own decoder (Chameleon): images and prompt merged into `inputs_embeds`."""

    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Merged(args[0])

    handle = parts.layers[0].register_forward_pre_hook(stop)
    try:
        forward(**{**given, "past_key_values": None, "use_cache": False})
    except _Merged as merged:
        rest = {
            name: value
            for name, value in given.items()
            if name not in ("input_ids", "pixel_values", "mm_encoder_outputs", "inputs_embeds")
        }
        return {**rest, "inputs_embeds": merged.state}
    finally:
        handle.remove()
    raise QkeditError("its first layer did not run", where=type(parts.model).__name__)
