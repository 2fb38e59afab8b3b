"""Test answers up to stop texts, without white space at the ends, whole and streamed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qkedit.serving.answer_text import AnswerText, StopText, answer_text

LETTERS = st.text("ab ", max_size=12)
STOPS = st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3)


def cut(text: str, stops: list[str]) -> str:
    """Decode letter by letter, up to the first complete stop text, or the longest of two."""
    for end in range(1, len(text) + 1):
        if complete := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, complete))]
    return text


@given(LETTERS, STOPS)
def test_a_whole_answer_ends_before_the_stop_text(text: str, stops: list[str]) -> None:
    assert answer_text(text, stops) == cut(text, stops).strip()


@given(st.lists(LETTERS, max_size=6), STOPS)
def test_pieces_add_up_to_the_whole_answer(pieces: list[str], stops: list[str]) -> None:
    answer = AnswerText(stops)
    given_out = [answer.feed(piece) for piece in pieces]
    assert all(piece == piece.rstrip() for piece in given_out)
    assert "".join(given_out) + answer.end() == cut("".join(pieces), stops).strip()


@given(
    st.lists(st.text("ab ", min_size=1, max_size=1), max_size=12),
    st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3),
)
def test_letters_before_a_stop_text_are_sent(pieces: list[str], stops: list[str]) -> None:
    stop_text = StopText(stops)
    given_out = [stop_text.feed(piece) for piece in pieces]
    assert stop_text.stopped == any(stop in "".join(pieces) for stop in stops)
    assert "".join(given_out) + stop_text.end() == cut("".join(pieces), stops)


@given(st.lists(LETTERS, max_size=5), STOPS)
def test_only_beginnings_of_stop_texts_are_held_back(pieces: list[str], stops: list[str]) -> None:
    stop_text, out, seen = StopText(stops), "", ""
    for piece in pieces:
        out, seen = out + stop_text.feed(piece), seen + piece
        if stop_text.stopped:
            return
        held = seen[len(out) :]
        assert seen.startswith(out)
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
