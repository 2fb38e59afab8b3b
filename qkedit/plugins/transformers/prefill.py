"""Run one prefill with images, and apply the plug-ins' edits at their layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from qkedit.errors import QkeditError, UnsupportedForm, UsageError
from qkedit.images import pixel_sha256
from qkedit.plugins.core.pictures import Pictures
from qkedit.plugins.core.prefill import Prefill, Span, StopForward
from qkedit.plugins.core.protocol import RequestEdit
from qkedit.plugins.core.recorded_attention import AttentionRecorder
from qkedit.plugins.transformers.attention import recording
from qkedit.plugins.transformers.hooks import in_this_thread, state_of
from qkedit.plugins.transformers.rotation import LayerRotations
from qkedit.plugins.transformers.spans import is_bidirectional, span_arguments
from qkedit.stopwatch import Stopwatch

Forward = Callable[..., Any]
Cuts = dict[int, dict[str, tuple[int, ...]]]  # column → plug-in → the rows whose cache it edits after that column


@dataclass(frozen=True)
class DecoderPrefill(Prefill):
    """A prefill on transformers.

    Attributes:
        decode: the decoder's own forward.
        pictures: the pictures of the request; None if they are not known.
    """

    decode: Forward = field(repr=False)
    pictures: Pictures | None = field(default=None, repr=False)

    def image_hashes(self) -> Sequence[str] | None:
        """See `Prefill.image_hashes`."""
        if self.pictures is None:
            return None
        return [pixel_sha256(image) for images in self.pictures.images for image in images]

    def key_rotations(self, layers: Iterable[int]) -> LayerRotations:
        """See `Prefill.key_rotations`."""
        return LayerRotations(self.parts, layers)

    def preview(self, last_layer: int, observe: Callable[[int, Tensor], None] | None = None) -> None:
        """Run the unedited decoder; see `Prefill.preview`. Raises UnsupportedForm if `last_layer` does not run."""
        arguments = span_arguments(self.arguments, Span(0, self.length), None, self.layer_types)
        arguments["use_cache"] = False

        def after(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if observe is not None:
                    observe(index, state_of(output))
                if index == last_layer:
                    raise StopForward

            return in_this_thread(hook)

        with ExitStack() as hooks, torch.no_grad():
            for index, layer in enumerate(self.parts.layers[: last_layer + 1]):
                hooks.callback(layer.register_forward_hook(after(index)).remove)
            try:
                self.decode(**arguments)
            except StopForward:
                return
        raise UnsupportedForm(
            f"layer {last_layer} did not run", where="model", remedy="use the plug-in on layers that the model runs"
        )

    def recording(self, recorder: AttentionRecorder) -> AbstractContextManager[None]:
        """See `Prefill.recording`."""
        return recording(self.parts.text_config, recorder)


def run_prefill(prefill: DecoderPrefill, edits: Mapping[str, RequestEdit], stopwatch: Stopwatch) -> Any:
    """Run the decoder over the whole prompt with the edits of all plug-ins, and return its output.

    Args:
        prefill: the prefill to run.
        edits: the edits by the plug-in's name.
        stopwatch: adds up the time of each plug-in.
    """
    cuts = _cuts(prefill, edits)
    if not cuts:
        with _stage(prefill, edits, Span(0, prefill.length), stopwatch):
            output = prefill.decode(**prefill.arguments)
        _finish(prefill, edits, output.past_key_values, stopwatch)
        return output
    _check_cuttable(prefill, edits, cuts)
    if is_bidirectional(prefill.arguments.get("attention_mask"), prefill.length - 1):
        # No other cuts are left here.
        return _run_last_again(prefill, edits, cuts, stopwatch)
    cache = _cache(prefill)
    states: list[Tensor] = []
    output = None
    edges = [0, *sorted(cuts), prefill.length]
    for span in (Span(first, end) for first, end in pairwise(edges)):
        output = _run_span(prefill, edits, span, cache, stopwatch)
        states.append(output.last_hidden_state)
        for name, rows in cuts.get(span.end, {}).items():
            with stopwatch(name):
                edits[name].edit_cache(cache, rows, span.end)
    _finish(prefill, edits, cache, stopwatch)
    output.last_hidden_state = torch.cat(states, dim=1)
    return output


def _run_last_again(
    prefill: DecoderPrefill,
    edits: Mapping[str, RequestEdit],
    cuts: Cuts,
    stopwatch: Stopwatch,
) -> Any:
    """Run bidirectional prompts (PaliGemma) whole, and then the last token again over the edited cache."""
    cache = _cache(prefill)
    with _stage(prefill, edits, Span(0, prefill.length), stopwatch):
        output = prefill.decode(**{**prefill.arguments, "past_key_values": cache, "use_cache": True})
    states = output.last_hidden_state
    for name, rows in cuts[prefill.length - 1].items():
        with stopwatch(name):
            edits[name].edit_cache(cache, rows, prefill.length)
    try:
        cache.crop(-1)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UnsupportedForm(
            f"its cache cannot drop the last token ({type(error).__name__})",
            where="cache",
            remedy="generate with the default cache, or with a prompt shorter than the sliding window",
        ) from error
    output = _run_span(prefill, edits, Span(prefill.length - 1, prefill.length), cache, stopwatch)
    _finish(prefill, edits, cache, stopwatch)
    output.last_hidden_state = torch.cat([states[:, :-1], output.last_hidden_state], dim=1)
    return output


def _run_span(
    prefill: DecoderPrefill, edits: Mapping[str, RequestEdit], span: Span, cache: Any, stopwatch: Stopwatch
) -> Any:
    arguments = span_arguments(prefill.arguments, span, cache, prefill.layer_types)
    arguments["use_cache"] = True
    with _stage(prefill, edits, span, stopwatch):
        return prefill.decode(**arguments)


def _finish(prefill: DecoderPrefill, edits: Mapping[str, RequestEdit], cache: Any, stopwatch: Stopwatch) -> None:
    for name, edit in edits.items():
        with stopwatch(name):
            edit.finish(cache, prefill.length)


@contextmanager
def _stage(
    prefill: DecoderPrefill, edits: Mapping[str, RequestEdit], span: Span, stopwatch: Stopwatch
) -> Iterator[None]:
    """Call the plug-ins around their layers; every requested layer must run exactly once."""
    passed: Counter[tuple[str, int]] = Counter()

    def before(name: str, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, arguments: Mapping[str, Any]) -> None:
            with stopwatch(name):
                edits[name].enter_layer(index, arguments, span)

        return in_this_thread(hook)

    def after(name: str, index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            passed[name, index] += 1
            with stopwatch(name):
                edited = edits[name].edit_layer(index, state_of(output), span)
            return edited if isinstance(output, Tensor) else (edited, *output[1:])

        return in_this_thread(hook)

    with ExitStack() as hooks:
        for name, edit in edits.items():
            for index in sorted(edit.entered_layers):
                layer = prefill.parts.layers[index]
                handle = layer.register_forward_pre_hook(before(name, index), with_kwargs=True)
                hooks.callback(handle.remove)
            for index in sorted(edit.edited_layers):
                hooks.callback(prefill.parts.layers[index].register_forward_hook(after(name, index)).remove)
        yield
    for name, edit in edits.items():
        for index in sorted(edit.edited_layers):
            if passed[name, index] != 1:
                raise QkeditError(
                    f"layer {index} ran {passed[name, index]} times instead of once",
                    where=name,
                    remedy="report the model's name",
                )


def _cuts(prefill: DecoderPrefill, edits: Mapping[str, RequestEdit]) -> Cuts:
    """Return the columns after which plug-ins edit the cache, with the rows."""
    cuts: Cuts = {}
    for name, edit in edits.items():
        for row, column in enumerate(edit.refine_after or ()):
            if column is None:
                continue
            last = max((extent.last for extent in prefill.grids.extents if extent.row == row), default=-1)
            if not last < column < prefill.length:
                raise UsageError(
                    f"a prompt of {prefill.length} tokens ends with its image, so nothing reads the edited cache",
                    where=name,
                    remedy="put text after the image",
                )
            plugins = cuts.setdefault(column, {})
            plugins[name] = (*plugins.get(name, ()), row)
    return cuts


def _check_cuttable(prefill: DecoderPrefill, edits: Mapping[str, RequestEdit], cuts: Cuts) -> None:
    """Refuse prefills that would give wrong results when run in parts."""
    if not prefill.real[:, -1].all():
        raise UsageError(
            "prompts are padded on the right", where="input_ids", remedy='pad on the left (padding_side="left")'
        )
    if prefill.arguments.get("use_cache") is False:
        raise UsageError("there is no cache to edit", where="use_cache", remedy="run the model with use_cache=True")
    for extra in ("output_hidden_states", "output_attentions", "output_router_logits"):
        given = prefill.arguments.get(extra)
        if given if given is not None else getattr(prefill.parts.text_config, extra, False):
            raise UsageError(
                f"{extra} is not available while a plug-in edits the cache", where=extra, remedy="switch it off"
            )
    masks = prefill.arguments.get("attention_mask")
    edits_states = any(edit.edited_layers for edit in edits.values())
    for column in cuts:
        cuts_image = any(extent.first < column <= extent.last for extent in prefill.grids.extents)
        # Attention is bidirectional over images in Gemma 3, over whole prompts in PaliGemma.
        ahead = column < prefill.length - 1 and is_bidirectional(masks, column)
        if cuts_image and (edits_states or ahead):
            raise UsageError(
                "one prompt's image would be cut where another's ends",
                where="batch",
                remedy="edit the cache after the prompt, or run prompts of different shape one by one",
            )
        if ahead:
            raise UsageError(
                "its prompts have bidirectional attention, so the question cannot be read after the cache is edited",
                where="model",
                remedy="edit the cache after the prompt",
            )


def _cache(prefill: DecoderPrefill) -> Any:
    from transformers import DynamicCache

    given = prefill.arguments.get("past_key_values")
    return DynamicCache(config=prefill.parts.text_config) if given is None else given
