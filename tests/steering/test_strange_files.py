"""Test unusual configs, indexes and manifests: a correct run, or one sentence and no files."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qkedit.api.editing import steer
from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.errors import CheckpointError, QkeditError
from qkedit.steering.plan import make_plan
from qkedit.steering.steer_options import SteerOptions
from qkedit.steering.verify import verify
from tests.steering.checkpoints import CONFIG, INDEX, weights, write

STRANGE = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        10**400,
        2**63,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "\ud800",
        "\x1b[2J",
        [],
        {},
        [[]],
        [None],
    ]
)
NESTED = "[" * 100_000


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return all paths to values of a document, by keys and positions."""
    found = [path] if path else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        found += places(item, (*path, key))
    return found


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return copy


@pytest.fixture(scope="module")
def base_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("strange") / "base", weights())


CONFIG_KEYS = [
    *(("text_config", key) for key in CONFIG["text_config"]),
    ("text_config", "head_dim"),
    ("text_config", "layer_types"),
    ("text_config", "rope_scaling"),
    ("text_config", "num_kv_shared_layers"),
    ("model_type",),
    ("text_config",),
    ("vision_config",),
    ("quantization_config",),
    ("architectures",),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(CONFIG_KEYS), value=STRANGE)
def test_any_value_in_a_config_is_accepted_or_refused(base_files: Path, path: tuple[str, ...], value: Any) -> None:
    (base_files / "config.json").write_text(json.dumps(put(CONFIG, path, value)))
    with suppress(QkeditError):
        make_plan(open_checkpoint(LocalFiles(base_files)), SteerOptions(layers="all", allow_text_only=True))


@pytest.mark.parametrize("file", ["config.json", INDEX])
@pytest.mark.parametrize("text", [NESTED, '{"a":' * 100_000, "9" * 10_000, '"', "\xff", '{"weight_map": NaN}'])
def test_invalid_json_documents_are_refused(base_files: Path, tmp_path: Path, file: str, text: str) -> None:
    source = Path(shutil.copytree(base_files, tmp_path / "source"))
    (source / "config.json").write_text(json.dumps(CONFIG))
    (source / file).write_text(text, encoding="latin-1")
    if file == "config.json" and text.endswith("}"):
        pytest.skip("configs may contain NaN, as in their loaders")
    with pytest.raises(CheckpointError):
        open_checkpoint(LocalFiles(source))


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("edited")
    base = write(place / "base", weights())
    steer(base, out=place / "edited", layers="1", k=2, fsync=False)
    return base, place / "edited"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_a_manifest_is_checked_or_refused(edited: tuple[Path, Path], data: st.DataObject) -> None:
    base, directory = edited
    original = (directory / "qkedit.json").read_bytes()
    document = json.loads(original)
    document["tensors"][0]["heads"] = document["tensors"][0]["heads"][:1]
    path = data.draw(st.sampled_from(places(document)))
    try:
        (directory / "qkedit.json").write_text(json.dumps(put(document, path, data.draw(STRANGE))))
        for against in (None, str(base)):
            with suppress(QkeditError):
                verify(directory, base=against)
    finally:
        (directory / "qkedit.json").write_bytes(original)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_steering_an_output_with_such_a_manifest(
    edited: tuple[Path, Path], tmp_path: Path, data: st.DataObject
) -> None:
    """A second edit continues the manifest and names the base in the card."""
    _, directory = edited
    original = (directory / "qkedit.json").read_bytes()
    document = json.loads(original)
    document["tensors"][0]["heads"] = document["tensors"][0]["heads"][:1]
    path = data.draw(st.sampled_from(places(document)))
    out = tmp_path / "again"
    try:
        (directory / "qkedit.json").write_text(json.dumps(put(document, path, data.draw(STRANGE))))
        with suppress(QkeditError):
            steer(directory, out=out, layers="2", k=2, overwrite=True, fsync=False)
        assert not out.exists() or verify(out).mismatches == ()
    finally:
        (directory / "qkedit.json").write_bytes(original)
    assert [name for name in os.listdir(tmp_path) if name != "again"] == []


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "9" * 400, "true"])
def test_a_manifest_with_an_invalid_number_is_refused(edited: tuple[Path, Path], number: str) -> None:
    document = json.loads((edited[1] / "qkedit.json").read_text())
    text = json.dumps(put(document, ("tensors", 0, "heads", 0, "energy_removed"), "HERE")).replace('"HERE"', number)
    with pytest.raises(CheckpointError, match=r"^here.*: .+; write the output again\.$"):
        Manifest.from_json(text.encode(), "here")


def test_a_manifest_with_a_repeated_key_is_refused(edited: tuple[Path, Path]) -> None:
    text = (edited[1] / "qkedit.json").read_text().replace('"schema"', '"schema": 1, "schema"', 1)
    with pytest.raises(CheckpointError, match=r"^here.*: .+; write the output again\.$"):
        Manifest.from_json(text.encode(), "here")
