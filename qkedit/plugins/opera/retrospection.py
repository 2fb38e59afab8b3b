"""Decide when OPERA goes back to an earlier token of its answer, and which tokens it must not choose again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkedit.plugins.core.beams import Beams


@dataclass
class _Step:
    """One choice of tokens, those of column `length` of the answers.

    Attributes:
        beams: before the choice, with `length` tokens.
        locations: for each beam, the column at which most of its candidates have their largest product.
        refused: which tokens of which beams must not be chosen, as indices into `[beams × vocabulary]`.
        chosen: those that were chosen.
    """

    beams: Beams
    locations: list[int]
    refused: list[int]
    chosen: list[int]


class Retrospection:
    """The steps of one search, of which there is one for each column of the answer.

    Args:
        threshold: how many steps of every beam may agree on a column before the search goes back to it; None to never
            go back.
        spared: the number of first columns to which it does not go back.
        times: how often it goes back to one column.
        control: random numbers, to go back to a column at random instead; None for the method itself.
    """

    def __init__(self, threshold: int | None, spared: int, times: int, control: torch.Generator | None) -> None:
        self.count = 0  # of times that it went back
        self._threshold, self._spared, self._times, self._control = threshold, spared, times, control
        self._steps: list[_Step] = []
        self._used: dict[int, int] = {}

    def begin(self, beams: Beams, locations: Sequence[int], candidates: int) -> Beams | None:
        """Note a step before its choice, and return the beams to go back to, if the search has to go back.

        Args:
            beams: at this step.
            locations: of every candidate of every beam, the column of its largest product.
            candidates: per beam.
        """
        by_beam = [locations[start : start + candidates] for start in range(0, len(locations), candidates)]
        agreed = [_most_frequent(own) for own in by_beam]
        self._steps.append(_Step(beams, agreed, [], []))
        column = self._column_to_go_back_to(_most_frequent(agreed))
        if column is None:
            return None
        self.count += 1
        del self._steps[column + 1 :]
        step = self._steps[column]
        step.refused += step.chosen
        return step.beams

    def choose(self, places: Tensor, tokens: Tensor, vocabulary: int) -> None:
        """Note the tokens that were chosen, and the beams that they continue."""
        self._steps[-1].chosen = (places * vocabulary + tokens).tolist()

    def without_refused(self, scores: Tensor) -> Tensor:
        """Return scores of the next token, `[beams, vocabulary]`, without those that were refused at this step."""
        refused = torch.tensor(self._steps[-1].refused, dtype=torch.long, device=scores.device)
        return scores.flatten().index_fill(0, refused, -torch.inf).view_as(scores)

    def _column_to_go_back_to(self, location: int) -> int | None:
        """Return the column to choose again: the one after that on which all beams agree, or that one itself."""
        if self._threshold is None or location < self._spared:
            return None
        of_beams = zip(*(step.locations for step in self._steps), strict=True)
        if not all(sum(own == location for own in of_beam) > self._threshold for of_beam in of_beams):
            return None
        if self._control is not None:
            last = len(self._steps) - 2
            location = int(torch.randint(self._spared, last, (1,), generator=self._control))
        for column in (location + 1, location):
            if self._used.get(column, 0) < self._times:
                self._used[column] = self._used.get(column, 0) + 1
                return column
        return None


def _most_frequent(values: Sequence[int]) -> int:
    """Return the value that occurs most often, the smallest of several."""
    return max(sorted(set(values)), key=values.count)
