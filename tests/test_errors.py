"""Test that an error is one readable sentence for any quoted text."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from qkedit.errors import LONGEST_PART, QkeditError, VerificationError, did_you_mean, first_sentence, near_words


@given(st.text(), st.text(), st.text())
def test_short_errors_are_unchanged(what: str, where: str, remedy: str) -> None:
    error = QkeditError(what, where=where, remedy=remedy)
    assert (error.what, error.where, error.remedy) == (what, where, remedy)


def test_the_middle_of_long_errors_is_left_out() -> None:
    whole = "-".join(map(str, range(100_000)))
    error = QkeditError(f"the value {whole} is too long", where=whole, remedy=whole)
    assert len(str(error)) < 3 * LONGEST_PART
    assert error.what.startswith("the value 0-1-2-3")
    assert error.what.endswith("99999 is too long")
    assert f"({len(whole) - 4000} characters left out)" in error.where
    assert len(QkeditError("x" * LONGEST_PART).what) == LONGEST_PART


def test_long_numbers_are_abbreviated() -> None:
    error = QkeditError(f"-{'7' * 400} is too small", where=f"seed={'1' * 100}", remedy=f"give less than {'8' * 101}")
    assert error.what == f"-{'7' * 20}… (400 digits) is too small"
    assert error.where == f"seed={'1' * 100}"
    assert error.remedy == f"give less than {'8' * 20}… (101 digits)"


def test_errors_can_be_passed_between_processes() -> None:
    error = VerificationError("x" * 9_000, where="a", remedy="b", mismatches=("c",))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.mismatches) == (str(error), ("c",))


def test_a_similar_name_is_suggested_or_all_names_are_listed() -> None:
    known = ("random", "popular")
    assert did_you_mean("populr", known) == "did you mean 'popular'"
    assert did_you_mean("xyz", known) == "choose among random, popular"
    assert did_you_mean("xyz", iter(known), "known are") == "known are random, popular"
    assert near_words("a" * 101, ["a" * 101]) == ()  # too long for a misspelling
    assert near_words("scar", ["scr", "dscr", "scars"], most=2) == ("scars", "scr")


def test_the_first_sentence_of_another_librarys_error_is_quoted() -> None:
    assert first_sentence(ValueError("\n it is broken.\nMore of it.")) == "it is broken"
    assert first_sentence(KeyError()) == "KeyError"
    message = "Can't load processor for '/a/b'. If you meant a hub id, check it. Otherwise do not."
    assert first_sentence(OSError(message)) == "Can't load processor for '/a/b'"
    assert first_sentence(OSError("See e.g. A. Smith for v1.2. Then go on")) == "See e.g. A. Smith for v1.2"
