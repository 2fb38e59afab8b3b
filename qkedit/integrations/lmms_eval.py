"""Let lmms-eval run its tasks on a model with plug-ins attached, found by an entry point of `lmms_eval.models`:

    lmms-eval --model qkedit --model_args pretrained=./edited,plugins=scr --tasks pope --batch_size 8

The arguments are `pretrained`, `revision`, `dtype`, `trust_remote_code`, `chat_template` and `plugins`. `plugins` is a
list of names joined by "+", in the form of `--plugin` (`scr+dscr:blend=0.5`), quoted if an option contains a comma; or
a settings file; or `none`. Without it, the plug-ins attached next to the weights run. docs/harness.md explains what
to consider when figures are compared.
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
from qkedit.runtime.chat_template import last_question
from qkedit.runtime.generation import LoadedModel, Prompt, load, respond_batch
from qkedit.runtime.sampling import samples

if TYPE_CHECKING:
    from PIL.Image import Image

# The maximum length of an answer for tasks that do not set one.
DEFAULT_ANSWER = 1024
_logger = logging.getLogger(__name__)


def manifest() -> ModelManifest:
    """Return the manifest of this model for lmms-eval's registry."""
    return ModelManifest(model_id="qkedit", chat_class_path=f"{__name__}.Qkedit")


@dataclass(frozen=True)
class _Request:
    """One request of a task: its position, its prompt, and its generation settings."""

    place: int
    prompt: Prompt
    generation: Mapping[str, Any]


class Qkedit(lmms):
    """A transformers model with plug-ins, behind lmms-eval's chat interface.

    Args:
        pretrained: a directory, a hub id, an alias or `demo`.
        plugins: see the module docstring; None for the plug-ins attached next to the weights.
        revision: the revision of a model on the hub.
        dtype: the dtype of the weights; `auto` for the stored one.
        trust_remote_code: whether Python code from the checkpoint may run.
        chat_template: a Jinja file, or `none`, to replace the model's own template.
        device: the device to run on; by default the one that accelerate assigns to this process.
        batch_size: the number of prompts in a batch.
        max_batch_size: accepted for compatibility with lmms-eval, and ignored.

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
                "%s runs with %s, which is attached next to its weights; lmms-eval's cache does not record plug-ins: "
                "with --use_cache, name them as plugins=…",
                pretrained,
                names,
            )

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer a task's requests, each with its own generation settings."""
        from tqdm import tqdm

        loaded = self.loaded
        if loaded is None:
            raise QkeditError("the model has been unloaded", where="lmms-eval", remedy="load it again")
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
        """Raise QkeditError: lmms-eval uses likelihoods only for models without a chat template."""
        raise _not_offered("multiple-choice tasks that compare likelihoods")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raise QkeditError: plug-ins act on the images of a single prompt."""
        raise _not_offered("multi-round tasks")

    def clean(self) -> None:
        """Detach the plug-ins and unload the model."""
        self._attached.close()
        self.loaded = None
        super().clean()

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[_Request]]:
        """Yield batches of requests with equal generation settings; images are opened batch by batch."""
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
    """Convert lmms-eval's messages to a prompt in the model's chat template.

    Raises:
        UsageError: the messages hold video or audio.
        TemplateFault: the template does not accept the messages.
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
                    f"the task has {part['type']}, and qkedit supports only images",
                    where="lmms-eval",
                    remedy="choose tasks with images",
                )
        turns.append({"role": message["role"], "content": content})
    return Prompt(loaded.text(turns), tuple(images), last_question(turns))


def generation_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a task's generation settings to those of `generate`, and keep `until`, the texts that end an answer.

    A task samples if it gives a temperature that is not nearly zero, or gives no temperature and sets `do_sample`.
    Otherwise the settings that only sampling uses are left out.
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
    """Return the named plug-ins, or else those attached to the model."""
    if text is None:
        return with_paper_defaults(attached_to(Path(model).expanduser()), model)
    # lmms-eval does not split at commas inside quotes, and does not remove the quotes.
    texts = text.strip("'\"").split("+")
    return with_paper_defaults(parse_plugins(texts) or (), model)


def _image(image: Any) -> Image:
    """Convert a task's image to RGB."""

    return read_image(Path(image)) if isinstance(image, str) else as_rgb(image)


def _until(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first occurrence of any of `stops`."""
    return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))]


def _batch_size(given: int | str) -> int:
    try:
        size = int(given)
    except ValueError:
        size = 0
    if size < 1:
        raise UsageError(f"{given!r} is not a batch size", where="--batch_size", remedy="give a number, such as 8")
    return size


def _not_offered(what: str) -> QkeditError:
    return QkeditError(f"qkedit does not run {what}", where="lmms-eval", remedy="choose tasks that generate answers")
