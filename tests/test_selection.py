"""Test the grammar of layers and heads against a slow parser."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.errors import UsageError
from qkedit.selection import check_layers, describe, select_heads, select_layers

COUNTS = st.integers(1, 90)
SPACE = st.sampled_from(["", " "])


@st.composite
def layer_parts(draw: st.DrawFn, count: int) -> tuple[str, set[int]]:
    """Return one part of the text, and the layers it names by trying all of them."""
    kind = draw(st.sampled_from(["number", "range", "all", "mid", "fractions"]))
    everything = range(count)
    if kind == "number":
        number = draw(st.integers(0, count - 1))
        return str(number), {number}
    if kind == "range":
        first, last = sorted(draw(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))))
        return f"{first}{draw(SPACE)}-{draw(SPACE)}{last}", {layer for layer in everything if first <= layer <= last}
    if kind == "all":
        return "all", set(everything)
    if kind == "mid":
        return "mid", {layer for layer in everything if 3 * layer > count - 3 and 3 * layer < 2 * count + 3}
    low, high = sorted(
        draw(st.tuples(st.integers(0, 99), st.integers(1, 100)).filter(lambda ends: ends[0] != ends[1]))
    )
    # A layer belongs to the fraction if its slice [layer, layer + 1) of the depth overlaps with it.
    named = {layer for layer in everything if (layer + 1) * 100 > low * count and layer * 100 < high * count}
    return f"{Decimal(low) / 100:.2f}-{Decimal(high) / 100:.2f}", named


@given(COUNTS.flatmap(lambda count: st.tuples(st.just(count), st.lists(layer_parts(count), min_size=1, max_size=4))))
def test_selected_layers_equal_those_of_the_slow_parser(case: tuple[int, list[tuple[str, set[int]]]]) -> None:
    count, parts = case
    text = ",".join(part for part, _ in parts)
    assert select_layers(text, count, range(count)) == tuple(sorted(set().union(*(named for _, named in parts))))


@pytest.mark.parametrize("count", range(1, 81))
def test_mid_means_the_middle_third(count: int) -> None:
    first = int((Decimal(count) / 3).to_integral_value(ROUND_FLOOR))
    last = min(int((Decimal(2 * count) / 3).to_integral_value(ROUND_CEILING)), count - 1)
    assert select_layers("mid", count, range(count)) == tuple(range(first, last + 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10-20", tuple(range(10, 21))),
        ("3,5,8-12", (3, 5, 8, 9, 10, 11, 12)),
        ("5,3,3-5", (3, 4, 5)),
        ("27", (27,)),
        ("mid", tuple(range(9, 20))),
        ("0.35-0.7", tuple(range(9, 20))),
        ("0.-.5", tuple(range(14))),
        ("0.5-1", tuple(range(14, 28))),
        (" 3 , 4 ", (3, 4)),
    ],
)
def test_layers_of_a_model_with_28_layers_are_selected(text: str, expected: tuple[int, ...]) -> None:
    assert select_layers(text, 28, range(28)) == expected


REFUSED = [
    "",
    " ",
    ",",
    "3,",
    "-1",
    "1-",
    "-",
    "1--2",
    "28",
    "10-28",
    "20-10",
    "3 5",
    "three",
    "ALL",
    "0.7-0.3",
    "0.5-0.5",
    "0.5-1.5",
    "0.5",
    "0x3",
    "1e1",
    "+3",
    "٣",
    "²",
    "3-5-7",
    "9" * 5000,
    "0." + "1" * 5000 + "-1",
    "nan-1.",
    "3;5",
    "\0",
]


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text[:12]))
def test_invalid_layers_are_refused_with_the_range_of_the_model(text: str) -> None:
    with pytest.raises(UsageError) as error:
        select_layers(text, 28, range(28))
    assert "layers 0 to 27" in str(error.value)
    assert error.value.exit_code == 2
    if "28" in text:
        check_layers(text)  # a model may have so many layers
    else:
        with pytest.raises(UsageError, match="here"):
            check_layers(text, "here")


@given(st.text(alphabet="0123456789-,. amidl", max_size=12), COUNTS)
def test_any_text_names_layers_of_the_model_or_is_refused(text: str, count: int) -> None:
    try:
        layers = select_layers(text, count, range(count))
    except UsageError as refusal:
        sentence = str(refusal)
    else:
        assert layers
        assert list(layers) == sorted(set(layers))
        assert set(layers) <= set(range(count))
        return
    assert f"0 to {count - 1}" in sentence


def test_layers_without_a_product_are_skipped_in_ranges_and_refused_otherwise() -> None:
    available = [0, 1, 2, 4, 5, 7]
    assert select_layers("2-5", 8, available) == (2, 4, 5)
    assert select_layers("all", 8, available) == tuple(available)
    for alone in ("3", "3,6", "0.375-0.5"):
        with pytest.raises(UsageError, match=r"no layer with a query-key product; choose among 0-2, 4-5, 7\."):
            select_layers(alone, 8, available)


@given(
    st.integers(1, 64).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1), min_size=1)))
)
def test_a_description_of_heads_selects_these_heads(case: tuple[int, set[int]]) -> None:
    count, heads = case
    assert select_heads(describe(sorted(heads)), count) == tuple(sorted(heads))


def test_all_means_all_heads() -> None:
    assert select_heads("all", 5) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("text", ["", "8", "0-8", "5-3", "mid", "0.1-0.5", "all,3", "9" * 5000])
def test_invalid_heads_are_refused_with_the_range_of_the_model(text: str) -> None:
    with pytest.raises(UsageError, match="heads 0 to 7"):
        select_heads(text, 8)


def test_ranges_are_described_with_hyphens() -> None:
    assert describe([0, 1, 2, 3, 7, 9, 10]) == "0-3, 7, 9-10"
    assert describe([]) == ""
