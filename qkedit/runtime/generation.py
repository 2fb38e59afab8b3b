"""Generate answers with transformers to prompts about images, singly or in batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qkedit.checkpoint.pretrained import check_torchvision
from qkedit.errors import QkeditError, UsageError, first_sentence
from qkedit.plugins.core.pictures import Pictures, remember_pictures
from qkedit.plugins.core.report import RequestReport
from qkedit.plugins.transformers.attach import attach
from qkedit.runtime.chat_template import user_turn
from qkedit.runtime.loading import LoadedModel
from qkedit.runtime.loading import directory_of as directory_of
from qkedit.runtime.loading import load as load
from qkedit.runtime.processor_errors import refuse_placeholders, refused

if TYPE_CHECKING:
    from PIL.Image import Image

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """The input of a processor: text with a placeholder for each image, and the images.

    Attributes:
        text: the text, in the model's chat template.
        images: the images.
        question: what the text asks, without the template, for plug-ins that read it; "" if it is not known.
    """

    text: str
    images: tuple[Image, ...] = ()
    question: str = ""


@dataclass(frozen=True)
class Answer:
    """The answer of a model.

    Attributes:
        text: the answer without the prompt.
        tokens: the number of its tokens, including its end.
        seconds: the time from the prepared inputs to the whole answer, or to the last answer of its batch.
        report: the report of plug-ins on the prefill, which all prompts of a batch share; None without plug-ins.
        is_cut: whether it was truncated at the maximum length instead of ended by the model.
        chat_template: the model's template in the form of a run's record; None if it gets the bare prompt.
        ids: its tokens, including its end.
        row: its place in the batch that the report is about.
    """

    text: str
    tokens: int
    seconds: float
    report: RequestReport | None = None
    is_cut: bool = False
    chat_template: Mapping[str, Any] | None = None
    ids: tuple[int, ...] = ()
    row: int = 0


class ProcessorFault(QkeditError):
    """A processor does not accept its input."""


def prompt_text(loaded: LoadedModel, prompt: str, images: int) -> str:
    """Return the processor's text for a question about this number of images, in the model's chat template.

    Raises:
        UsageError: the question holds a text that stands for an image.
    """
    refuse_placeholders(loaded.processor, prompt, loaded.name)
    return loaded.text([user_turn(prompt, images)])


def request_inputs(loaded: LoadedModel, images: Sequence[Image], prompt: str) -> Mapping[str, Any]:
    """Return the model's inputs for a question about images, in its chat template."""
    return batch_inputs(loaded, [Prompt(prompt_text(loaded, prompt, len(images)), tuple(images), prompt)])


def batch_inputs(loaded: LoadedModel, prompts: Sequence[Prompt]) -> Mapping[str, Any]:
    """Return the model's inputs for a batch of prompts, padded on the left, and store their pictures with them.

    The padding is on the left because generation continues from the last column.

    Raises:
        ProcessorFault: the processor does not accept them.
    """
    inputs = _processed(loaded, prompts)

    def with_others(images: Sequence[Sequence[Image]]) -> Mapping[str, Any]:
        others = zip(prompts, images, strict=True)
        return _processed(loaded, [replace(prompt, images=tuple(own)) for prompt, own in others])

    questions = [prompt.question for prompt in prompts]
    remember_pictures(inputs, Pictures([prompt.images for prompt in prompts], with_others, questions))
    return inputs


def _processed(loaded: LoadedModel, prompts: Sequence[Prompt]) -> Mapping[str, Any]:
    processor = loaded.processor
    settings: dict[str, Any] = {"padding": True, "padding_side": "left"} if len(prompts) > 1 else {}
    if any(prompt.images for prompt in prompts):
        settings["images"] = [list(prompt.images) for prompt in prompts]
    # A chat template may already have written the beginning-of-text token.
    begin = getattr(getattr(processor, "tokenizer", None), "bos_token", None)
    if begin and all(prompt.text.startswith(begin) for prompt in prompts):
        settings["add_special_tokens"] = False
    try:
        inputs = processor(text=[prompt.text for prompt in prompts], return_tensors="pt", **settings)
    except (ValueError, TypeError, LookupError, RuntimeError, AttributeError, ImportError, ArithmeticError) as error:
        check_torchvision(error, loaded.name)
        images = [image for prompt in prompts for image in prompt.images]
        raise ProcessorFault(
            f"its processor does not accept {refused(processor, images, error)}",
            where=loaded.name,
            remedy="change them, or update the processor's files if an older version of transformers saved them",
        ) from error
    found: Mapping[str, Any] = inputs.to(loaded.model.device, loaded.model.dtype)
    return found


