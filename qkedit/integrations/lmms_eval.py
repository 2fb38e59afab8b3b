"""Let lmms-eval run its tasks on a model with plug-ins attached, found by an entry point of `lmms_eval.models`:

    lmms-eval --model qkedit --model_args pretrained=./edited,plugins=scr --tasks pope --batch_size 8

Arguments are `pretrained`, `revision`, `dtype`, `trust_remote_code`, `chat_template` and `plugins`: names joined by
"+", as `--plugin` takes them (`scr+dscr:blend=0.5`), in quotes where an option holds a comma; a settings file; or
`none`. Without `plugins` those attached next to the weights are run. docs/harness.md tells what to mind when figures
are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from qkedit.errors import QkeditError, UsageError
from qkedit.images import as_rgb, read_image
from qkedit.plugins.config_file import attached_to
from qkedit.plugins.paper_defaults import with_paper_defaults
from qkedit.plugins.settings import PluginSettings, make_plugins, parse_plugins
from qkedit.plugins.transformers.attach import attach
from qkedit.runtime.generation import LoadedModel, Prompt, load, respond_batch
from qkedit.runtime.sampling import samples

if TYPE_CHECKING:
    from PIL.Image import Image

# For tasks that do not say how long an answer may be.
DEFAULT_ANSWER = 1024
_logger = logging.getLogger(__name__)


def manifest() -> ModelManifest:
    """Return what lmms-eval's registry asks of the entry point."""
    return ModelManifest(model_id="qkedit", chat_class_path=f"{__name__}.Qkedit")


@dataclass(frozen=True)
class _Request:
    """One request of a task: its position, what is asked, and how it is to be answered."""

    place: int
    prompt: Prompt
    generation: Mapping[str, Any]


class Qkedit(lmms):
    """A model of transformers with plug-ins, as lmms-eval's chat interface has it.

    Args:
        pretrained: a directory, a hub id, an alias or `demo`.
        plugins: see the module; None for those attached next to the weights.
        revision: of a model on the hub.
        dtype: of the weights; `auto` for what is stored.
        trust_remote_code: whether Python code of the checkpoint's own may run.
        chat_template: a file in Jinja, or `none`, instead of the model's own template.
        device: where it runs; by default what accelerate picks for this process.
        batch_size: prompts answered side by side.
        max_batch_size: understood for lmms-eval's sake.

    Raises:
        QkeditError: the model cannot be loaded, or the plug-ins do not fit it.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        plugins: str | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | str | None = None,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
    ) -> None:
        from accelerate import Accelerator

        super().__init__()
        settings = _plugins(plugins, pretrained)
        chosen = make_plugins(settings)
        self.accelerator = Accelerator()
        alone = self.accelerator.num_processes == 1
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = str(device if device and alone else self.accelerator.device)
        self.batch_size = _batch_size(batch_size)
        self.loaded: LoadedModel | None = load(
            pretrained,
            revision=revision,
            device=self.device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            chat_template=chat_template,
        )
        self._attached = ExitStack()
        if chosen:
            self._attached.enter_context(attach(self.loaded.model, *chosen))
        if plugins is None and settings:
            names = "+".join(plugin.name for plugin in settings)
            _logger.warning(
                "%s runs with %s, as attached beside its weights; a cache of lmms-eval does not tell: "
                "name them as plugins=… where --use_cache is given",
                pretrained,
                names,
            )

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer a task's requests, each by the settings that it brings."""
        from tqdm import tqdm

        loaded = self.loaded
        if loaded is None:
            raise QkeditError("the model has been given up", where="lmms-eval", remedy="load it again")
        found: list[GenerationResult | None] = [None] * len(requests)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model responding") as bar:
            for batch in self._batches(requests):
                generation = dict(batch[0].generation)
                stops = generation.pop("until")
                answers = respond_batch(loaded, [request.prompt for request in batch], **generation)
                for request, answer in zip(batch, answers, strict=True):
                    counts = TokenCounts(output_tokens=answer.tokens)
                    found[request.place] = GenerationResult(_until(answer.text, stops), counts)
                bar.update(len(batch))
        return [result for result in found if result is not None]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: lmms-eval asks for it only of models without a chat template."""
        raise _not_offered("tasks of multiple choice by likelihood")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered: plug-ins act on the images of one prompt."""
        raise _not_offered("tasks of several rounds")

    def clean(self) -> None:
        """Detach the plug-ins and let the model go."""
        self._attached.close()
        self.loaded = None
        super().clean()

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[_Request]]:
        """Yield requests in batches of one kind; images are opened batch by batch."""
        settings = [generation_settings(request.args[2]) for request in requests]
        for _, alike in groupby(range(len(requests)), key=lambda place: settings[place]):
            places = list(alike)
            for start in range(0, len(places), self.batch_size):
                made = [
                    _Request(place, self._prompt(requests[place]), settings[place])
                    for place in places[start : start + self.batch_size]
                ]
                for _, like in groupby(made, key=lambda request: bool(request.prompt.images)):
                    yield list(like)

    def _prompt(self, request: Instance) -> Prompt:
        _, doc_to_messages, _, doc_id, task, split = request.args
        assert self.loaded is not None
        return conversation(self.loaded, doc_to_messages(self.task_dict[task][split][doc_id]))


def conversation(loaded: LoadedModel, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return lmms-eval's messages as a prompt in the model's chat template.

    Raises:
        UsageError: they hold videos or sound.
        TemplateFault: the template does not take them.
    """
    turns, images = [], []
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "image":
                images.append(_image(part["url"]))
                content.append({"type": "image"})
            elif part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
            else:
                raise UsageError(
                    f"a task shows {part['type']}, and qkedit runs images",
                    where="lmms-eval",
                    remedy="choose tasks with images",
                )
        turns.append({"role": message["role"], "content": content})
    return Prompt(loaded.text(turns), tuple(images))


def generation_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's generation settings as `generate` takes them, and `until`, the texts that end an answer.

    A task samples if it gives a temperature that is not nearly zero, or none and `do_sample`; otherwise what only
    sampling uses is left out.
    """
    sampled = samples(given.get("temperature"), by_default=bool(given.get("do_sample")))
    names = ("num_beams", "repetition_penalty", *(("temperature", "top_p", "top_k") if sampled else ()))
    until = given.get("until") or ()
    return {
        "max_new_tokens": int(given.get("max_new_tokens") or given.get("max_gen_toks") or DEFAULT_ANSWER),
        "do_sample": sampled,
        **{name: given[name] for name in names if given.get(name) is not None},
        "until": (until,) if isinstance(until, str) else tuple(until),
    }


def _plugins(text: str | None, model: str) -> tuple[PluginSettings, ...]:
    """Return the plug-ins that are named, else those attached to the model."""
    if text is None:
        return with_paper_defaults(attached_to(Path(model).expanduser()), model)
    # Quotes keep lmms-eval from splitting at commas, and stay.
    texts = text.strip("'\"").split("+")
    return with_paper_defaults(parse_plugins(texts) or (), model)


def _image(image: Any) -> Image:
    """Return what a task shows as a picture in RGB."""

    return read_image(Path(image)) if isinstance(image, str) else as_rgb(image)


def _until(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of the texts that end it."""
    return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))]


def _batch_size(given: int | str) -> int:
    try:
        size = int(given)
    except ValueError:
        size = 0
    if size < 1:
        raise UsageError(f"{given!r} is not a number of prompts", where="--batch_size", remedy="give one, such as 8")
    return size


def _not_offered(what: str) -> QkeditError:
    return QkeditError(f"qkedit does not run {what}", where="lmms-eval", remedy="choose tasks that generate answers")
