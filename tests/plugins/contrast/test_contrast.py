"""Test VCD, ICD, M3ID and PAI's contrast against their formulas: single prompts, batches, and other plug-ins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit import SCR
from qkedit.errors import UnsupportedForm, UsageError
from qkedit.plugins.contrast.noise import signal_shares, with_noise
from qkedit.plugins.contrast.settings import ICD, M3ID, VCD, PAIContrast
from qkedit.plugins.transformers import counts
from tests.plugins.closeness import assert_equals_formulas
from tests.plugins.contrast.contrast_oracle import contrasted
from tests.plugins.greedy import STEPS, generated, one_image_each
from tests.plugins.tiny_requests import IMAGE, model, request, two_prompts
from tests.plugins.whole_text import whole_text

FAMILIES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava", "llava-next", "internvl", "gemma3", "mistral3", "idefics3")
SENTENCE = (60, 61, 62)


class Words:
    """A tokenizer for one sentence."""

    def __call__(self, sentence: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert sentence == "be confused"
        assert not add_special_tokens
        return {"input_ids": list(SENTENCE)}


def text_of(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return one unpadded prompt without the tokens from the first to the last of each image."""
    ids = inputs["input_ids"][0].tolist()
    columns = [column for column, token in enumerate(ids) if token == IMAGE]
    inside = set(range(columns[0], columns[-1] + 1))
    return {"input_ids": torch.tensor([[token for column, token in enumerate(ids) if column not in inside]])}


