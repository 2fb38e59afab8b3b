"""Compute OPERA by its formulas: each text from its first token, attention as matrices, histories as lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import multimode
from typing import Any

import torch
from torch import Tensor

from qkedit.plugins.opera.plugin import OPERA
from tests.plugins.tiny_requests import IMAGE, model
from tests.plugins.whole_text import whole_text

Tokens = tuple[int, ...]
# Tokens of images and around them: an answer with one of them would be another prompt.
SUPPRESSED = [3, 4, IMAGE]


@dataclass
class Found:
    """The answer, the scores of every choice `[beams, vocabulary]`, and the target column of each return."""

    answer: Tokens = ()
    scores: list[Tensor] = field(default_factory=list)
    returns: list[int] = field(default_factory=list)


@contextmanager
def eager(family: str) -> Iterator[None]:
    """Return a tiny model whose decoder uses transformers' eager attention."""
    config = model(family).get_decoder().config
    usual = config._attn_implementation
    config._attn_implementation = {"": "eager"}
    try:
        yield
    finally:
        config._attn_implementation = {"": usual}


def searched(family: str, inputs: Mapping[str, Any], settings: OPERA, longest: int, ends: Sequence[int] = ()) -> Found:
    """Search for the answer to one prompt without padding."""
    prompt = inputs["input_ids"].shape[1]
    image = inputs["input_ids"][0] == IMAGE

    texts: dict[Tokens, tuple[Tensor, Tensor]] = {}

    def read(*answers: Tokens) -> list[tuple[Tensor, Tensor]]:
        """Return the log probabilities of the next token, and the maximum over heads of the last layer's attention."""
        if new := [tokens for tokens in dict.fromkeys(answers) if tokens not in texts]:
            together = {name: torch.cat([value] * len(new)) for name, value in inputs.items()}
            output = whole_text(model(family), together, new, output_attentions=True)
            for tokens, logits, heads in zip(new, output.logits[:, -1], output.attentions[-1], strict=True):
                attention = heads.double().amax(dim=0)
                texts[tokens] = logits.double().log_softmax(-1), attention / attention.sum(dim=1, keepdim=True)
        return [texts[tokens] for tokens in answers]

    def products(tokens: Tokens) -> list[float]:
        own = settings.scale * read(tokens)[0][1][prompt:, prompt:]
        return [float(own[column:, column].prod()) for column in range(len(tokens))]

    with eager(family):
        return _search(read, products, image, settings, longest, ends)


def _allowed(log_probs: Tensor) -> Tensor:
    """Apply `suppress_tokens`, which `generate` applies to normalised scores."""
    return log_probs.index_fill(0, torch.tensor(SUPPRESSED), -math.inf)


def _search(
    read: Callable[..., list[tuple[Tensor, Tensor]]],
    products: Callable[[Tokens], list[float]],
    image: Tensor,
    settings: OPERA,
    longest: int,
    ends: Sequence[int],
) -> Found:
    found, count = Found(), settings.beams
    beams: list[tuple[Tokens, float]] = [((), 0.0), *[((), -math.inf)] * (count - 1)]
    finished: list[tuple[float, Tokens]] = []
    states: list[dict[str, Any]] = []  # with the tokens chosen before each
    places: list[list[int]] = []
    used: dict[int, int] = {}
    refused: dict[int, list[tuple[int, int]]] = {}
    chosen: list[tuple[int, int]] = []
    while True:
        length = len(beams[0][0]) + 1
        scores, located = [], []
        before = [_allowed(log_probs) for log_probs, _ in read(*(tokens for tokens, _ in beams))]
        likeliest = [log_probs.topk(settings.candidates).indices.tolist() for log_probs in before]
        read(*((*tokens, new) for (tokens, _), own in zip(beams, likeliest, strict=True) for new in own))
        for (tokens, _), log_probs, candidates in zip(beams, before, likeliest, strict=True):
            own, columns = torch.full_like(log_probs, -math.inf), []
            for token in candidates:
                longer = (*tokens, token)
                by_column = products(longer)
                columns.append(by_column.index(max(by_column)))
                lost = min(1e-7 * max(by_column), 65504.0)
                if length <= settings.early:
                    lost = -float(read(longer)[0][1][-1, : len(image)][image].sum())
                own[token] = log_probs[token] - settings.alpha * lost
            scores.append(own.log_softmax(-1))
            located.append(min(multimode(columns)))
        states.append({"beams": beams, "finished": finished, "chosen": chosen})
        places.append(located)
        where = min(multimode(located))
        back = where + 1
        goes_back = (
            settings.threshold is not None
            and where >= settings.early
            and all(sum(row[beam] == where for row in places) > settings.threshold for beam in range(count))
        )
        if goes_back and used.get(back, 0) >= settings.candidates:
            back -= 1
            goes_back = used.get(back, 0) < settings.candidates
        if goes_back:
            used[back] = used.get(back, 0) + 1
            for _ in range(length - back - 2):
                states.pop()
                places.pop()
            beams, finished = states[-2]["beams"], states[-2]["finished"]
            refused[back] = refused.get(back, []) + states[-1]["chosen"]
            refused = {column: pairs for column, pairs in refused.items() if column <= back}
            states.pop()
            places.pop()
            scores = [log_probs.clone() for log_probs, _ in read(*(tokens for tokens, _ in beams))]
            for beam, token in refused[back]:
                scores[beam][token] = -math.inf
            scores = [_allowed(own.log_softmax(-1)) for own in scores]
            found.returns.append(back)
        found.scores.append(torch.stack(scores))

        options = sorted(
            (
                (total + value, beam, token)
                for beam, (_, total) in enumerate(beams)
                for token, value in enumerate(scores[beam].tolist())
            ),
            reverse=True,
            key=lambda option: option[0],
        )
        length = len(beams[0][0]) + 1
        kept = [
            (score, beam, token, token in ends or length >= longest)
            for score, beam, token in options[: max(2, 1 + len(ends)) * count]
        ]
        ended = [(score / length, (*beams[beam][0], token)) for score, beam, token, over in kept[:count] if over]
        finished = sorted([*finished, *ended], key=lambda answer: -answer[0])[:count]
        running = sorted(kept, key=lambda option: option[3])[:count]
        chosen = [(beam, token) for _, beam, token, _ in running]
        beams = [((*beams[beam][0], token), score) for score, beam, token, _ in running]
        if all(over for *_, over in kept) or (len(finished) == count and beams[0][1] / length <= finished[-1][0]):
            found.answer = finished[0][1]
            return found
