"""Test that damaged or wrong image models of plug-ins are one-sentence errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.contrast.matching import MatchingKept
from qkedit.plugins.contrast.salience import SalientMasked
from qkedit.plugins.core.image_models import explained_failure
from tests.plugins.contrast.tiny_image_models import save_blip, save_vit

CPU = torch.device("cpu")
PICTURE = Image.new("RGB", (20, 30), "red")


def change(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | entries), "utf-8")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda place: (place / "model.safetensors").write_bytes(b""), "cannot be loaded as a vision transformer"),
        (
            lambda place: (place / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:5000]),
            "cannot be loaded as a vision transformer",
        ),
        (lambda place: change(place / "config.json", patch_size=0), "cannot be loaded as a vision transformer"),
        (lambda place: change(place / "config.json", num_hidden_layers=0), "does not take a picture"),
        (
            lambda place: change(place / "preprocessor_config.json", size={"longest_edge": 32}),
            "does not take a picture",
        ),
    ],
    ids=["empty", "truncated", "no-patches", "no-layers", "no-size"],
)
def test_a_damaged_vision_transformer_is_refused(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    place = save_vit(tmp_path)
    damage(tmp_path)
    with pytest.raises(QkeditError, match=said) as raised:
        SalientMasked(place, 0.2)(PICTURE, "", CPU)
    assert str(raised.value).startswith(f"{place}: ")


def test_a_truncated_matching_model_is_refused(tmp_path: Path) -> None:
    place = save_blip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(QkeditError, match="cannot be loaded as a BLIP model"):
        MatchingKept(place, 0)


def test_a_matching_model_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    """transformers would make a tokenizer with an empty vocabulary, for which all questions are equal."""
    place = save_blip(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(QkeditError, match="its tokenizer's files are missing"):
        MatchingKept(place, 0)


def test_a_tokenizer_with_more_words_than_its_model_is_refused(tmp_path: Path) -> None:
    place = save_blip(tmp_path)
    tokenizer = json.loads((file := tmp_path / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["vocab"]["zebra"] = 500
    file.write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(QkeditError, match="does not take a picture and a question"):
        MatchingKept(place, 0)(PICTURE, "zebra", CPU)


@pytest.mark.parametrize("question", ["", "...", "\u200b", "\x07"])
def test_a_question_without_words_is_refused(tmp_path: Path, question: str) -> None:
    with pytest.raises(UsageError, match="comes without its question, or the question has no words"):
        MatchingKept(save_blip(tmp_path), 0)(PICTURE, question, CPU)


@pytest.mark.parametrize("full", [torch.OutOfMemoryError("full"), MemoryError()])
def test_out_of_memory_is_not_reported_as_damaged_files(full: Exception) -> None:
    with pytest.raises(type(full)), explained_failure("does not take a picture", "place", "give another"):
        raise full