def disturbed(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return one unpadded prompt with the sentence after the first token that follows its image."""
    place = max(column for column, token in enumerate(inputs["input_ids"][0].tolist()) if token == IMAGE) + 2
    changed = dict(inputs)
    for name in ("input_ids", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            new = torch.tensor([SENTENCE]) if name == "input_ids" else torch.zeros(1, len(SENTENCE))
            old = inputs[name]
            changed[name] = torch.cat([old[:, :place], new.to(old.dtype), old[:, place:]], dim=1)
    return changed


def noisy(family: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**inputs, "pixel_values": with_noise(inputs, model(family).config, 700, 3)}


METHODS: dict[str, tuple[Any, Any, Any, float]] = {
    "vcd": (VCD(alpha=1.0, beta=0.2, step=700, seed=3), noisy, lambda step: 1.0, 0.2),
    "icd": (
        ICD(alpha=0.5, sentence="be confused", tokenizer=Words()),
        lambda family, inputs: disturbed(inputs),
        lambda step: 0.5,
        0.1,
    ),
    "m3id": (
        M3ID(decay=0.3),
        lambda family, inputs: text_of(inputs),
        lambda step: (1 - math.exp(-0.3 * step)) / math.exp(-0.3 * step),
        0.1,
    ),
    "pai-contrast": (PAIContrast(gamma=1.5), lambda family, inputs: text_of(inputs), lambda step: 0.5, 0.1),
}


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_the_formulas(family: str, method: str) -> None:
    plugin, branch_of, weight, beta = METHODS[method]
    prompts = one_image_each(family)
    with qkedit.attach(model(family), plugin) as attached:
        given = request(family, prompts)
        answers, logits = generated(family, given.inputs)
    report = attached.report()
    assert len(report) == 1
    assert (report[0].prompts, report[0].images) == (len(prompts), len(prompts))
    assert report[0].image_tokens == int((given.ids == IMAGE).sum())
    assert report[0].plugins[method].steps == STEPS
    for row, prompt in enumerate(prompts):
        alone = request(family, [prompt]).inputs
        answer, expected = contrasted(model(family), alone, branch_of(family, alone), weight, beta, STEPS)
        for step in range(STEPS):
            finite = expected[step].isfinite()
            assert torch.equal(logits[step][row].isfinite(), finite)
            assert_equals_formulas(logits[step][row][finite], expected[step][finite])
        assert answers[row].tolist() == answer


def test_images_whose_cells_are_unknown_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: Any) -> Any:
        raise UnsupportedForm("no grid", where="config", remedy="none")

    monkeypatch.setattr(counts, "image_grids", unknown)
    with qkedit.attach(model("llava"), VCD(alpha=0)) as attached:
        generated("llava", request("llava", one_image_each("llava")).inputs, max_new_tokens=1)
        generated("llava", {"input_ids": torch.tensor([[1, 50]])}, max_new_tokens=1)
    assert [(one.prompts, one.images, one.cells) for one in attached.report()] == [(2, None, None), (1, 0, 0)]


@pytest.mark.parametrize("plugin", [VCD(alpha=0), PAIContrast(gamma=1), M3ID(decay=0)], ids=lambda plugin: plugin.name)
def test_a_weight_of_zero_keeps_greedy_answers(plugin: Any) -> None:
    given = request("llava", two_prompts("llava")).inputs
    own, _ = generated("llava", given)
    with qkedit.attach(model("llava"), plugin):
        answers, _ = generated("llava", given)
    assert torch.equal(answers, own)


def test_contrasts_do_not_change_the_random_numbers_of_sampling() -> None:
    """With a negligible weight and no effective cut, samples equal those of the model."""
    given = request("qwen2-vl", two_prompts("qwen2-vl")).inputs
    model("qwen2-vl")  # made before the seed, since building it draws numbers too
    torch.manual_seed(1)
    own, _ = generated("qwen2-vl", given, do_sample=True, top_k=0)
    after = torch.rand(1)
    torch.manual_seed(1)
    with qkedit.attach(model("qwen2-vl"), VCD(alpha=1e-12, beta=0)):
        answers, _ = generated("qwen2-vl", given, do_sample=True, top_k=0)
    assert torch.equal(answers, own)
    assert torch.equal(torch.rand(1), after)


def test_branches_and_text_requests_keep_the_positions_of_an_answer() -> None:
    """Qwen stores the position offset of an image on a module, and the branch without image overwrites it."""
    vlm = model("qwen2-vl")
    given = request("qwen2-vl", one_image_each("qwen2-vl")).inputs
    text = {"input_ids": torch.tensor([[1, 50, 51, 52]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    own, _ = generated("qwen2-vl", given)
    plain, _ = generated("qwen2-vl", text)
    with qkedit.attach(vlm, M3ID(decay=1e-9, beta=0)) as attached:
        assert torch.equal(generated("qwen2-vl", given)[0], own)
        assert torch.equal(generated("qwen2-vl", text)[0], plain)
        assert torch.equal(generated("qwen2-vl", given)[0], own)
    assert [len(report.warnings) for report in attached.report()] == [0, 1, 0]


def test_prefill_plugins_also_act_in_the_branch() -> None:
    given = request("llava", one_image_each("llava")[:1]).inputs
    scr = SCR(layers="0-2", diagnosis="1,3", sources=5, factor=1.3)
    with qkedit.attach(model("llava"), scr, VCD()) as attached:
        answers, _ = generated("llava", given)
    (report,) = attached.report()
    assert set(report.plugins) == {"scr", "vcd"}
    assert report.images == 1
    noised = noised_with_seed(given)
    with qkedit.attach(model("llava"), scr):
        answer: list[int] = []
        for _ in range(STEPS):
            so_far = torch.tensor([answer], dtype=torch.long)
            rows = []
            for inputs in (given, noised):
                forced = model("llava").generate(
                    **inputs,
                    max_new_tokens=len(answer) + 1,
                    do_sample=False,
                    eos_token_id=-1,
                    return_dict_in_generate=True,
                    output_logits=True,
                    logits_processor=[forcing(so_far, inputs["input_ids"].shape[1])],
                )
                rows.append(forced.logits[-1][0])
            own, other = rows
            edited = 2 * own - other
            edited[own < own.max() + math.log(0.1)] = -torch.inf
            answer.append(int(edited.argmax()))
    assert answers[0].tolist() == answer


def noised_with_seed(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**inputs, "pixel_values": with_noise(inputs, model("llava").config, 500, 0)}


def forcing(answer: Tensor, length: int) -> Any:
    """A logits processor that forces the beginning of an answer."""

    def force(input_ids: Tensor, scores: Tensor) -> Tensor:
        said = input_ids.shape[1] - length
        if said >= answer.shape[1]:
            return scores
        return torch.full_like(scores, -torch.inf).scatter_(1, answer[:, said : said + 1], 0.0)

    return force


def test_the_branch_ends_with_a_short_or_failing_answer() -> None:
    import threading

    given = request("llava", two_prompts("llava")[:1]).inputs

    def broken(input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] > given["input_ids"].shape[1] + 1:
            raise KeyError("broken")
        return scores

    with qkedit.attach(model("llava"), VCD()):
        generated("llava", given, max_new_tokens=1)
        with pytest.raises(KeyError, match="broken"):
            generated("llava", given, logits_processor=[broken])
    assert not [thread for thread in threading.enumerate() if thread.name == "qkedit branch"]
    assert "forward" not in vars(model("llava"))


def test_an_end_token_does_not_end_the_branch() -> None:
    """If a request continues after the model's end token, so does its branch, also in a single row of a batch."""
    given = request("llava", two_prompts("llava")).inputs
    end = model("llava").generation_config.eos_token_id

    def force_the_end(input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] != given["input_ids"].shape[1] + 1:
            return scores
        forced = scores.clone()
        forced[0] = -torch.inf
        forced[0, end] = 0.0
        return forced

    with qkedit.attach(model("llava"), VCD(alpha=1.0, beta=0, step=700, seed=3)):
        answers, logits = generated("llava", given, logits_processor=[force_the_end])
        row = request("llava", two_prompts("llava")[:1]).inputs
        _, alone = generated("llava", row, logits_processor=[forcing(answers[:1], row["input_ids"].shape[1])])
    assert answers[0, 1] == end
    other = whole_text(model("llava"), noisy("llava", row), answers[0, :-1].tolist()).logits[0, -1]
    own = whole_text(model("llava"), row, answers[0, :-1].tolist()).logits[0, -1]
    for found in (logits[-1][0], alone[-1][0]):
        torch.testing.assert_close(found, 2 * own - other, atol=1e-5, rtol=1e-5)


def test_an_error_of_the_branch_is_raised() -> None:
    given = dict(request("llava", two_prompts("llava")[:1]).inputs)
    with qkedit.attach(model("llava"), VCD()) as attached:
        attached._start_branch, start = lambda original, *rest: start(fail, *rest), attached._start_branch
        with pytest.raises(ZeroDivisionError):
            generated("llava", given)


def fail(**inputs: Any) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_beams", 2), ("use_cache", False), ("cache_implementation", "static"), ("prompt_lookup_num_tokens", 3)],
)
def test_unsupported_ways_to_generate_are_refused(setting: str, value: Any) -> None:
    given = request("llava", two_prompts("llava")[:1]).inputs
    with qkedit.attach(model("llava"), VCD()), pytest.raises(UsageError, match="vcd"):
        generated("llava", given, **{setting: value})


