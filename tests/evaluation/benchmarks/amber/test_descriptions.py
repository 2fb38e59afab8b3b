"""Test AMBER's descriptions against a slow copy of the official script, its quirks, and the table of similar words."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.amber import scoring as amber
from qkedit.evaluation.benchmarks.amber.descriptions import Words, counts_of, figures, item, judge, noun_reader
from qkedit.evaluation.benchmarks.amber.similarity import (
    EXACT,
    Similarity,
    build_similarity,
    read_similarity,
    write_similarity,
)
from qkedit.evaluation.files.records import AmberCaptionItem, Answer, Question
from qkedit.evaluation.files.score_json import score_as_dict, score_from_dict
from qkedit.evaluation.statistics.metrics import metrics_of
from tests.cli.command import qkedit
from tests.evaluation.published import DATA, needs_data

VOCABULARY = ("dog", "puppy", "cat", "kitten", "sky", "tree", "light")
_word = st.sampled_from(VOCABULARY)
_words = st.lists(_word, max_size=5)
_case = st.fixed_dictionaries(
    {
        "associations": st.fixed_dictionaries({word: st.lists(_word, max_size=2) for word in VOCABULARY}),
        "safe": st.sets(_word, max_size=1),
        "pairs": st.sets(st.tuples(_word, _word), max_size=4),
        "captions": st.lists(
            st.tuples(_words, st.lists(_word, min_size=1, max_size=4), _words), min_size=1, max_size=4
        ),
    }
)


class SlowScript:
    """Follow the official script: lists of flags, first for the associations and last for the objects."""

    def __init__(self, associations: dict[str, list[str]], safe: set[str], pairs: set[tuple[str, str]]) -> None:
        self.associations, self.safe, self.pairs = associations, safe, pairs
        self.sums = dict.fromkeys(("chair_score", "safe_cover_score", "hallu_cover_score", "non_hallu_score"), 0.0)
        self.sums |= dict.fromkeys(("chair_num", "safe_cover_num", "hallu_cover_num", "non_hallu_num"), 0.001)

    def similar(self, one: str, other: str) -> bool:
        return one == other or (one, other) in self.pairs or (other, one) in self.pairs

    def flags(self, objects: list[str]) -> tuple[list[str], list[int]]:
        words: list[str] = []
        flags: list[int] = []
        for place, name in enumerate(objects):
            words += self.associations[name]
            flags += [place] * len(self.associations[name])
        return words + objects, flags + [0] * len(objects)

    def mark(self, flags: list[int], count: int, place: int) -> None:
        if place < len(flags) - count:
            flags[flags[place] + len(flags) - count] = 1
        else:
            flags[place] = 1

    def add(self, nouns: list[str], truth: list[str], likely: list[str]) -> list[int]:
        safe_words, safe_flags = self.flags(truth)
        likely_words, likely_flags = self.flags(likely)
        hallucinated = [0] * len(nouns)
        for number, noun in enumerate(nouns):
            if noun in self.safe:
                continue
            if noun in safe_words:
                self.mark(safe_flags, len(truth), safe_words.index(noun))
                continue
            if noun in likely_words:
                self.mark(likely_flags, len(likely), likely_words.index(noun))
            for place, word in enumerate(likely_words):
                if self.similar(noun, word):
                    self.mark(likely_flags, len(likely), place)
                    break
            rescued = False
            for place, word in enumerate(safe_words):
                if self.similar(noun, word):
                    rescued = True
                    self.mark(safe_flags, len(truth), place)
                    break
            hallucinated[number] = int(not rescued)
        self.sums["chair_score"] += sum(hallucinated)
        self.sums["chair_num"] += len(hallucinated)
        self.sums["safe_cover_score"] += sum(safe_flags[-len(truth) :])
        self.sums["safe_cover_num"] += len(truth)
        self.sums["hallu_cover_score"] += sum(likely_flags[-len(likely) :])
        self.sums["hallu_cover_num"] += len(likely)
        self.sums["non_hallu_score"] += sum(hallucinated) == 0
        self.sums["non_hallu_num"] += 1
        return hallucinated

    def printed(self) -> dict[str, float]:
        sums = self.sums
        return {
            "CHAIR": round(sums["chair_score"] / sums["chair_num"] * 100, 1),
            "Cover": round(sums["safe_cover_score"] / sums["safe_cover_num"] * 100, 1),
            "Hal": round(100 - sums["non_hallu_score"] / sums["non_hallu_num"] * 100, 1),
            "Cog": round(sums["hallu_cover_score"] / sums["hallu_cover_num"] * 100, 1),
        }


def judged(
    nouns: Sequence[str], truth: Sequence[str], likely: Sequence[str], words: Words, similar: Similarity = EXACT
) -> AmberCaptionItem:
    question = Question("1", "", "", tuple(truth), "", {"likely": tuple(likely)})
    return item(question, Answer("1", " ".join(nouns)), tuple(nouns), words, similar)


@given(_case)
def test_metrics_equal_those_of_the_official_script(case: dict[str, Any]) -> None:
    script = SlowScript(case["associations"], case["safe"], case["pairs"])
    words = Words(
        {name: tuple(associated) for name, associated in case["associations"].items()}, frozenset(case["safe"])
    )
    similar = Similarity("", "", frozenset(VOCABULARY), frozenset(case["pairs"]))
    items = []
    for nouns, truth, likely in case["captions"]:
        flags = script.add(nouns, truth, likely)
        one = judged(nouns, truth, likely, words, similar)
        assert list(one.hallucinated) == [noun for noun, flag in zip(nouns, flags, strict=True) if flag]
        items.append(one)
    counts = counts_of(items)
    assert figures(counts) == script.printed()
    parts = {name: metric.sums(items) for name, metric in metrics_of(items).items()}
    assert parts["chair"] == (100 * counts["hallucinated_mentions"], counts["mentions"])
    assert parts["cover"] == (100 * counts["covered_objects"], counts["true_objects"])
    assert parts["hal"] == (100 * counts["hallucinated_captions"], len(items))
    assert parts["cog"] == (100 * counts["fallen_for_objects"], counts["likely_objects"])


WORDS = Words(
    {"dog": ("puppy",), "puppy": (), "cat": ("kitten",), "kitten": (), "sky": (), "tree": ("sky",), "light": ()},
    frozenset({"light"}),
)
SIMILAR = Similarity("a model", "1", frozenset(VOCABULARY), frozenset({("cat", "dog"), ("kitten", "tree")}))


@pytest.mark.parametrize(
    ("nouns", "truth", "likely", "hallucinated", "covered", "fallen_for"),
    [
        # A safe word is neither true nor hallucinated, but it is a noun.
        (["light"], ["dog"], ["light"], (), set(), set()),
        (["puppy", "puppy"], ["sky", "dog"], [], (), {1}, set()),
        # Associations come before objects: `sky` covers the tree.
        (["sky"], ["sky", "tree"], [], (), {1}, set()),
        (["dog"], ["dog", "dog"], [], (), {0}, set()),
        (["cat"], ["sky"], ["cat"], ("cat",), set(), {0}),
        (["kitten"], ["sky"], ["dog", "cat"], ("kitten",), set(), {1}),
        # Likely by its own word and by the first similar one, and still similar to a true object.
        (["cat"], ["dog"], ["dog", "cat"], (), {0}, {0, 1}),
        (["cat"], ["puppy", "dog"], [], (), {1}, set()),
        (["tree"], ["dog"], ["cat"], ("tree",), set(), {0}),
        (["dog", "cat", "dog"], ["sky"], [], ("dog", "cat", "dog"), set(), set()),
    ],
)
def test_quirks_of_the_rule_are_kept(
    nouns: list[str],
    truth: list[str],
    likely: list[str],
    hallucinated: tuple[str, ...],
    covered: set[int],
    fallen_for: set[int],
) -> None:
    judgement = judge(nouns, truth, likely, WORDS, SIMILAR)
    assert judgement.hallucinated == hallucinated
    assert judgement.covered == covered
    assert judgement.fallen_for == fallen_for


def test_without_a_table_only_equal_words_match() -> None:
    judgement = judge(["cat", "puppy"], ["dog"], ["tree"], WORDS, EXACT)
    assert (judgement.hallucinated, judgement.covered) == (("cat",), {0})


@pytest.mark.parametrize(
    ("text", "nouns"),
    [
        ("Two dogs sit under the trees.", ("dog", "tree")),
        # Capitals are kept; words of this vocabulary have none.
        ("Dogs! A Dog and a dog.", ("dog",)),
        # A verb is not a noun.
        ("She lights a lamp in the light.", ("light",)),
        ("The cats' sky", ("cat", "sky")),
        ("", ()),
    ],
)
def test_nouns_of_a_description_are_read(language: Path, text: str, nouns: tuple[str, ...]) -> None:
    assert noun_reader(frozenset(VOCABULARY), language)(text) == nouns


def test_a_table_is_read_as_written(tmp_path: Path) -> None:
    file = tmp_path / "similarity.json"
    write_similarity(SIMILAR, file)
    assert read_similarity(file, VOCABULARY) == SIMILAR
    assert SIMILAR("dog", "cat")
    assert SIMILAR("cat", "dog")
    assert SIMILAR("sky", "sky")
    assert not SIMILAR("sky", "dog")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"threshold": 0.7}, "has the threshold 0.7, but AMBER's is 0.8"),
        ({"words": ["dog", "cat"]}, "was made without 5 of AMBER's words, such as 'kitten'"),
        ({"pairs": [["dog"]]}, "is not a table of similar words"),
        ({"pairs": 3}, "is not a table of similar words"),
        ({"model": None, "words": None}, "is not a table of similar words"),
    ],
)
def test_an_invalid_table_is_refused(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    file = tmp_path / "similarity.json"
    write_similarity(SIMILAR, file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(QkeditError, match=what):
        read_similarity(file, VOCABULARY)
    file.write_text("[]")
    with pytest.raises(QkeditError, match="is not a JSON object"):
        read_similarity(file, VOCABULARY)


class _Document:
    """A text with a position on a line; similarity decreases with distance, and is 1 at the same position."""

    def __init__(self, text: str) -> None:
        self.place = {"dog": 0.0, "puppy": 0.19, "cat": 0.21}.get(text, 10.0 + len(text))

    def similarity(self, other: _Document) -> float:
        return 1 - abs(self.place - other.place)


@pytest.fixture
def spacy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Replace spaCy and its model."""
    module: Any = ModuleType("spacy")
    module.util = SimpleNamespace(is_package=lambda name: name == "en_core_web_lg")

    def load(name: str) -> Any:
        class Language:
            meta = {"version": "9.9"}  # noqa: RUF012

            def __call__(self, text: str) -> _Document:
                return _Document(text)

        assert name == "en_core_web_lg"
        return Language()

    module.load = load
    monkeypatch.setitem(sys.modules, "spacy", module)
    return module


