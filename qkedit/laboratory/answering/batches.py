"""The requests of an evaluation set, and the plug-ins for a batch of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from qkedit.laboratory.eval_set import EvalSet
from qkedit.plugins.settings import PluginSettings, make_plugins
from qkedit.runtime.generation import LoadedModel, Prompt, prompt_text


@dataclass(frozen=True)
class Request:
    """One prompt about one scene, by its position in the evaluation set."""

    scene: int
    prompt: str
    max_new_tokens: int


Batch = list[Request]
Said = Iterator[tuple[Request, str]]


def prompt_of(loaded: LoadedModel, eval_set: EvalSet, request: Request) -> Prompt:
    """Return the prompt of a request with its picture."""
    picture = Image.fromarray(eval_set.scenes[request.scene].image)
    return Prompt(prompt_text(loaded, request.prompt, images=1), (picture,), request.prompt)


def plugins_for(
    settings: Sequence[PluginSettings], loaded: LoadedModel, eval_set: EvalSet, batch: Batch, number: int
) -> list[Any]:
    """Return the plug-ins for a batch: a `dscr` without a depth has the true depth of each request's scene.

    Args:
        settings: the settings of the plug-ins.
        loaded: the model.
        eval_set: the evaluation set.
        batch: the requests.
        number: of the batch. Attaching restarts random draws, but different batches need different draws.
    """
    plugins = make_plugins(settings)
    for place, (chosen, plugin) in enumerate(zip(settings, plugins, strict=True)):
        if chosen.name == "dscr" and "depth" not in chosen.options:
            depths = [torch.from_numpy(eval_set.scenes[request.scene].depth) for request in batch]
            plugins[place] = replace(plugin, depth=depths, processor=loaded.processor)
        elif chosen.name == "scr" and plugin.selection == "uniform":
            plugins[place] = replace(plugin, seed=plugin.seed + number)
        elif chosen.options.get("control") is not None:
            plugins[place] = replace(plugin, control=plugin.control + number)
    return plugins


def grouped(requests: Iterable[Request], key: Callable[[Request], Hashable]) -> list[Batch]:
    """Return the requests with each key, in the order of their first request."""
    groups: dict[Hashable, Batch] = defaultdict(list)
    for request in requests:
        groups[key(request)].append(request)
    return list(groups.values())
