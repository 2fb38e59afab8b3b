"""Test the contrast and the sum with second images against their formulas, also for images of other sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

import qkedit
from qkedit.demo import SMALL_DEMO
from qkedit.errors import UsageError
from qkedit.plugins.contrast.image_contrast import ImageContrast, ImageSum
from qkedit.plugins.core.pictures import Pictures, remember_pictures
from qkedit.runtime.generation import Prompt as Question
from qkedit.runtime.generation import batch_inputs, load, prompt_text, respond, respond_batch
from tests.plugins.closeness import assert_equals_formulas
from tests.plugins.contrast.contrast_oracle import contrasted
from tests.plugins.greedy import STEPS, generated
from tests.plugins.tiny_requests import SHAPES, Prompt, model, request, two_prompts

FAMILIES = ("qwen2-vl", "qwen2.5-vl", "llava", "llava-next", "internvl", "gemma3")


def picture(shape: tuple[int, int], tenths: int = 10) -> Image.Image:
    """Return an image whose colour encodes a shape and the factor of its pixels in a tiny request."""
    return Image.new("RGB", (2, 2), (*shape, tenths))


def with_pictures(family: str, prompts: Sequence[Prompt], images: Sequence[Sequence[Image.Image]]) -> dict[str, Any]:
    """Return the model inputs of prompts with other images that share one factor."""
    shown = [[own.getpixel((0, 0)) for own in row] for row in images]
    changed = []
    for prompt, row in zip(prompts, shown, strict=True):
        colours = iter(row)
        items = tuple(item if isinstance(item, int) else next(colours)[:2] for item in prompt.items)
        changed.append(replace(prompt, items=items))
    inputs = request(family, changed).inputs
    (factor,) = {colour[2] for row in shown for colour in row}
    return {**inputs, "pixel_values": inputs["pixel_values"] * factor / 10}


def inputs_of(family: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return the model inputs of prompts with their images."""
    images = [[picture(item) for item in prompt.items if not isinstance(item, int)] for prompt in prompts]
    inputs = with_pictures(family, prompts, images)
    remember_pictures(inputs, Pictures(images, lambda others: with_pictures(family, prompts, others)))
    return inputs


def other(first: Image.Image) -> Image.Image:
    """Return a fainter image of another shape, if the family has several."""
    shape = first.getpixel((0, 0))[:2]
    alike = next(pair for pair in SHAPES.values() if shape in pair)
    return picture(alike[1 - alike.index(shape)], 4)


def same(first: Image.Image) -> Image.Image:
    return first


CASES = [(family, ImageContrast(other, alpha=0.7), 0.7, None) for family in FAMILIES]
CASES += [(family, ImageSum(other), -2.0, 1.0) for family in ("qwen2-vl", "gemma3")]


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(
    ("family", "plugin", "alpha", "own"), CASES, ids=[f"{case[0]}-{case[1].name}" for case in CASES]
)
def test_a_batch_with_several_images_equals_the_formula_of_each_prompt(
    family: str, plugin: Any, alpha: float, own: float | None
) -> None:
    prompts = two_prompts(family)
    with qkedit.attach(model(family), plugin) as attached:
        answers, logits = generated(family, inputs_of(family, prompts))
    assert attached.report()[-1].plugins[plugin.name].steps == STEPS
    for row, prompt in enumerate(prompts):
        images = [[other(picture(item)) for item in prompt.items if not isinstance(item, int)]]
        alone, second = inputs_of(family, [prompt]), with_pictures(family, [prompt], images)
        if family in ("qwen2-vl", "llava-next", "internvl") and row == 0:
            assert second["input_ids"].shape != alone["input_ids"].shape
        answer, expected = contrasted(model(family), alone, second, lambda step: alpha, plugin.beta, STEPS, own)
        assert answers[row].tolist() == answer
        for step in range(STEPS):
            finite = expected[step].isfinite()
            assert torch.equal(logits[step][row].isfinite(), finite)
            assert_equals_formulas(logits[step][row][finite], expected[step][finite])


