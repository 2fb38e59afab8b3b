"""OPERA's search, which takes the place of a decoding loop of transformers, one prompt after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qkedit.plugins.core.beams import BeamRules, Beams
from qkedit.plugins.core.decoding import DecodingEdit, Generation
from qkedit.plugins.core.grid_layouts import image_token
from qkedit.plugins.core.report import PluginReport
from qkedit.plugins.opera.over_trust import OverTrust
from qkedit.plugins.opera.retrospection import Retrospection
from qkedit.plugins.transformers.rows import Prefilled, PromptRows


@dataclass(frozen=True, kw_only=True)
class OperaReport(PluginReport):
    """The report on the answers of one call.

    Attributes:
        layer: the decoder layer whose attention was read.
        image_tokens: the number of columns whose attention counts in the first tokens, over all prompts.
        steps: the number of tokens that were chosen, over all prompts, with those that were taken back.
        rollbacks: how often a search went back.
    """

    layer: int
    image_tokens: int
    steps: int
    rollbacks: int


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search on one model.

    Attributes:
        beams, candidates, alpha, scale, threshold, early: as in `OPERA`.
        layer: the decoder layer whose attention counts.
        generator: the random numbers of a control; None for the method itself.
    """

    beams: int
    candidates: int
    alpha: float
    scale: float
    threshold: int | None
    early: int
    layer: int
    generator: torch.Generator | None


class OperaSearch(DecodingEdit):
    """The searches of one call of `generate`, one prompt after another."""

    def __init__(self, settings: SearchSettings, generation: Generation) -> None:
        self._settings = settings
        self._image_token = image_token(generation.modules.config)
        self._image_tokens = int((generation.inputs["input_ids"] == self._image_token).sum())
        self._streamer = generation.inputs.get("streamer")
        self.shares: Tensor = torch.empty(0)
        self._steps = self._rollbacks = 0
        # Without a weight and without going back, attention has no effect, and candidates need not be tried.
        self.watched_layers = frozenset({settings.layer} if settings.alpha or settings.threshold is not None else ())

    def watch_attention(self, layer: int, shares: Tensor) -> None:
        """Store the attention of the last column, `[rows, heads, columns]`."""
        self.shares = shares

    def image_columns(self, prompt: Tensor) -> Tensor:
        """Return which columns of a prompt, `[length]`, are image tokens, bool on the CPU."""
        return (prompt == self._image_token).cpu()

    def arguments(self) -> Mapping[str, Any]:
        """Return the search in the place of `generate`'s own."""
        return {"custom_generate": self._answer}

    def report(self) -> OperaReport:
        """Return the report."""
        has_effect = self._image_tokens or not self._settings.alpha
        return OperaReport(
            layer=self._settings.layer,
            image_tokens=self._image_tokens,
            steps=self._steps,
            rollbacks=self._rollbacks,
            warnings=() if has_effect else ("there is no image, so the first tokens are chosen by probability alone",),
        )

    def _answer(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        tokenizer: Any = None,
        **arguments: Any,
    ) -> Tensor:
        """Return prompts and answers, as a decoding loop of transformers does; `tokenizer` is for stop texts."""
        prefilled = Prefilled(model, input_ids, arguments)
        ends = generation_config.eos_token_id
        end_tokens = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        answers = []
        for prompt in range(len(input_ids)):
            rules = BeamRules(
                _ended(stopping_criteria, input_ids[prompt]),
                len(end_tokens),
                generation_config.max_length - input_ids.shape[1],
                generation_config.length_penalty,
                generation_config.early_stopping,
            )
            search = _PromptSearch(self._settings, prefilled, prompt, rules, logits_processor, self)
            answers.append(search.answer())
            self._steps += search.steps
            self._rollbacks += search.rollbacks
        padding = next((token for token in (generation_config.pad_token_id, *end_tokens) if token is not None), 0)
        tokens = input_ids.new_full((len(answers), max(map(len, answers))), padding)
        for row, answer in enumerate(answers):
            tokens[row, : len(answer)] = torch.tensor(answer)
        if self._streamer is not None:  # streamed tokens cannot be taken back, so all come at the end
            for column in tokens.cpu().T:
                self._streamer.put(column)
            self._streamer.end()
        return torch.cat([input_ids, tokens], dim=1)


