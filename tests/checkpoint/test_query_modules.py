"""Test model classes that cannot be built or do not fit. The classes of every family are tested in tests/families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.checkpoint.query_modules import QueryModule, query_modules
from qkedit.errors import UnsupportedForm
from tests import tiny_models
from tests.checkpoint.written import opened
from tests.families.published import PUBLISHED, SIZE, written


def modules_of(directory: Path) -> dict[str, QueryModule]:
    checkpoint = opened(directory)
    return query_modules(checkpoint, attention_stack(checkpoint).layers)


def with_config(directory: Path, **fields: object) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return directory


@pytest.mark.parametrize("family", ["Qwen-VL", "InternVL2 on InternLM2"])
def test_modules_of_a_remote_class_have_the_names_of_its_tensors(family: str, tmp_path: Path) -> None:
    published = PUBLISHED[family]
    base = with_config(written(tmp_path / "base", published), auto_map={"AutoConfig": "never_run.Config"})
    for layer in attention_stack(opened(base)).layers:
        name = published.tensor.format(layer.index)
        found = modules_of(base)[f"{name}.weight"]
        assert found == QueryModule(name, published.rows, layer.query.starts)
        assert len(set(found.starts)) == 4
        assert found.rows >= max(found.starts) + SIZE


def test_an_unknown_class_is_refused(tmp_path: Path) -> None:
    base = written(tmp_path / "base", PUBLISHED["Qwen-VL"])  # without its published code
    with pytest.raises(UnsupportedForm, match=r"transformers has no model class for it.*write the full layout"):
        modules_of(base)


def test_a_class_with_other_shapes_is_refused(tmp_path: Path) -> None:
    base = tiny_models.build("llava", tmp_path / "base", shards=1)
    layers = attention_stack(opened(base)).layers
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["hidden_size"] = 128
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedForm, match=r"no linear module of shape \[64, 64\] for the queries of layer 0"):
        query_modules(opened(base), layers)
