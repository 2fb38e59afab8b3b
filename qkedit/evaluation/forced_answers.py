"""Answers with the logits of their tokens, and how far another model is from them along the same text.

Forcing is generation with given tokens, so plug-ins, caches and positions are those of real use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qkedit.errors import QkeditError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from qkedit.runtime.generation import LoadedModel


@dataclass(frozen=True)
class AnswerWithLogits:
    """An answer with the logits from which each token was chosen, [tokens, vocabulary]."""

    text: str
    tokens: tuple[int, ...]
    logits: Tensor


def answer_with_logits(
    loaded: LoadedModel, picture: Image, prompt: str, max_new_tokens: int, given: Sequence[int] = ()
) -> AnswerWithLogits:
    """Return an answer by greedy search, or along the given tokens.

    Args:
        loaded: the model.
        picture: the image of the prompt.
        prompt: the question about it.
        max_new_tokens: the largest number of tokens; ignored along given tokens.
        given: the tokens to follow; none for the model's own answer.
    """
    import torch
    from transformers import LogitsProcessorList

    from qkedit.runtime.generation import request_inputs

    inputs = request_inputs(loaded, [picture], prompt)
    length = inputs["input_ids"].shape[1]

    def follow(tokens: Tensor, scores: Tensor) -> Tensor:
        followed = torch.full_like(scores, -torch.inf)
        followed[:, given[tokens.shape[1] - length]] = 0
        return followed

    with torch.no_grad():
        output = loaded.model.generate(
            **inputs,
            max_new_tokens=len(given) or max_new_tokens,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
            logits_processor=LogitsProcessorList([follow] if given else []),
        )
    tokens = tuple(output.sequences[0, length:].tolist())
    text = loaded.processor.decode(tokens, skip_special_tokens=True).strip()
    return AnswerWithLogits(text, tokens, _compact(torch.cat(output.logits).cpu(), loaded.model.dtype))


def divergences(base: AnswerWithLogits, led: AnswerWithLogits, model: str, where: str) -> tuple[float, ...]:
    """Return the divergence of the next token at each position of the base's answer, in nats.

    Args:
        base: the base's own answer.
        led: the other model's, along the same tokens.
        model: the name of the other model, for errors.
        where: the name of the image, for errors.

    Raises:
        UsageError: the models have different vocabularies.
        QkeditError: a token has no finite probability, or the other model rules out a token of the base.
    """
    import torch

    if led.logits.shape != base.logits.shape:
        raise UsageError(
            f"its vocabulary has {led.logits.shape[1]} tokens, but the base's has {base.logits.shape[1]}",
            where=model,
            remedy="name the base that it was made from",
        )
    p, q = (logits.double().log_softmax(-1) for logits in (base.logits, led.logits))
    # Tokens that the base rules out add nothing. A negative divergence can only come from rounding.
    kl = torch.where(p.exp() == 0, 0, p.exp() * (p - q)).sum(-1).clamp(min=0)
    if kl.isposinf().any() and led.logits.isneginf().any():
        raise QkeditError(
            "it rules out tokens that the base may choose, so that their divergence is infinite",
            where=f"{where}, {model}",
            remedy="measure a contrast without its plausibility cut (beta=0), or compare answers by `qkedit eval`",
        )
    if not kl.isfinite().all():
        raise QkeditError(
            "the next token has no finite probability", where=f"{where}, {model}", remedy="try --dtype float32"
        )
    return tuple(kl.tolist())


def _compact(logits: Tensor, dtype: Any) -> Tensor:
    """Return logits in the model's own precision if they come from it; generation widens them to 32 bits."""
    import torch

    narrow = logits.to(dtype)
    return narrow if torch.equal(narrow.to(logits.dtype), logits) else logits
