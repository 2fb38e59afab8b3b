"""Test tokens: no character in a caption shifts other captions, and missing programs are reported in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.coco_caption import tokens
from tests.evaluation.benchmarks.coco_caption.conftest import Programs

# Characters that end a line for Java's tokenizer, for Java or for Python.
SEPARATORS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
characters = st.characters() | st.sampled_from(SEPARATORS)


@given(st.lists(st.text(characters, max_size=6), max_size=5))
@example([f"a{separator}b{separator}" for separator in SEPARATORS] + ["\r\n", "", "\ud800"])
def test_every_caption_is_one_line(captions: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        given_lines: list[str] = []
        patch.setattr(tokens, "program", lambda name: Path(name))
        patch.setattr(tokens, "run_java", lambda arguments, given, what: given_lines.append(given) or given)
        found = tokens.ptb(captions)
    assert len(found) == len(captions)
    for text in given_lines:
        assert text.split("\n") == [line for line in text.split("\n") if not set(SEPARATORS) & set(line)]
        assert text.count("\n") == len(captions) - 1


def test_separators_within_a_caption_are_spaces(programs: Programs) -> None:
    log = programs()
    broken = [f"a{separator}cat" for separator in SEPARATORS]
    assert tokens.ptb([*broken, "the last"]) == [*["a cat"] * len(broken), "the last"]
    (arguments, _), *_ = map(json.loads, log.read_text().splitlines())
    assert arguments[-3:] == ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]


def test_punctuation_is_dropped_as_in_the_official_script(programs: Programs) -> None:
    programs()
    said = "`` a -LRB- cat -RRB- '' , -lrb- it 's -rrb- . ... -- - ; : ? ! -lsb- ` '"
    assert tokens.ptb([said]) == ["a cat -lrb- it 's -rrb- -lsb-"]


@pytest.mark.parametrize("made", ["given + chr(10)", "given.replace(chr(10), ' ')"])
def test_a_wrong_number_of_lines_is_refused(programs: Programs, made: str) -> None:
    programs(f"print({made}, end='')")
    with pytest.raises(QkeditError, match="lines of 2 captions, so they cannot be matched"):
        tokens.ptb(["a", "b"])


def test_the_error_of_a_failing_java_is_quoted(programs: Programs) -> None:
    programs("sys.exit('NOTE: Picked up\\nError: Could not create the Java Virtual Machine.\\n\\tat x.y')")
    with pytest.raises(QkeditError, match=r"java says 'Error: Could not create the Java Virtual Machine\.'"):
        tokens.ptb(["a"])


def test_without_java_the_remedy_is_named(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    programs()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(QkeditError, match="the official tokens need Java") as refused:
        tokens.ptb(["a"])
    assert "--variant words" in str(refused.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkedit.evaluation.benchmarks.coco_caption.java.find_spec", lambda name: None)
    with pytest.raises(QkeditError, match=r"pip install 'qkedit\[coco-caption\]'"):
        tokens.ptb(["a"])


def test_words_are_sequences_of_letters_and_digits() -> None:
    assert tokens.words(["A dog's Ball, 2!", "", "\u2028 Élan_vital"]) == ["a dog s ball 2", "", "élan_vital"]
