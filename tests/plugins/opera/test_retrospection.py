"""Test OPERA's returns with its published numbers: after more than 15 agreeing steps, never into the first ten."""

from __future__ import annotations

import torch

from qkedit.plugins.core.beams import Beams
from qkedit.plugins.opera.retrospection import Retrospection

VOCABULARY = 100


def searched(places: list[tuple[int, int]], steps: int, past: Retrospection) -> list[tuple[int, int]]:
    """Return the lengths at which a search of two beams goes back, and the columns to which it goes back.

    `places` are the columns on which each beam's candidates agree, by length; the last one holds for later lengths.
    """
    beams, returns = Beams.first(2, torch.device("cpu")), []
    for step in range(steps):
        length = beams.tokens.shape[1]
        first, second = places[min(length, len(places) - 1)]
        back = past.begin(beams, [first] * 3 + [second] * 3, 3)
        if back is not None:
            returns.append((length, back.tokens.shape[1]))
            beams = back
        chosen = torch.full((2,), step % VOCABULARY)
        beams = Beams(torch.cat([beams.tokens, chosen[:, None]], dim=1), beams.scores)
        past.choose(torch.tensor([0, 1]), chosen, VOCABULARY)
    return returns


def agreeing(column: int) -> list[tuple[int, int]]:
    """Return places that equal a column from that column on."""
    return [(length, length) for length in range(column)] + [(column, column)]


def test_the_search_goes_back_at_the_sixteenth_agreeing_step() -> None:
    """The column itself is the first to agree. The token after it is chosen again five times, then its own token."""
    past = Retrospection(15, 10, 5, None)
    assert searched(agreeing(12), 28, past) == [(27, 13)]
    later = searched(agreeing(12), 200, Retrospection(15, 10, 5, None))
    assert later == [(27, 13)] * 5 + [(27, 12)] * 5


def test_the_search_does_not_go_back_to_first_tokens_or_without_agreement() -> None:
    assert searched(agreeing(9), 60, Retrospection(15, 10, 5, None)) == []
    assert searched(agreeing(10), 60, Retrospection(15, 10, 5, None))[0] == (25, 11)
    disagreeing = [(length, length) for length in range(12)] + [(12, 11)]
    assert searched(disagreeing, 60, Retrospection(15, 10, 5, None)) == []
    assert searched(agreeing(12), 60, Retrospection(None, 10, 5, None)) == []


def test_rejected_tokens_are_excluded_until_the_search_goes_back_further() -> None:
    def refused(steps: int) -> list[tuple[int, ...]]:
        past = Retrospection(15, 10, 2, None)
        searched(agreeing(12), steps, past)
        kept = past.without_refused(torch.zeros(2, VOCABULARY))
        return [tuple(place) for place in kept.isinf().nonzero().tolist()]

    # Tokens are numbered by steps. The search goes back at the 28th, 42nd and 56th, at last to the column itself.
    assert refused(28) == [(0, 13), (1, 13)]
    assert refused(29) == []
    assert refused(42) == [(0, 13), (0, 27), (1, 13), (1, 27)]
    assert refused(56) == [(0, 12), (1, 12)]
    assert refused(57) == []


def test_a_control_goes_back_as_often_to_random_columns() -> None:
    past = Retrospection(15, 10, 5, torch.Generator().manual_seed(0))
    returns = searched(agreeing(12), 60, past)
    assert returns[0][0] == 27
    assert all(10 <= column < 27 for _, column in returns)
    assert len({column for _, column in returns}) > 1
    assert past.count == len(returns)
