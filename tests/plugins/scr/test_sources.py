"""Test the choice of sources against its definition, and on small grids by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from qkedit.plugins.scr.sources import choose, interior
from tests.plugins.scr.scr_oracle import sources_and_neighbours


@st.composite
def score_grids(draw):
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    # Few values, so that ties are common.
    return torch.tensor(
        draw(st.lists(st.lists(st.integers(0, 4), min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    ).float()


@given(score_grids(), st.integers(1, 12))
def test_greedy_choice_equals_its_definition(scores, count):
    rows, columns = scores.shape
    grid = [[row * columns + column for column in range(columns)] for row in range(rows)]
    expected = sources_and_neighbours(grid, dict(enumerate(scores.flatten().tolist())), count)
    (choice,) = choose([scores], count, "greedy")
    assert list(choice.sources) == [source for source, _ in expected]
    assert dict(zip(choice.neighbours, choice.owners, strict=True)) == {n: s for s, own in expected for n in own}


@given(score_grids(), st.integers(1, 12))
def test_all_fixed_candidates_are_sources(scores, count):
    (choice,) = choose([scores], count, "fixed")
    inner = interior(*scores.shape)
    values = scores.flatten().tolist()
    assert list(choice.sources) == sorted(inner, key=lambda cell: (-values[cell], cell))[:count]
    assert not set(choice.sources) & set(choice.neighbours)
    assert len(set(choice.neighbours)) == len(choice.neighbours)
    rank = {source: number for number, source in enumerate(choice.sources)}
    columns = scores.shape[1]

    def near(a, b):
        return max(abs(a // columns - b // columns), abs(a % columns - b % columns)) == 1

    for cell in range(scores.numel()):
        claims = [source for source in choice.sources if near(source, cell)]
        if cell in choice.neighbours:
            assert choice.owners[choice.neighbours.index(cell)] == min(claims, key=rank.__getitem__)
        else:
            assert not claims or cell in choice.sources


def test_the_stronger_of_two_adjacent_candidates_is_the_source():
    scores = torch.zeros(4, 5)
    scores[1, 1], scores[1, 2], scores[2, 3] = 3.0, 2.0, 1.0
    (greedy,) = choose([scores], 3, "greedy")
    assert greedy.sources == (6, 13)  # (1, 2) is a neighbour of (1, 1) and is not replaced
    assert greedy.owners[greedy.neighbours.index(7)] == 6
    (fixed,) = choose([scores], 3, "fixed")
    assert fixed.sources == (6, 7, 13)


def test_candidates_can_be_counted_over_several_grids():
    low, high = torch.full((3, 3), 0.1), torch.full((4, 4), 0.2)
    low_choice, high_choice = choose([low, high], 2, "greedy")
    assert low_choice.sources == ()
    assert high_choice.sources == (5,)  # the three candidates with equal scores are its neighbours


def test_thin_grids_have_no_sources():
    (choice,) = choose([torch.rand(2, 9)], 4, "greedy")
    assert choice.sources == choice.neighbours == ()
