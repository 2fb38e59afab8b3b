"""Test that equal pictures are encoded once, and keys are not copied for query heads, with the same results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from qkedit.laboratory.answering import generation
from qkedit.laboratory.answering.generation import run_eval_set
from qkedit.laboratory.answering.repeats import GROUPED_HEADS, equal_pictures_once, grouped_heads_kept
from qkedit.laboratory.worker import one_thread
from qkedit.plugins.settings import PluginSettings
from qkedit.runtime.generation import Prompt, batch_inputs, prompt_text
from tests.laboratory.small_eval_sets import demo_model, few_scenes

# Rows of a batch by the number of their scene.
ORDER = (0, 1, 0, 2, 2, 1)


def pixels(order: tuple[int, ...]) -> torch.Tensor:
    pictures = [Image.fromarray(few_scenes().scenes[place].image) for place in order]
    text = prompt_text(demo_model(), "Is there a cup?", images=1)
    return batch_inputs(demo_model(), [Prompt(text, (picture,)) for picture in pictures])["pixel_values"]


def features(pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the features of a batch of pictures, and all states of the tower."""
    with one_thread(), torch.inference_mode():
        output = demo_model().model.get_image_features(pictures, output_hidden_states=True, return_dict=True)
    return (torch.stack(list(output.pooler_output)), output.last_hidden_state, *output.hidden_states)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Return a list of the number of pictures in each batch that the vision tower encodes."""
    counts: list[int] = []
    embeddings = demo_model().model.model.vision_tower.get_submodule("embeddings")
    handle = embeddings.register_forward_pre_hook(lambda module, given: counts.append(len(given[0])))
    yield counts
    handle.remove()


def test_equal_pictures_have_the_features_of_separate_ones(encoded: list[int]) -> None:
    given = pixels(ORDER)
    usual = features(given)
    with equal_pictures_once(demo_model().model):
        once = features(given)
    again = features(given)
    assert encoded == [6, 3, 6]
    assert len(once) == len(usual)
    for one, other, after in zip(once, usual, again, strict=True):
        assert torch.equal(other, after)
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    # The comparison is meaningful only if pictures differ.
    assert not torch.allclose(usual[0][0], usual[0][1], atol=1e-2)


def test_pictures_that_differ_in_one_bit_are_encoded_separately(encoded: list[int]) -> None:
    given = pixels((0, 0))
    given[1, 0, 0, 0] = torch.nextafter(given[1, 0, 0, 0], torch.tensor(9.0))
    with equal_pictures_once(demo_model().model):
        features(given)
    assert encoded == [2]


@pytest.mark.parametrize(("part", "kind"), [("", "paligemma"), ("vision_config", "pixtral")])
def test_other_families_and_towers_encode_every_picture(monkeypatch: pytest.MonkeyPatch, part: str, kind: str) -> None:
    config = demo_model().model.config
    monkeypatch.setattr(getattr(config, part) if part else config, "model_type", kind)
    with equal_pictures_once(demo_model().model):
        assert "forward" not in vars(demo_model().model.model.vision_tower)


def test_the_tower_is_restored_after_an_error() -> None:
    tower = demo_model().model.model.vision_tower

    def stop() -> None:
        with equal_pictures_once(demo_model().model):
            assert "forward" in vars(tower)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert "forward" not in vars(tower)


@pytest.mark.parametrize("plugin", ["scr", "dscr", "vcd"])
def test_each_picture_of_a_batch_is_encoded_once(
    encoded: list[int], monkeypatch: pytest.MonkeyPatch, plugin: str
) -> None:
    """Batches hold several pictures, and DSCR's depths and the noise of VCD belong to rows."""
    monkeypatch.setattr(generation, "CAPTION_TOKENS", 4)
    monkeypatch.setattr(generation, "ANSWER_TOKENS", 2)
    asked = [PluginSettings(plugin)]
    with one_thread():
        once = run_eval_set(demo_model(), few_scenes(), asked, share_pictures=False)
        counts = list(encoded)
        monkeypatch.setattr(generation, "equal_pictures_once", lambda model: one_thread())
        assert run_eval_set(demo_model(), few_scenes(), asked, share_pictures=False) == once
    encodings = 2 if plugin == "vcd" else 1
    scenes, questions = len(few_scenes().scenes), len(few_scenes().asked)
    assert counts == [scenes] * (2 * encodings)
    assert encoded[len(counts) :] == [questions] * encodings + [scenes] * encodings


def test_grouped_heads_are_not_copied_and_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill of padded prompts has a mask, with which transformers copies keys by default."""
    model, usual = demo_model().model, torch.nn.functional.scaled_dot_product_attention
    key_heads: list[int] = []

    def attend(query: torch.Tensor, key: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        key_heads.append(key.shape[1])
        return usual(query, key, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    ids = torch.arange(5, 17).reshape(2, 6)
    padded = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])

    def logits() -> torch.Tensor:
        key_heads.clear()
        with one_thread(), torch.inference_mode():
            return model(input_ids=ids, attention_mask=padded).logits

    text = model.config.text_config
    copied = logits()
    assert set(key_heads) == {text.num_attention_heads}
    with grouped_heads_kept(model):
        kept = logits()
        assert set(key_heads) == {text.num_key_value_heads}
    assert torch.equal(kept[padded.bool()], copied[padded.bool()])
    logits()
    assert set(key_heads) == {text.num_attention_heads}


def test_a_setting_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GROUPED_HEADS, "0")
    with grouped_heads_kept(demo_model().model):
        assert os.environ[GROUPED_HEADS] == "0"
    assert os.environ[GROUPED_HEADS] == "0"
