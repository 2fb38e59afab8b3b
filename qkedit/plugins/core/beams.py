"""Beam search over scores of the next token, by the rules of transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# The loss of a score that must not be among the best unless there are no others.
_NEVER = -1e9


@dataclass(frozen=True)
class BeamRules:
    """What a search does not change.

    Attributes:
        ends: whether each of some answers `[rows, tokens]` has ended, `[rows]` bool.
        end_tokens: the number of tokens that end an answer.
        longest: the largest number of tokens.
        length_penalty: by which power of its length the score of an answer is divided.
        early_stopping: True to stop with the first `beams` answers; False to stop when the best beam would lose to
            them at its length; "never" to reckon with its best possible length.
    """

    ends: Callable[[Tensor], Tensor]
    end_tokens: int
    longest: int
    length_penalty: float
    early_stopping: bool | str


@dataclass(frozen=True)
class Beams:
    """Some beams, the likeliest first, and the answers that have ended; never changed, so that a search may go back.

    Attributes:
        tokens: the answers so far, `[beams, tokens]`.
        scores: their log probabilities, `[beams]` float32; −∞ for a beam that does not exist yet.
        finished: scores and tokens of the best answers that have ended, the best first.
        improvable: whether a beam may still become better than those.
    """

    tokens: Tensor
    scores: Tensor
    finished: tuple[tuple[float, tuple[int, ...]], ...] = ()
    improvable: bool = True

    @classmethod
    def first(cls, count: int, device: torch.device) -> Beams:
        """Return beams before the first token, of which one counts, since all are the same."""
        scores = torch.zeros(count, device=device)
        scores[1:] = -torch.inf
        return cls(torch.empty(count, 0, dtype=torch.long, device=device), scores)

    @property
    def best(self) -> tuple[int, ...]:
        """The tokens of the best answer, or of the best beam if none has ended."""
        return self.finished[0][1] if self.finished else tuple(self.tokens[0].tolist())

    def advanced(self, log_probs: Tensor, rules: BeamRules) -> tuple[Beams, Tensor, bool]:
        """Return the beams one token later, the index of the beam that each continues, and whether the search is over.

        Args:
            log_probs: of the next token after each beam, `[beams, vocabulary]` float32; −∞ excludes a token.
            rules: of the search.
        """
        count, vocabulary = log_probs.shape
        # So many that, if the best ones end, as many others are left.
        kept = max(2, 1 + rules.end_tokens) * count
        scores, index = (self.scores[:, None] + log_probs).flatten().topk(min(kept, log_probs.numel()))
        places = index // vocabulary
        tokens = torch.cat([self.tokens[places], (index % vocabulary)[:, None]], dim=1)
        ended = rules.ends(tokens)
        finished = self._with_finished(tokens[:count], scores[:count], ended[:count], rules)
        running, chosen = (scores + ended * _NEVER).topk(count)
        improvable = self.improvable and self._improvable(running, tokens.shape[1], finished, rules)
        beams = Beams(tokens[chosen], running, finished, improvable)
        is_full = len(finished) == count
        over = not improvable or (is_full and rules.early_stopping is True) or bool(ended.all())
        return beams, places[chosen], over

    def _with_finished(
        self, tokens: Tensor, scores: Tensor, ended: Tensor, rules: BeamRules
    ) -> tuple[tuple[float, tuple[int, ...]], ...]:
        by_length = (scores / tokens.shape[1] ** rules.length_penalty).tolist()
        new = zip(by_length, map(tuple, tokens.tolist()), ended.tolist(), strict=True)
        ends = ((score, answer) for score, answer, is_ended in new if is_ended and score > -torch.inf)
        all_of_them = [*self.finished, *ends]
        return tuple(sorted(all_of_them, key=lambda answer: -answer[0])[: len(self.tokens)])

    def _improvable(
        self, running: Tensor, length: int, finished: tuple[tuple[float, tuple[int, ...]], ...], rules: BeamRules
    ) -> bool:
        if rules.early_stopping == "never" and rules.length_penalty > 0:
            length = rules.longest
        worst = finished[-1][0] if len(finished) == len(self.tokens) else -torch.inf
        return bool(running[0] / length**rules.length_penalty > worst)
