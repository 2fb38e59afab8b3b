"""Add the logits processors and arguments of plug-ins to a call of `generate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qkedit.errors import UsageError
from qkedit.plugins.core.decoding import DecodingEdit


def with_decoding(given: Mapping[str, Any], edits: Mapping[str, DecodingEdit]) -> dict[str, Any]:
    """Return the arguments of `generate` with the plug-ins' logits processors and arguments.

    Args:
        given: the caller's arguments, by name.
        edits: the edits by the plug-in's name, in the order in which their processors run, before the caller's.

    Raises:
        UsageError: a plug-in sets an argument that the caller or another plug-in has set.
    """
    from transformers import LogitsProcessorList

    arguments = dict(given)
    processors: list[Any] = []
    for name, edit in edits.items():
        processors += edit.logits_processors()
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


def prompts_in(given: Mapping[str, Any]) -> int:
    """Return the number of prompts in a call of `generate`: the rows of `input_ids` or of `inputs_embeds`."""
    rows = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    return 1 if rows is None else len(rows)
