"""Run requests on transformers: load a model with its processor, answer prompts about images, alone or in batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.checkpoint.presets import DEMO, presets_by_alias
from qkedit.checkpoint.pretrained import check_own_code, check_trusted_code, from_pretrained
from qkedit.checkpoint.snapshot import model_directory
from qkedit.demo import demo_checkpoint
from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.attach import RequestReport, attach

if TYPE_CHECKING:
    from PIL.Image import Image

DTYPES = ("auto", "float32", "bfloat16", "float16")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model and its processor, ready to answer."""

    name: str
    model: Any
    processor: Any


@dataclass(frozen=True)
class Prompt:
    """What a processor takes: text with a placeholder for each image, and the images."""

    text: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: the answer without the prompt.
        tokens: how many it has, its end included.
        seconds: from the prepared inputs to the whole answer, or to the last one of its batch.
        report: what plug-ins did to the prefill, which all prompts of a batch share; None without plug-ins.
        is_cut: whether it was cut off at the longest length instead of ended by the model.
    """

    text: str
    tokens: int
    seconds: float
    report: RequestReport | None = None
    is_cut: bool = False


def load(
    model: str,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    trust_remote_code: bool | None = None,
) -> LoadedModel:
    """Load a model.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        revision: of a model on the hub.
        device: where it runs, as PyTorch names it.
        dtype: of its weights; `auto` for what is stored.
        trust_remote_code: whether Python code of the checkpoint's own may run; None where users cannot allow it.

    Raises:
        UsageError: the dtype is not known, or code on the hub is to run from a revision that is not a commit.
        QkeditError: transformers cannot load the model or its processor, or not without code of their own.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if dtype not in DTYPES:
        raise UsageError(f"{dtype!r} is no dtype", where="--dtype", remedy=f"give {', '.join(DTYPES)}")
    directory = directory_of(model, revision, trust_remote_code=bool(trust_remote_code))
    try:
        processor = from_pretrained(AutoProcessor, directory, where=model, trust_remote_code=trust_remote_code)
        loaded = from_pretrained(
            AutoModelForImageTextToText,
            directory,
            where=model,
            trust_remote_code=trust_remote_code,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map=device,
            use_safetensors=True,
        )
    except ImportError as error:
        raise QkeditError(
            f"it needs a package that is not installed ({_first_line(error)})",
            where=model,
            remedy="install it with `pip install 'qkedit[runtime]'`",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise QkeditError(
            f"transformers cannot load it ({_first_line(error)})",
            where=model,
            remedy="name a vision-language model with its processor's files",
        ) from error
    return LoadedModel(model, loaded.eval(), processor)


def directory_of(model: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """Return where a model's files are, downloaded if need be.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        revision: of a model on the hub.
        trust_remote_code: whether its own Python code is to run, and so is downloaded too.

    Raises:
        UsageError: an alias is also the name of a directory here, or code is to run from a branch or a tag.
        CheckpointError: there is no such model, or the hub cannot be reached.
        QkeditError: code is to run that stands in another repository.
    """
    place = _place(model)
    if not trust_remote_code:
        return model_directory(place, revision)
    check_trusted_code(place, revision)
    directory = model_directory(place, revision, with_code=True)
    check_own_code(directory)
    return directory


def prompt_text(processor: Any, prompt: str, images: int) -> str:
    """Return the text that a processor takes for a question about so many images: its chat template if it has one."""
    if getattr(processor, "chat_template", None):
        content: list[dict[str, Any]] = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text
    placeholder = getattr(processor, "image_token", "<image>")
    return placeholder * images + ("\n" if images else "") + prompt


def request_inputs(loaded: LoadedModel, images: Sequence[Image], prompt: str) -> Mapping[str, Any]:
    """Return the model's inputs for a question about some images, in its chat template if it has one."""
    return batch_inputs(loaded, [Prompt(prompt_text(loaded.processor, prompt, len(images)), tuple(images))])


def batch_inputs(loaded: LoadedModel, prompts: Sequence[Prompt]) -> Mapping[str, Any]:
    """Return the model's inputs for prompts side by side, the shorter ones padded on their left.

    On the left, since generation goes on from the last column.
    """
    processor = loaded.processor
    settings: dict[str, Any] = {"padding": True, "padding_side": "left"} if len(prompts) > 1 else {}
    if any(prompt.images for prompt in prompts):
        settings["images"] = [list(prompt.images) for prompt in prompts]
    # A chat template that begins with the token that begins a text has written it already.
    begin = getattr(getattr(processor, "tokenizer", None), "bos_token", None)
    if begin and all(prompt.text.startswith(begin) for prompt in prompts):
        settings["add_special_tokens"] = False
    inputs: Mapping[str, Any] = processor(
        text=[prompt.text for prompt in prompts], return_tensors="pt", **settings
    ).to(loaded.model.device, loaded.model.dtype)
    return inputs


def respond(
    loaded: LoadedModel,
    images: Sequence[Image],
    prompt: str,
    plugins: Sequence[Any] = (),
    *,
    max_new_tokens: int = 128,
) -> Answer:
    """Answer one prompt by greedy search, with plug-ins attached for as long as it takes.

    Raises:
        UsageError: the plug-ins do not fit the model, or act on images and there is none.
    """
    asked = Prompt(prompt_text(loaded.processor, prompt, len(images)), tuple(images))
    return respond_batch(loaded, [asked], plugins, max_new_tokens=max_new_tokens)[0]


def respond_batch(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    plugins: Sequence[Any] = (),
    *,
    max_new_tokens: int = 128,
    **generation: Any,
) -> tuple[Answer, ...]:
    """Answer prompts side by side, by greedy search unless `generation` says otherwise.

    A prompt's answer is the one it gets alone, but for the rounding of 16-bit arithmetic. Where a processor cannot
    take prompts together, they are answered one by one.

    Args:
        loaded: the model.
        prompts: either all with images or all without.
        plugins: attached for as long as it takes; none where they are attached already.
        max_new_tokens: longest answer.
        generation: further arguments of `generate`, such as `num_beams`.

    Raises:
        UsageError: the plug-ins do not fit the model.
    """
    settings = {"do_sample": False, **generation, "max_new_tokens": max_new_tokens}
    answers: list[Answer] = []
    ends = _ends(loaded.model)
    with attach(loaded.model, *plugins) if plugins else nullcontext() as attached:
        for inputs in _prepared(loaded, prompts):
            outputs, seconds = _generated(loaded, inputs, settings)
            reports = attached.report() if attached is not None else ()
            for new in outputs:
                text = loaded.processor.decode(new, skip_special_tokens=True).strip()
                is_cut = len(new) >= max_new_tokens and new[-1] not in ends
                answers.append(Answer(text, len(new), seconds, reports[-1] if reports else None, is_cut))
    return tuple(answers)


def _prepared(loaded: LoadedModel, prompts: Sequence[Prompt]) -> Iterator[Mapping[str, Any]]:
    """Yield the inputs of all prompts, together if the processor takes them so, else one by one."""
    try:
        together = batch_inputs(loaded, prompts)
    except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
        if len(prompts) == 1:
            raise
        # Whatever a processor says of a batch, it may take the prompts one by one, or say then what is wrong.
        _logger.info("the processor takes no batches (%s)", _first_line(error))
        yield from (batch_inputs(loaded, [prompt]) for prompt in prompts)
        return
    yield together


def _generated(
    loaded: LoadedModel, inputs: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[list[list[int]], float]:
    """Return the tokens of each answer, up to its end and with it, and how long they took, in seconds."""
    import torch

    start = time.perf_counter()
    with torch.no_grad():
        output = loaded.model.generate(**inputs, **settings)
    seconds = time.perf_counter() - start
    # What follows an end fills the row while others are still answered.
    ends = _ends(loaded.model)
    return [_until_end(new, ends) for new in output[:, inputs["input_ids"].shape[1] :].tolist()], seconds


def _ends(model: Any) -> frozenset[int]:
    """Return the tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Return the tokens up to the first end and with it."""
    return next((tokens[: place + 1] for place, token in enumerate(tokens) if token in ends), tokens)


def _place(model: str) -> str:
    """Return which model a name stands for: a path, or the hub id of an alias.

    Raises:
        UsageError: an alias is also the name of a directory here.
    """
    path, preset = Path(model).expanduser(), presets_by_alias().get(model.lower())
    is_demo = model.lower() == DEMO
    if path.is_dir() and (is_demo or preset):
        raise UsageError(
            "the name stands for a known model and for a directory here",
            where=model,
            remedy=f"write ./{model} for the directory" + (f", or {preset.hub_id} for the model" if preset else ""),
        )
    if is_demo:
        return str(demo_checkpoint())
    return preset.hub_id if preset else str(path)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
