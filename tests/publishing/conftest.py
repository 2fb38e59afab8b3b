"""Fixtures: a writable hub, a base on it, and outputs made from that base."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from qkedit.api.editing import steer
from qkedit.steering.steer_options import Layout
from tests.fake_writable_hub import WritableHub, serve_writable_hub
from tests.steering.checkpoints import contents, weights, write

BASE, REPO, COMMIT = "org/base", "me/edited", "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_thisIsNobodysToken"
CARD = "---\nlicense: apache-2.0\nlanguage: [en]\n---\n# Base\n"
LAYOUTS: tuple[Layout, ...] = ("full", "delta", "lora")
Edited = Callable[..., Path]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """Return the user's hub in this process, with a user logged in."""
    with serve_writable_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.utils.disable_progress_bars()
        yield hub
        huggingface_hub.utils.enable_progress_bars()


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the base in a cache, with its hub id and commit."""
    directory = tmp_path_factory.mktemp("cache") / "models--org--base" / "snapshots" / COMMIT
    write(directory, weights())
    (directory / "README.md").write_text(CARD)
    (directory / "LICENSE").write_text("Apache License\n")
    return directory


@pytest.fixture(scope="session")
def outputs(snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return one output per layout; only layer 1 is edited, which is in one shard of three."""
    made = tmp_path_factory.mktemp("outputs")
    for layout in LAYOUTS:
        steer(snapshot, out=made / layout, layers="1", layout=layout, fsync=False)
    return {layout: made / layout for layout in LAYOUTS}


@pytest.fixture
def edited(outputs: dict[str, Path], tmp_path: Path) -> Edited:
    """Return a function: `edited("delta")` makes a copy of that output, which a test may change."""

    def copy(layout: str = "full") -> Path:
        return Path(shutil.copytree(outputs[layout], tmp_path / f"edited-{layout}"))

    return copy


@pytest.fixture
def base(hub: WritableHub, snapshot: Path) -> dict[str, bytes]:
    """Return the base's files on the hub."""
    files = contents(snapshot) | {".gitattributes": b"*.safetensors filter=lfs\n"}
    hub.add(BASE, files, commit=COMMIT)
    return files
