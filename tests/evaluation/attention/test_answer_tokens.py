"""Test the tokens of mentions against a tokenizer's offsets and a slow implementation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from qkedit.evaluation.attention.answer_tokens import token_ranges, tokens_of
from qkedit.evaluation.benchmarks.captions.tokens import token_spans
from qkedit.evaluation.benchmarks.chair.mentions import Mention

TEXTS = ["Two hot dogs and a hot dog, beside wine glasses.", "A café with teddy bears 🐻 and a bear."]
END = "</s>"


@cache
def tokenizer(merges: int) -> Tokenizer:
    """Return a byte-level tokenizer whose tokens are single bytes, parts of words, or whole words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS * 9,
        trainers.BpeTrainer(
            vocab_size=257 + merges, special_tokens=[END], initial_alphabet=letters, show_progress=False
        ),
    )
    return made


def slow_tokens(ids: Sequence[int], made: Tokenizer, mention: Mention) -> list[int]:
    """Return the tokens whose bytes are among those of the mention, counted byte by byte."""
    pieces = [b"" if token == 0 else _bytes(made, token) for token in ids]
    text = b"".join(pieces).decode(errors="replace").strip()
    lead = len(b"".join(pieces)) - len(b"".join(pieces).lstrip())
    start, end = (lead + len(text[:place].encode()) for place in (mention.start, mention.end))
    found, done = [], 0
    for place, piece in enumerate(pieces):
        if any(start <= byte < end for byte in range(done, done + len(piece))):
            found.append(place)
        done += len(piece)
    return found


def _bytes(made: Tokenizer, token: int) -> bytes:
    """Return a token's bytes by GPT-2's table: printable letters are unchanged, the others are shifted."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in own]
    table = {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(moved)}
    return bytes(table[letter] for letter in made.id_to_token(token))


@given(
    st.text(st.sampled_from("ab hotdgs.,é🐻 "), min_size=1).map(str.strip).filter(bool),
    st.integers(0, 99),
    st.integers(1, 99),
    st.sampled_from([0, 8, 60]),
    st.booleans(),
)
@example(text="a 🐻 a", start=2, length=1, merges=60, leads=False)  # a token of a blank and a part of the emoji
def test_tokens_of_a_mention_contain_its_bytes(text: str, start: int, length: int, merges: int, leads: bool) -> None:
    made = tokenizer(merges)
    ids = [*made.encode(f" {text}" if leads else text).ids, 0]
    start %= len(text)
    mention = Mention("x", start, min(len(text), start + length))
    ranges = token_ranges(ids, made.decode, {0})
    assert list(tokens_of(mention, ranges)) == slow_tokens(ids, made, mention)
    assert ranges[-1][0] == ranges[-1][1], "the end token is not text"


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_agree_with_the_offsets_of_the_tokenizer(text: str) -> None:
    encoding = tokenizer(40).encode(text)
    ranges = token_ranges(encoding.ids, tokenizer(40).decode)
    for place, (start, end) in enumerate(encoding.offsets):
        for character in range(start, end):
            assert place in tokens_of(Mention("x", character, character + 1), ranges)


def test_a_word_of_several_tokens_has_all_of_them() -> None:
    made, text = tokenizer(0), TEXTS[0]
    ids = made.encode(text).ids
    start = text.index("hot dogs")
    tokens = tokens_of(Mention("hot dog", start, start + 8), token_ranges(ids, made.decode))
    assert "".join(made.decode([ids[place]]) for place in tokens) == "hot dogs"


@given(st.lists(st.sampled_from(["Hot", "dog's", "İstanbul", ",", '"', "ﬁ", "bus"]), max_size=8), st.data())
def test_words_are_found_in_the_text_of_a_caption(words: list[str], data: st.DataObject) -> None:
    """Draw words with white space of any length between them; tokens are in lower case, with nltk's quotes."""
    text, spans = "", []
    for word in words:
        text += data.draw(st.sampled_from([" ", "\n ", "  "]))
        spans.append((len(text), len(text) + len(word)))
        text += word
    tokens = [data.draw(st.sampled_from(["``", "''"])) if word == '"' else word.lower() for word in words]
    assert token_spans(text, tokens) == spans