def respond(
    loaded: LoadedModel,
    images: Sequence[Image],
    prompt: str,
    plugins: Sequence[Any] = (),
    *,
    max_new_tokens: int = 128,
) -> Answer:
    """Answer one prompt by greedy search, with plug-ins attached during the call.

    Raises:
        UsageError: the plug-ins do not fit the model, or act on images and the prompt has none.
    """
    asked = Prompt(prompt_text(loaded, prompt, len(images)), tuple(images), prompt)
    return respond_batch(loaded, [asked], plugins, max_new_tokens=max_new_tokens)[0]


def respond_batch(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    plugins: Sequence[Any] = (),
    *,
    max_new_tokens: int = 128,
    **generation: Any,
) -> tuple[Answer, ...]:
    """Answer a batch of prompts, by greedy search unless `generation` says otherwise.

    Except for the rounding of 16-bit arithmetic, each answer is the same as without a batch. If a processor does not
    accept batches, the prompts are answered one by one.

    Args:
        loaded: the model.
        prompts: the prompts, either all with images or all without.
        plugins: the plug-ins to attach during the call; empty if they are already attached.
        max_new_tokens: the maximum length of an answer.
        generation: further arguments of `generate`, such as `num_beams`.

    Raises:
        UsageError: the plug-ins do not fit the model, or act on images and the prompts have none.
    """
    settings = {"do_sample": False, **generation, "max_new_tokens": max_new_tokens}
    answers: list[Answer] = []
    ends, template = _ends(loaded.model), loaded.template_record
    with attach(loaded.model, *plugins) if plugins else nullcontext() as attached:
        if attached is not None and attached.needs_images and not any(prompt.images for prompt in prompts):
            raise UsageError("plug-ins act on images", where="images", remedy="give one, or leave the plug-ins out")
        for inputs in _prepared(loaded, prompts):
            outputs, seconds = _generated(loaded, inputs, settings)
            reports = attached.report() if attached is not None else ()
            for row, new in enumerate(outputs):
                text = loaded.processor.decode(new, skip_special_tokens=True).strip()
                is_cut = len(new) >= max_new_tokens and new[-1] not in ends
                report = reports[-1] if reports else None
                answers.append(Answer(text, len(new), seconds, report, is_cut, template, tuple(new), row))
    return tuple(answers)


def _prepared(loaded: LoadedModel, prompts: Sequence[Prompt]) -> Iterator[Mapping[str, Any]]:
    """Yield the inputs of all prompts as a batch, or one by one if the processor does not accept batches."""
    try:
        together = batch_inputs(loaded, prompts)
    except ProcessorFault as error:
        if len(prompts) == 1:
            raise
        # Whatever the error for the batch, the prompts may be accepted one by one, or their own errors are clearer.
        _logger.info("the processor does not accept batches (%s)", first_sentence(error))
        yield from (batch_inputs(loaded, [prompt]) for prompt in prompts)
        return
    yield together


def _generated(
    loaded: LoadedModel, inputs: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[list[list[int]], float]:
    """Return the tokens of each answer up to and including its end, and the time in seconds."""
    import torch

    start = time.perf_counter()
    try:
        with torch.no_grad():
            output = loaded.model.generate(**inputs, **settings)
    except ValueError as error:
        raise QkeditError(
            f"cannot answer with its generation settings and this prompt ({first_sentence(error)})",
            where=loaded.name,
            remedy="check generation_config.json and the prompt",
        ) from error
    seconds = time.perf_counter() - start
    # Tokens after an end are padding while other rows are still being generated.
    ends = _ends(loaded.model)
    return [_until_end(new, ends) for new in output[:, inputs["input_ids"].shape[1] :].tolist()], seconds


def _ends(model: Any) -> frozenset[int]:
    """Return the tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Return the tokens up to and including the first end."""
    return next((tokens[: place + 1] for place, token in enumerate(tokens) if token in ends), tokens)
