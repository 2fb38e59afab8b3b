from __future__ import annotations

from functools import cache

import pytest

from tests import tiny_models
from tests.families.built import Build, Built, loaded


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    @cache
    def built(family: str, published: bool) -> Built:
        directory = tmp_path_factory.mktemp("families") / family
        tiny_models.build(family, directory, dtype="float32", published=published)
        return Built(directory, loaded(family, directory))

    return built
