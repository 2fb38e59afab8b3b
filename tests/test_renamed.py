"""Test former names of arguments: the same result, and a warning at the line that uses them."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest

import qkedit
from qkedit.demo import SMALL_DEMO
from qkedit.renamed import renamed_argument
from qkedit.spectral.suppression import Suppression


@renamed_argument("old", "new")
def double(new: int = 1) -> int:
    """Return twice a number."""
    return 2 * new


def test_the_old_name_has_the_effect_of_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="old= is now new=; the old name works until version 1.0") as caught:
        assert double(old=3) == 6  # type: ignore[call-arg]
    assert [warning.filename for warning in caught] == [__file__]
    assert (double(3), double(new=4), double()) == (6, 8, 2)
    assert str(inspect.signature(double)) == "(new: 'int' = 1) -> 'int'"


def test_both_names_together_are_refused() -> None:
    with pytest.warns(DeprecationWarning, match="old="), pytest.raises(TypeError, match="both given"):
        double(new=1, old=1)  # type: ignore[call-arg]


def test_a_suppression_accepts_the_old_name() -> None:
    with pytest.warns(DeprecationWarning, match="residual= is now retain=") as caught:
        suppression = Suppression(2, residual=0.25)  # type: ignore[call-arg]
    assert suppression == Suppression(2, retain=0.25) == replace(Suppression(2), retain=0.25)
    with pytest.warns(DeprecationWarning, match="Suppression.residual is now Suppression.retain") as read:
        assert suppression.residual == 0.25
    assert {warning.filename for warning in (*caught, *read)} == {__file__}


def test_an_edit_accepts_the_old_name(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="residual= is now retain="):
        old = qkedit.steer(SMALL_DEMO, out=tmp_path / "old", layers="3", residual=0.5, fsync=False)  # type: ignore[call-arg]
    new = qkedit.steer(SMALL_DEMO, out=tmp_path / "new", layers="3", retain=0.5, fsync=False)
    assert old.manifest == new.manifest
