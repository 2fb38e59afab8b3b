"""Fixtures: tiny checkpoints of transformers' families, built once and only read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import tiny_models
from tests.steering.checkpoints import unchanged

TinyCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """Return a function: `tiny("qwen2-vl", dtype="float32")` is that family's checkpoint in three shards."""
    built: dict[tuple[str, str], Path] = {}

    def build(family: str, dtype: str = "bfloat16") -> Path:
        if (family, dtype) not in built:
            directory = tmp_path_factory.mktemp(family)
            built[family, dtype] = tiny_models.build(family, directory, dtype=dtype)
        return built[family, dtype]

    return build


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """Return a hand-written checkpoint that a test must not change."""
    with unchanged(tmp_path / "base") as directory:
        yield directory