def test_the_noise_schedule_equals_the_published_one() -> None:
    """Check the factors of x and ε: about equal at step 500, and mostly noise at 999."""
    for step, signal, noise in ((500, 0.863, 0.505), (999, 0.285, 0.959)):
        share = signal_shares()[step]
        assert math.sqrt(share) == pytest.approx(signal, abs=2e-3)
        assert math.sqrt(1 - share) == pytest.approx(noise, abs=2e-3)


@pytest.mark.parametrize("family", ["qwen2-vl", "llava-next", "mistral3", "internvl", "idefics3"])
def test_noise_depends_on_the_image_only(family: str) -> None:
    config, prompts = model(family).config, one_image_each(family)
    together = request(family, prompts).inputs
    noised = with_noise(together, config, 500, 1)
    assert not torch.equal(noised, together["pixel_values"])
    first = request(family, prompts[:1]).inputs
    alone = with_noise(first, config, 500, 1)
    if family == "qwen2-vl":
        assert torch.equal(noised[: len(alone)], alone)
        noise = alone - signal_shares()[500] ** 0.5 * first["pixel_values"]
        frames = noise.view(len(alone), 3, 2, -1)
        torch.testing.assert_close(frames[:, :, 0], frames[:, :, 1], atol=1e-5, rtol=0)
        return
    pixels = together["pixel_values"]
    padding = (pixels == 0).all(dim=-3, keepdim=True).expand(pixels.shape)
    assert torch.equal(noised[padding], pixels[padding])
    places = tuple(slice(0, size) for size in alone.shape)
    assert torch.equal(noised[places], alone)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"alpha": -1.0}, "vcd alpha"),
        ({"beta": 1.5}, "vcd beta"),
        ({"beta": math.nan}, "vcd beta"),
        ({"step": 1000}, "vcd step"),
        ({"seed": -1}, "vcd seed"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        VCD(**settings)
