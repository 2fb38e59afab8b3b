"""Tokens of captions exactly as `nltk.word_tokenize` gives them, some ten times as fast.

`word_tokenize` splits a text into sentences (Punkt) and each sentence by about thirty regular expressions. Two facts
save most of that. Whether Punkt ends a sentence at a stop depends only on the words around it, so the answer is kept.
And of a sentence of plain words, where only commas and one final sign stand, every expression touches each word by
itself; its tokens are then those of its words, which are kept as well. Any other sentence goes to nltk as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

# More distinct words or sentence ends than this only a text that is not a description has.
REMEMBERED = 2**16
# Letters and digits with single hyphens or apostrophes between them, and a comma after them.
_PLAIN = re.compile(r"[A-Za-z0-9]+(?:[-'][A-Za-z0-9]+)*,?")
# These separate words for Python, but not for nltk's expressions.
_ODD_SPACE = re.compile(r"[\x1c-\x1f]")
_FINAL_SIGNS = (".", "?", "!")
# What nltk makes of double quotes, and what those may have been.
_QUOTES = {"``": ('"', "``", "“", "«", "''"), "''": ('"', "''", "”", "»", "``")}


class Tokenizer:
    """`nltk.word_tokenize` for English, with what it found out kept.

    Args:
        sentences: nltk's `PunktTokenizer`.
        words: nltk's `NLTKWordTokenizer`.
    """

    def __init__(self, sentences: Any, words: Any) -> None:
        sentences.text_contains_sentbreak = lru_cache(REMEMBERED)(sentences.text_contains_sentbreak)
        self._sentences = sentences
        self._words = words
        self._tokens_of_word = lru_cache(REMEMBERED)(self._plain_word)

    def __call__(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        tokens: list[str] = []
        for sentence in self._sentences.tokenize(text):
            tokens += self._plain_sentence(sentence) or self._words.tokenize(sentence)
        return tokens

    def _plain_sentence(self, sentence: str) -> list[str] | None:
        """Return the tokens of a sentence of plain words, None for any other."""
        if _ODD_SPACE.search(sentence):
            return None
        words = sentence.split()
        sign = words[-1][-1] if words else ""
        ending = [sign] if sign in _FINAL_SIGNS else []
        if ending:
            words[-1] = words[-1][:-1]
        tokens: list[str] = []
        for word in words:
            of_word = self._tokens_of_word(word)
            if not of_word:
                return None
            tokens += of_word
        # A comma before the final sign is for nltk to judge.
        return None if ending and tokens[-1] == "," else tokens + ending

    def _plain_word(self, word: str) -> tuple[str, ...]:
        """Return a plain word's tokens, such as two for `cannot`; nothing for any other word."""
        return tuple(self._words.tokenize(word)) if _PLAIN.fullmatch(word) else ()


def token_spans(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Return the place of each token in a text, first character and the one after the last.

    Args:
        text: the text as it was written.
        tokens: the tokens of the text in lower case, in order, with nothing but white space between them. nltk changes
            only double quotes.
    """
    # Some letters are longer in lower case: `İ` becomes two characters.
    origin = [place for place, letter in enumerate(text) for _ in letter.lower()] + [len(text)]
    lower, place, spans = text.lower(), 0, []
    for token in tokens:
        while place < len(lower) and lower[place].isspace():
            place += 1
        forms = _QUOTES.get(token, (token,))
        form = next((form for form in forms if lower.startswith(form, place)), None)
        if form is None:  # whatever nltk made of it
            place, form = max(place, lower.find(token, place)), token
        end = min(place + len(form), len(lower))
        spans.append((origin[place], origin[end]))
        place = end
    return spans
