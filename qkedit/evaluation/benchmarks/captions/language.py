"""The language tools of the official caption scorers: tokens, part-of-speech tags, singulars and lemmas.

nltk and PatternLite are an extra (`pip install 'qkedit[caption]'`), imported where they are needed. nltk's data are
searched in nltk's own places (the directories in the variable NLTK_DATA, and its defaults) and in a directory
`nltk_data` of the user's data. Nothing is ever downloaded.
"""

from __future__ import annotations

import gzip
import json
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.captions import tags as caption_tags
from qkedit.evaluation.benchmarks.captions.tokens import REMEMBERED, Tokenizer

# A word and a part of speech (`n`, `v`, `a` or `r`) → its lemma.
Lemma = Callable[[str, str], str]

INSTALL = "run: pip install 'qkedit[caption]'"
# The folders of the user's data directory that may hold language data.
LANGUAGE_PLACES = (".", "nlp")
LEMMA_LISTS = "wordnet*_lemmas.json.gz"
PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}


def tokenizer(data: Path | None = None) -> Tokenizer:
    """Return `nltk.word_tokenize` for English.

    Args:
        data: the user's data directory, which may hold `nltk_data`.

    Raises:
        QkeditError: nltk or its resource `punkt_tab` is missing.
    """
    _nltk(data)
    return _tokenizer()


def tagger(data: Path | None = None) -> Callable[[Sequence[str]], list[str]]:
    """Return a function that returns the Penn tag of each token of a text, as `nltk.pos_tag` does.

    Raises:
        QkeditError: nltk or its resource `averaged_perceptron_tagger_eng` is missing.
    """
    _nltk(data)
    return _tagger()


def lemmatizer(data: Path | None = None) -> Lemma:
    """Return `nltk.stem.WordNetLemmatizer.lemmatize`: the shortest lemma that WordNet has, else the word itself.

    WordNet is nltk's corpus `wordnet`, or else the lists of lemmas and exceptions in the user's data directory.

    Raises:
        QkeditError: nltk or WordNet is missing.
    """
    _nltk(data)
    lists = _lemma_lists(data)
    try:
        return _corpus_lemmatizer()
    except LookupError:
        if lists is None:
            raise _missing("corpus wordnet", "wordnet") from None
        return _listed_lemmatizer(lists)


@cache
def singularizer() -> Callable[[str], str]:
    """Return PatternLite's `singularize`. Raises QkeditError if PatternLite is missing."""
    # By path, since importing `pattern.en` loads a tagger, a parser and WordNet, and may start a download.
    package = find_spec("pattern")
    file = next(
        (
            found
            for place in (package.submodule_search_locations or () if package else ())
            if (found := Path(place) / "text" / "en" / "inflect.py").is_file()
        ),
        None,
    )
    if file is None:
        raise QkeditError("PatternLite is not installed", where="captions", remedy=INSTALL)
    module = ModuleType("pattern_inflect")
    module.__file__ = str(file)
    with warnings.catch_warnings():
        # Its string literals predate today's rules for backslashes.
        warnings.simplefilter("ignore")
        try:
            SourceFileLoader(module.__name__, str(file)).exec_module(module)
        except ImportError as error:
            raise QkeditError(f"PatternLite cannot be imported ({error})", where="captions", remedy=INSTALL) from None
    singularize: Any = module.singularize
    return lru_cache(REMEMBERED)(singularize)


def part_of_speech(tag: str) -> str:
    """Return WordNet's part of speech for a Penn tag: `n` unless it is an adjective, verb or adverb."""
    return {"J": "a", "V": "v", "R": "r"}.get(tag[:1], "n")


def _nltk(data: Path | None) -> ModuleType:
    """Import nltk, and add the user's data directory to its search path."""
    try:
        import nltk
        import nltk.data
    except ImportError:
        raise QkeditError("nltk is not installed", where="captions", remedy=INSTALL) from None
    if data is not None:
        for place in LANGUAGE_PLACES:
            directory = str((data / place / "nltk_data").resolve())
            if Path(directory).is_dir() and directory not in nltk.data.path:
                nltk.data.path.append(directory)
    return nltk


def _missing(what: str, resource: str) -> QkeditError:
    return QkeditError(
        f"the {what} is missing",
        where="nltk",
        remedy=f"run: python -m nltk.downloader {resource}; or set NLTK_DATA to the directory that holds it",
    )


# A failure is not cached: the next call may name a directory that has the resource.
@cache
def _tokenizer() -> Tokenizer:
    from nltk.tokenize import NLTKWordTokenizer, PunktTokenizer

    try:
        return Tokenizer(PunktTokenizer("english"), NLTKWordTokenizer())
    except LookupError:
        raise _missing("sentence splitter punkt_tab", "punkt_tab") from None


@cache
def _tagger() -> Callable[[Sequence[str]], list[str]]:
    from nltk.tag import PerceptronTagger

    try:
        return caption_tags.tagger(PerceptronTagger())
    except LookupError:
        name = "averaged_perceptron_tagger_eng"
        raise _missing(f"tagger {name}", name) from None


@cache
def _corpus_lemmatizer() -> Lemma:
    from nltk.corpus import wordnet
    from nltk.stem import WordNetLemmatizer

    wordnet.ensure_loaded()
    return lru_cache(REMEMBERED)(WordNetLemmatizer().lemmatize)


def _lemma_lists(data: Path | None) -> Path | None:
    """Return the file of WordNet's lemmas in the user's data directory, if there is one."""
    places = (data / place for place in LANGUAGE_PLACES) if data is not None else ()
    return next((file for place in places for file in sorted(place.glob(LEMMA_LISTS))), None)


@cache
def _listed_lemmatizer(lists: Path) -> Lemma:
    """Return a lemmatizer that reads lists: `{"noun": […], …}`, and next to it `noun.exc` … with the exceptions."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    rules = WordNetCorpusReader.MORPHOLOGICAL_SUBSTITUTIONS
    try:
        listed = json.loads(gzip.decompress(lists.read_bytes()))
        known = {part: frozenset(listed[name]) for part, name in PARTS_OF_SPEECH.items()}
        irregular = {part: _exceptions(lists.parent / f"{name}.exc") for part, name in PARTS_OF_SPEECH.items()}
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise QkeditError(
            f"the lists of WordNet's lemmas cannot be read ({type(error).__name__}: {error})",
            where=str(lists),
            remedy="restore them, or run: python -m nltk.downloader wordnet",
        ) from None

    @lru_cache(REMEMBERED)
    def lemma(word: str, part: str) -> str:
        candidates = irregular[part].get(word) or [
            word[: len(word) - len(ending)] + replacement
            for ending, replacement in rules[part]
            if word.endswith(ending)
        ]
        # The shortest lemma, and among equals the first.
        return min((form for form in (word, *candidates) if form in known[part]), key=len, default=word)

    return lemma


def _exceptions(file: Path) -> dict[str, list[str]]:
    """Read lines of an inflected form and its lemmas."""
    rows = (line.split() for line in file.read_text("utf-8").splitlines())
    return {row[0]: row[1:] for row in rows if row}