def _ended(stopping_criteria: Any, prompt: Tensor) -> Callable[[Tensor], Tensor]:
    """Return which answers to a prompt, `[rows, tokens]`, the criteria of `generate` end."""

    def ended(tokens: Tensor) -> Tensor:
        found: Tensor = stopping_criteria(torch.cat([prompt.expand(len(tokens), -1), tokens], dim=1), None)
        return found

    return ended


class _Watched:
    """Rows of text with the over-trust of their answers."""

    def __init__(self, rows: PromptRows, image: Tensor, scale: float, search: OperaSearch) -> None:
        self.rows, self.trust = rows, OverTrust.first(len(rows.ids))
        self._image, self._scale, self._search = image, scale, search

    def select(self, rows: Tensor) -> None:
        """Replace the rows by those of these indices."""
        self.rows.select(rows)
        self.trust = self.trust.selected(rows)

    def feed(self, tokens: Tensor) -> None:
        """Continue each row with a token."""
        self.rows.feed(tokens)
        if self._search.watched_layers:
            self.trust = self.trust.after(self._search.shares, self._image, self._scale)


class _PromptSearch:
    """The search for the answer to one prompt of a batch."""

    def __init__(
        self,
        settings: SearchSettings,
        prefilled: Prefilled,
        prompt: int,
        rules: BeamRules,
        processor: Any,
        search: OperaSearch,
    ) -> None:
        self.steps = 0
        self._settings, self._prefilled, self._prompt, self._search = settings, prefilled, prompt, search
        self._rules, self._processor = rules, processor
        self._image = search.image_columns(prefilled.ids[prompt])
        self._past = Retrospection(settings.threshold, settings.early, settings.candidates, settings.generator)

    @property
    def rollbacks(self) -> int:
        """How often the search went back."""
        return self._past.count

    def answer(self) -> tuple[int, ...]:
        """Return the tokens of the answer."""
        count = self._settings.beams
        beams = Beams.first(count, self._prefilled.ids.device)
        text = self._begun(beams)
        while True:
            log_probs = self._processor(text.rows.ids, text.rows.logits.log_softmax(dim=-1))
            chances, candidates = log_probs.topk(self._settings.candidates, dim=1)
            back, chances = None, chances.log_softmax(dim=-1)
            if self._search.watched_layers:
                text.select(torch.arange(count, device=candidates.device).repeat_interleave(candidates.shape[1]))
                text.feed(candidates.flatten())
                chances = self._penalised(chances, text.trust)
                back = self._past.begin(beams, text.trust.locations().tolist(), candidates.shape[1])
            if back is None:
                log_probs = torch.full_like(log_probs, -torch.inf).scatter(1, candidates, chances)
            else:
                beams, text = back, self._begun(back)
                logits = self._past.without_refused(text.rows.logits)
                log_probs = self._processor(text.rows.ids, logits.log_softmax(dim=-1))
            beams, places, is_over = beams.advanced(log_probs, self._rules)
            self.steps += 1
            if is_over:
                return beams.best
            tokens = beams.tokens[:, -1]
            if not self._search.watched_layers or back is not None:
                text.select(places)
                text.feed(tokens)
            else:  # the token was one of the candidates, but for beams that are excluded already
                text.select(places * candidates.shape[1] + (candidates[places] == tokens[:, None]).int().argmax(dim=1))
            if self._search.watched_layers:
                self._past.choose(places, tokens, log_probs.shape[1])

    def _begun(self, beams: Beams) -> _Watched:
        """Return the text of beams, read token by token after the prompt."""
        rows = self._prefilled.rows(self._prompt, len(beams.tokens))
        text = _Watched(rows, self._image, self._settings.scale, self._search)
        for tokens in beams.tokens.T:
            text.feed(tokens)
        return text

    def _penalised(self, chances: Tensor, trust: OverTrust) -> Tensor:
        """Return the log probabilities among candidates, `[beams, candidates]`, with what they lose or gain."""
        is_early = trust.log_products.shape[1] <= self._settings.early
        penalty = (-trust.image_share if is_early else trust.penalty()).view_as(chances)
        if self._settings.generator is not None:
            order = [torch.randperm(penalty.shape[1], generator=self._settings.generator) for _ in penalty]
            penalty = penalty.gather(1, torch.stack(order))
        # In double precision, since a penalty may be thousands of times larger than what it is subtracted from.
        penalised = chances.cpu().double() - self._settings.alpha * penalty
        return penalised.log_softmax(dim=-1).float().to(chances.device)
