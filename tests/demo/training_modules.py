"""Import the modules that train the miniature model, from the folder of scripts."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from tests.scripts.loading import SCRIPTS


@pytest.fixture(scope="module", autouse=True)
def scripts_on_the_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS / "demo_model"))
        yield


def part(name: str) -> Any:
    """Return a module of `demo_training`."""
    return import_module(f"demo_training.{name}")
