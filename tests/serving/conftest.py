"""A server of a tiny LLaVA with both plug-ins, in one process for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from openai import OpenAI

from qkedit.runtime.generation import LoadedModel, load
from tests.serving.served_models import llava
from tests.serving.server_process import Server, serving

KEY = "a key that nobody guesses"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("depth") / "depth.npy"
    np.save(file, np.add.outer(np.arange(48.0), np.arange(60.0) ** 2).astype(np.float32))
    return file


@pytest.fixture(scope="module")
def server(directory: Path, depth: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    plugins = ["--plugin", "scr:layers=0-1", "--plugin", f"dscr:depth={depth}"]
    limits = ["--max-body", "1", "--max-images", "3", "--max-pixels", "1000000"]
    own = tmp_path_factory.mktemp("server")
    arguments = [str(directory), *plugins, *limits, "--served-name", "tiny"]
    with serving(own, *arguments, environment={"QKEDIT_API_KEY": KEY}) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return server.client(KEY)


@pytest.fixture(scope="module")
def local(directory: Path) -> LoadedModel:
    return load(str(directory))
