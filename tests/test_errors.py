"""An error stays a sentence that somebody reads, whatever it quotes."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from qkedit.errors import LONGEST_PART, QkeditError, VerificationError


@given(st.text(), st.text(), st.text())
def test_nothing_is_left_out_of_what_is_short(what: str, where: str, remedy: str) -> None:
    error = QkeditError(what, where=where, remedy=remedy)
    assert (error.what, error.where, error.remedy) == (what, where, remedy)


def test_the_middle_is_left_out_of_what_nobody_reads() -> None:
    whole = "".join(map(str, range(100_000)))
    error = QkeditError(f"the value {whole} is too long", where=whole, remedy=whole)
    assert len(str(error)) < 3 * LONGEST_PART
    assert error.what.startswith("the value 0123")
    assert error.what.endswith("99999 is too long")
    assert f"({len(whole) - 4000} characters left out)" in error.where
    assert len(QkeditError("x" * LONGEST_PART).what) == LONGEST_PART


def test_an_error_passes_between_processes() -> None:
    error = VerificationError("x" * 9_000, where="a", remedy="b", mismatches=("c",))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.mismatches) == (str(error), ("c",))