@pytest.mark.parametrize(
    ("plugin", "factor"), [(ImageContrast(same, alpha=3), 1), (ImageSum(same, beta=0.2), 3)], ids=["contrast", "sum"]
)
def test_an_identical_second_image_keeps_the_logits_up_to_the_cut(plugin: Any, factor: float) -> None:
    given = inputs_of("qwen2-vl", two_prompts("qwen2-vl"))
    own, of_model = generated("qwen2-vl", given)
    with qkedit.attach(model("qwen2-vl"), plugin):
        answers, logits = generated("qwen2-vl", given)
    assert torch.equal(answers, own)
    for found, expected in zip(logits, of_model, strict=True):
        plausible = expected >= expected.max(dim=1, keepdim=True).values + torch.tensor(plugin.beta).log()
        assert torch.equal(found.isfinite(), plausible)
        torch.testing.assert_close(found[plausible], factor * expected[plausible], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [ImageContrast, ImageSum])
def test_a_weight_of_zero_keeps_greedy_answers(kind: Any) -> None:
    given = inputs_of("llava", two_prompts("llava"))
    own, _ = generated("llava", given)
    with qkedit.attach(model("llava"), kind(other, alpha=0)):
        assert torch.equal(generated("llava", given)[0], own)


def test_questions_without_images_are_not_contrasted() -> None:
    given = inputs_of("qwen2-vl", [*two_prompts("qwen2-vl")[:1], Prompt((6,), seed=9)])
    text = {"input_ids": torch.tensor([[1, 50, 51, 52]])}
    _, of_model = generated("qwen2-vl", given, max_new_tokens=2)
    plain, _ = generated("qwen2-vl", text)
    with qkedit.attach(model("qwen2-vl"), ImageSum(other)) as attached:
        _, logits = generated("qwen2-vl", given, max_new_tokens=2)
        assert torch.equal(generated("qwen2-vl", text)[0], plain)
    assert torch.equal(logits[0][1], of_model[0][1])
    assert not torch.equal(logits[0][0], of_model[0][0])
    assert [len(report.warnings) for report in attached.report()] == [0, 1]


def test_unusable_second_images_and_requests_are_refused() -> None:
    given: Mapping[str, Any] = request("llava", two_prompts("llava")).inputs
    with qkedit.attach(model("llava"), ImageContrast(other)), pytest.raises(UsageError, match="not the pictures"):
        generated("llava", given)
    with pytest.raises(UsageError, match="image-contrast second: there are no second images"):
        ImageContrast()
    number: Any = lambda first: 3  # noqa: E731
    with (
        qkedit.attach(model("llava"), ImageContrast(number)),
        pytest.raises(UsageError, match="the function returned int"),
    ):
        generated("llava", inputs_of("llava", two_prompts("llava")))


def test_the_processor_of_the_model_prepares_the_second_image() -> None:
    """Blacken a part of an image for the embedded model; a batch equals single questions."""
    loaded = load(SMALL_DEMO, device="cpu", dtype="float32")
    pictures = [Image.effect_noise(size, 80).convert("RGB") for size in ((96, 60), (50, 120))]

    def without_centre(first: Image.Image) -> Image.Image:
        masked = first.copy()
        masked.paste("black", (first.width // 4, first.height // 4, 3 * first.width // 4, 3 * first.height // 4))
        return masked

    questions = [Question(prompt_text(loaded, "describe", 1), (own,)) for own in pictures]
    plugin = ImageContrast(without_centre, alpha=1.0)
    together = respond_batch(loaded, questions, [plugin], max_new_tokens=6)
    alone = [respond(loaded, [own], "describe", [plugin], max_new_tokens=6) for own in pictures]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    first = batch_inputs(loaded, questions[:1])
    second = batch_inputs(loaded, [replace(questions[0], images=(without_centre(pictures[0]),))])
    answer, _ = contrasted(loaded.model, first, second, lambda step: 1.0, 0.1, len(alone[0].ids))
    assert list(alone[0].ids) == answer
