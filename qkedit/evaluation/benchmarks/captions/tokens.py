"""Split captions into tokens exactly as `nltk.word_tokenize` does, about ten times as fast.

`word_tokenize` splits a text into sentences (Punkt) and each sentence by about thirty regular expressions. Two facts
save most of that. Whether Punkt ends a sentence at a stop depends only on the words around it, so the answer is
cached. And in a sentence of plain words, with only commas and one final sign, every expression changes each word
independently; its tokens are then those of its words, which are cached as well. Any other sentence goes to nltk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

# Only a text that is not a description has more distinct words or sentence ends than this.
REMEMBERED = 2**16
# Letters and digits with single hyphens or apostrophes between them, and a comma after them.
_PLAIN = re.compile(r"[A-Za-z0-9]+(?:[-'][A-Za-z0-9]+)*,?")
# Python treats these as word separators, but nltk's expressions do not.
_ODD_SPACE = re.compile(r"[\x1c-\x1f]")
_FINAL_SIGNS = (".", "?", "!")
# What nltk makes of double quotes, and what those may have been.
_QUOTES = {"``": ('"', "``", "“", "«", "''"), "''": ('"', "''", "”", "»", "``")}


class Tokenizer:
    """`nltk.word_tokenize` for English, with a cache of its results.

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
        """Return the tokens of a sentence of plain words; None for any other sentence."""
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
        # A comma before the final sign is left to nltk.
        return None if ending and tokens[-1] == "," else tokens + ending

    def _plain_word(self, word: str) -> tuple[str, ...]:
        """Return the tokens of a plain word, such as two for `cannot`; empty for any other word."""
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
