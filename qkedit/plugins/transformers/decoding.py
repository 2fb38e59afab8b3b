"""Add the logits processors and arguments of plug-ins to a call of `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qkedit.errors import UsageError
from qkedit.plugins.core.decoding import DecodingEdit
from qkedit.plugins.transformers.hooks import in_this_thread, state_of


def with_decoding(given: Mapping[str, Any], edits: Mapping[str, DecodingEdit]) -> dict[str, Any]:
    """Return the arguments of `generate` with the plug-ins' logits processors and arguments.

    Args:
        given: the caller's arguments, by name.
        edits: the edits by the plug-in's name, in the order in which their processors run, before the caller's.

    Raises:
        UsageError: a plug-in sets an argument that the caller or another plug-in has set, or searches by a loop of its
            own together with another decoding plug-in, or needs the model's own logits after another's edit.
    """
    from transformers import LogitsProcessorList

    _refuse_edited_logits(edits)
    arguments = dict(given)
    processors: list[Any] = []
    for name, edit in edits.items():
        processors += edit.logits_processors()
        if "custom_generate" in edit.arguments() and len(edits) > 1:
            others = " and ".join(other for other in edits if other != name)
            raise UsageError(
                f"{others} cannot follow its search, which exchanges and takes back tokens",
                where=name,
                remedy="attach it without other plug-ins on decoding",
            )
        for key, value in edit.arguments().items():
            if arguments.get(key) is not None:
                raise UsageError(
                    f"{key} is set by the request or by another plug-in",
                    where=name,
                    remedy="leave it out of the request, or attach the plug-in alone",
                )
            arguments[key] = value
    if processors:
        processors += given.get("logits_processor") or ()
        arguments["logits_processor"] = LogitsProcessorList(processors)
    return arguments


def _refuse_edited_logits(edits: Mapping[str, DecodingEdit]) -> None:
    first = None
    for name, edit in edits.items():
        if first is not None and edit.needs_own_logits:
            raise UsageError(
                f"it needs the model's own logits, and {first} edits them before",
                where=name,
                remedy=f"leave {first} out" if edits[first].needs_own_logits else f"name {name} before {first}",
            )
        if first is None and _edits_logits(edit):
            first = name


def _edits_logits(edit: DecodingEdit) -> bool:
    return type(edit).edit_logits is not DecodingEdit.edit_logits


class EditedLogits:
    """The edits of the logits after every forward pass of one call of `generate`."""

    def __init__(self, edits: Sequence[DecodingEdit]) -> None:
        self._edits = [edit for edit in edits if _edits_logits(edit)]
        self._of_cache = [edit for edit in edits if type(edit).edit_cache is not DecodingEdit.edit_cache]
        self._is_prefill = True

    def after(self, output: Any, given: Mapping[str, Any]) -> Any:
        """Return the output of a forward pass with edited logits of its last column, and edit its cache."""
        for of_cache in self._of_cache:
            of_cache.edit_cache(output.past_key_values)
        tokens = None if self._is_prefill else given["input_ids"][:, -1]
        self._is_prefill = False
        if not self._edits:
            return output
        logits = output.logits[:, -1].float()
        for edit in self._edits:
            logits = edit.edit_logits(logits, tokens)
        output.logits = logits[:, None]
        return output


class ReportedLogits:
    """Hands over the logits of a branch unchanged after every forward pass."""

    def __init__(self, forwarded: Callable[[Tensor], None]) -> None:
        self._forwarded = forwarded

    def after(self, output: Any, given: Mapping[str, Any]) -> Any:
        """Return the output, whose logits have been seen."""
        self._forwarded(output.logits[:, -1].float())
        return output


@contextmanager
def editing_states(layers: nn.ModuleList, given: Mapping[str, Any], edits: Sequence[DecodingEdit]) -> Iterator[None]:
    """Let each edit change the state of the last token after the layers that it names, in this thread alone.

    Args:
        layers: the decoder's layers.
        given: the arguments of `generate`; its `input_ids` tell how long the prompts are.
        edits: edits without `edited_states` are ignored.
    """

    def after(edit: DecodingEdit, index: int, is_last: Callable[[int], bool]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, arguments: Mapping[str, Any], output: Any) -> Any:
            state = state_of(output)
            # Previews run without a cache; a prompt that runs in parts ends with the last of them.
            if arguments.get("past_key_values") is None or not is_last(state.shape[1] if index == first else 0):
                return None
            edited = torch.cat([state[:, :-1], edit.edit_state(index, state[:, -1])[:, None]], dim=1)
            return edited if isinstance(output, Tensor) else (edited, *output[1:])

        return in_this_thread(hook)

    with ExitStack() as hooks:
        for edit in edits:
            if not edit.edited_states:
                continue
            first, is_last = min(edit.edited_states), _counted(given["input_ids"].shape[1])
            for index in sorted(edit.edited_states):
                handle = layers[index].register_forward_hook(after(edit, index, is_last), with_kwargs=True)
                hooks.callback(handle.remove)
        yield


def _counted(length: int) -> Callable[[int], bool]:
    """Return a function that adds up columns, and returns whether they reach the end of a prompt of this length."""
    columns = 0

    def reach_its_end(more: int) -> bool:
        nonlocal columns
        columns += more
        return columns >= length

    return reach_its_end


@contextmanager
def observing(layers: nn.ModuleList, edits: Sequence[DecodingEdit]) -> Iterator[None]:
    """Show each edit the states of the last token after the layers that it observes, in this thread alone."""

    def after(edit: DecodingEdit, index: int) -> Callable[..., None]:
        return in_this_thread(
            lambda module, arguments, output: edit.observe_layer(index, state_of(output)[:, -1].detach())
        )

    with ExitStack() as hooks:
        for edit in edits:
            for index in sorted(edit.observed_layers):
                hooks.callback(layers[index].register_forward_hook(after(edit, index)).remove)
        yield


def prompts_in(given: Mapping[str, Any]) -> int:
    """Return the number of prompts in a call of `generate`: the rows of `input_ids` or of `inputs_embeds`."""
    rows = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    return 1 if rows is None else len(rows)
