"""Fixtures for the tests of plug-ins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.plugins.in_double import in_double
from tests.plugins.tiny_requests import model


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest, family: str) -> Iterator[str]:
    """Run a test of a tiny model in float32, and again in float64, where a mistake cannot pass as rounding."""
    tiny = model(family)
    if request.param == "float32":
        yield request.param
        return
    tiny.double()
    try:
        with in_double():
            yield request.param
    finally:
        tiny.float()
