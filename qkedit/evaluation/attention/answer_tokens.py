"""Map a mention in an answer, given by its characters, to the tokens that were generated.

A tokenizer can map the tokens of a given text to characters, but a model may have generated other tokens than those
into which its answer would be split. So the first token is decoded, then the first two, and so on: a token has the
characters by which the text becomes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from itertools import takewhile

from qkedit.evaluation.benchmarks.chair.mentions import Mention

# The result of decoding an incomplete character.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def token_ranges(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str], special: Container[int] = ()
) -> list[tuple[int, int]]:
    """Return the characters of each token in the text of an answer without white space at its ends.

    The tokens that make up one character together, such as the bytes of an emoji, all have that character. Special
    tokens have none.

    Args:
        ids: the tokens.
        decode: a function that returns the text of tokens, without special ones.
        special: the ids of the special tokens.
    """
    text = decode(ids)
    ends, is_cut = [0], [False]
    for count in range(1, len(ids) + 1):
        # The first tokens may end inside a character, and later tokens may change their text.
        beginning = decode(ids[:count])
        shared = _shared(beginning, text)
        ends.append(max(ends[-1], shared))
        is_cut.append(beginning[shared:].startswith(_INCOMPLETE))
    ends[-1] = len(text) if ids else 0
    lead = len(text) - len(text.lstrip())
    ranges = []
    for place, token in enumerate(ids):
        start = ends[place]
        # A token that adds no whole character, or a part of one more, has the next character too.
        least = max(start, ends[place + 1] if is_cut[place + 1] else 0)
        end = start if token in special else next((later for later in ends[place + 1 :] if later > least), least)
        ranges.append((max(0, start - lead), max(0, end - lead)))
    return ranges


def _shared(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def tokens_of(mention: Mention, ranges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Return the positions of the tokens that share a character with a mention."""
    return tuple(
        place for place, (start, end) in enumerate(ranges) if max(start, mention.start) < min(end, mention.end)
    )