def test_a_table_is_made_if_the_spacy_model_is_installed(spacy: Any) -> None:
    table = build_similarity(["dog", "puppy", "cat", "sky"])
    assert table == Similarity(
        "en_core_web_lg",
        "9.9",
        frozenset({"dog", "puppy", "cat", "sky"}),
        frozenset({("dog", "puppy"), ("cat", "puppy")}),
    )
    spacy.util.is_package = lambda name: False
    assert build_similarity(["dog"]) is None


def test_without_spacy_no_table_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    assert build_similarity(["dog"]) is None


def described(similarity: Similarity | None, data: Path) -> Question:
    fields = {"dimension": "generative", "words": WORDS, "similarity": similarity, "data": data, "likely": ("tree",)}
    return Question("1", "AMBER_1.jpg", "Describe this image.", ("dog",), "AMBER_1.jpg", fields)


def test_the_score_names_its_table(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    answers = [Answer("1", "A cat and a tree under the light.")]
    with_table = amber.score([described(SIMILAR, language)], answers)
    assert (with_table.rule_kind, with_table.rule, with_table.warnings) == ("variant", "official", ())
    assert with_table.printed == {"CHAIR": "33.3", "Cover": "99.9", "Hal": "100.0", "Cog": "99.9"}
    (judged_item,) = with_table.items
    assert judged_item == AmberCaptionItem(
        **{"id": "1", "found": ("cat", "tree", "light"), "hallucinated": ("tree",), "covered": ("dog",), "words": 8},
        **{"truth": ("dog",), "group": "AMBER_1.jpg", "likely": ("tree",), "fallen_for": ("tree",)},
    )
    assert score_from_dict(json.loads(json.dumps(score_as_dict(with_table)))) == with_table
    without = amber.score([described(None, language)], answers)
    assert without.rule == "without-similarity"
    assert any("not comparable with published figures" in warning for warning in without.warnings)
    assert without.printed == {"CHAIR": "66.6", "Cover": "0.0", "Hal": "100.0", "Cog": "99.9"}
    assert amber.score([described(None, language)], answers, similarity=SIMILAR).metrics == with_table.metrics


def test_the_table_of_an_installed_model_is_used(language: Path, spacy: Any) -> None:
    score = amber.score([described(None, language)], [Answer("1", "Two dogs run.")])
    assert (score.rule, score.warnings) == ("official", ())


def test_a_caption_without_nouns_has_no_chair(language: Path) -> None:
    score = amber.score([described(SIMILAR, language)], [Answer("1", "Nothing.")])
    assert score.metrics == {"chair": None, "cover": 0.0, "hal": 0.1, "cog": 0.0, "mean_words": 1.0}
    assert score.printed["CHAIR"] == "0.0"
    assert any("chair cannot be calculated" in warning for warning in score.warnings)


@needs_data
def test_the_command_line_scores_descriptions(language: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    rows = [{"id": number, "response": "A man under the sky, beside a dog."} for number in range(1, 1005)]
    answers.write_text(json.dumps(rows))
    table = tmp_path / "table.json"
    vocabulary = amber.load_questions(DATA)[0].fields["words"].vocabulary
    write_similarity(Similarity("by hand", "1", vocabulary, frozenset({("man", "person")})), table)
    arguments = ("score", "amber", "--answers", answers, "--data", DATA, "--json")
    (plain,) = qkedit(*arguments).document["results"]
    (scored,) = qkedit(*arguments, "--similarity", table).document["results"]
    assert (plain["split"], plain["n"], plain["variant"]) == ("generative", 1004, "without-similarity")
    assert scored["variant"] == "official"
    assert scored["counts"]["mentions"] == plain["counts"]["mentions"] == 3012
    assert scored["counts"]["hallucinated_mentions"] < plain["counts"]["hallucinated_mentions"]
    assert scored["printed"] == {
        name: str(scored["metrics"][name.lower()]) for name in ("CHAIR", "Cover", "Hal", "Cog")
    }
