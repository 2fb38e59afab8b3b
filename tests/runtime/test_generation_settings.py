"""Test that generation settings of a wrong type are one sentence, before anything is generated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.errors import QkeditError
from qkedit.runtime.generation_settings import check_generation_settings
from qkedit.runtime.loading import load


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"bos_token_id": {"bos_token_id": 1}},
            "bos_token_id of its generation settings is {'bos_token_id': 1}, not a",
        ),
        ({"eos_token_id": [2, "3"]}, "not a token id or a list of them"),
        ({"pad_token_id": True}, "not a token id"),
        ({"num_beams": "2"}, "not a whole number"),
        ({"temperature": [1.0]}, "not a number"),
        ({"do_sample": "no"}, "not true or false"),
    ],
)
def test_a_setting_of_a_wrong_type_is_named(settings: dict[str, Any], message: str) -> None:
    config = GenerationConfig()
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(QkeditError) as error:
        check_generation_settings(config, "model")
    assert message in str(error.value)


def test_usual_settings_are_accepted() -> None:
    check_generation_settings(GenerationConfig(), "model")
    check_generation_settings(GenerationConfig(eos_token_id=[1, 2], do_sample=True, temperature=1, top_k=50), "model")


def test_invalid_settings_are_refused_at_loading(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo_checkpoint(SMALL_DEMO), model)
    file = model / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bos_token_id": {"a": 1}}))
    with pytest.raises(QkeditError, match=r"generation settings is .*; correct generation_config\.json"):
        load(str(model))
