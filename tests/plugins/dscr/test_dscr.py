"""Test DSCR on tiny models of every family against the formulas, token by token."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from qkedit.plugins.dscr.plugin import DSCR
from qkedit.plugins.dscr.refinement import CacheRefinement
from qkedit.plugins.scr.plugin import SCR
from qkedit.plugins.transformers.attach import attach
from tests.plugins import tiny_requests
from tests.plugins.dscr import dscr_reference as reference
from tests.plugins.dscr.dscr_requests import (
    FAMILIES,
    LAYERS,
    TILED,
    UNCROPPED,
    depth_maps,
    images_in,
    prompts_of,
    request_of,
)
from tests.plugins.tiny_requests import Prompt

# For logits of up to 7. In float32, a padded batch and a single prompt differ by 1e-6 to 8e-6; `test_in_double` makes
# the same comparison with a tolerance of 1e-10.
TOLERANCE = 1e-5


def compare(family: str, prompts: list[Prompt], options: dict[str, Any], slow: dict[str, Any]) -> Any:
    """Answer with the plug-in and with the slow reference, and compare the logits of every row."""
    model, request = tiny_requests.model(family), request_of(family, prompts)
    maps = depth_maps(images_in(request))
    with attach(model, DSCR(depth=maps, processor=UNCROPPED, **options)) as attached:
        actual = reference.plugged_answers(model, request)
    layers = slow.pop("layers", LAYERS.get(family, [1, 2, 3]))
    first = 0
    for row, prompt in enumerate(prompts):
        alone = request_of(family, [prompt])
        grids = reference.grids_of(alone, maps[first : first + images_in(alone)], TILED)
        first += images_in(alone)
        expected = reference.answer(model, alone, grids, layers, whole_prompt_first=family == "paligemma", **slow)
        plain = reference.plugged_answers(model, alone)[0]
        torch.testing.assert_close(actual[row], expected, rtol=0, atol=TOLERANCE)
        # The comparison is meaningful only if the edit has an effect.
        assert (expected - plain).abs().max() > 1e-3
    (report,) = attached.report()
    return report.plugins["dscr"]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_the_formulas(family: str) -> None:
    report = compare(family, prompts_of(family), {}, {})
    assert report.layers == tuple(LAYERS.get(family, [1, 2, 3]))


@pytest.mark.parametrize(
    ("family", "options", "slow"),
    [
        ("qwen2-vl", {"refine": "values"}, {"refine_keys": False, "refine_values": True}),
        ("llava", {"refine": "both", "layers": "0,2"}, {"refine_values": True, "layers": [0, 2]}),
        ("internvl", {"blend": 0.3}, {"blend": 0.3}),
    ],
)
def test_answers_with_options_equal_the_formulas(family: str, options: dict[str, Any], slow: dict[str, Any]) -> None:
    compare(family, prompts_of(family), options, slow)


@pytest.mark.parametrize("family", ["qwen3-vl", "llava-next", "mistral3"])
def test_the_question_can_read_the_refined_cache(family: str) -> None:
    """Each prompt is refined after its own last image, at any position in the batch."""
    model, prompts = tiny_requests.model(family), prompts_of(family)
    ends = []
    for prompt in prompts:
        (placeholders,) = tiny_requests.request(family, [prompt]).ids == tiny_requests.IMAGE
        ends.append(int(placeholders.nonzero()[-1]) + 1)
    request = request_of(family, prompts)
    maps = depth_maps(images_in(request))
    with attach(model, DSCR(depth=maps, when="image")):
        actual = reference.plugged_answers(model, request)
    first = 0
    for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        alone = request_of(family, [prompt])
        grids = reference.grids_of(alone, maps[first : first + images_in(alone)], TILED)
        first += images_in(alone)
        expected = reference.answer(model, alone, grids, [1, 2, 3], after=end)
        torch.testing.assert_close(actual[row], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["qwen2-vl", "glm4v", "qwen3.5", "chameleon", "llava"])
def test_keys_can_be_mixed_before_their_rotation(family: str) -> None:
    """Mix the modules' keys by the formulas; the plug-in rotates keys from the cache back."""
    model = tiny_requests.model(family)
    prompt = prompts_of(family)[0]
    alone = request_of(family, [prompt])
    (grid,) = reference.grids_of(alone, depth_maps(1), TILED)
    layer = 3
    with torch.no_grad(), reference.keys_before_rotation(model, layer) as made:
        plain = model(**alone.inputs, use_cache=True).past_key_values.layers[layer].keys
    options = DSCR(depth=depth_maps(1), space="pre-rotation", processor=UNCROPPED)
    with torch.no_grad(), attach(model, options), reference.keys_before_rotation(model, layer) as again:
        refined = model(**alone.inputs, use_cache=True).past_key_values.layers[layer].keys
    # Only the last token reads the refined cache.
    torch.testing.assert_close(again[0], made[0][:, :, :-1], rtol=0, atol=2e-5)
    cells = grid.columns
    heads = range(plain.shape[1])
    for head in heads:
        mix = torch.tensor(reference.oracle.mix(grid.weights, made[0][0, head, cells].tolist()))
        turned = refined[0, head, cells]
        assert (turned - plain[0, head, cells]).abs().max() > 1e-2
        # Positions are rotations, so each key keeps its length …
        torch.testing.assert_close(turned.norm(dim=-1), mix.norm(dim=-1), rtol=1e-4, atol=1e-4)
        for other in heads:
            # … and two heads at one position have the same rotation, so their inner product is unchanged.
            other_mix = torch.tensor(reference.oracle.mix(grid.weights, made[0][0, other, cells].tolist()))
            inner = (turned * refined[0, other, cells]).sum(-1)
            torch.testing.assert_close(inner, (mix * other_mix).sum(-1), rtol=1e-4, atol=1e-3)
            # Inner products with original keys of the same position are unchanged too: the rotation is right.
            inner = (turned * plain[0, other, cells]).sum(-1)
            torch.testing.assert_close(inner, (mix * made[0][0, other, cells]).sum(-1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", ["qwen2-vl", "glm4v", "llava-next", "paligemma"])
def test_each_row_of_a_batch_is_rotated_by_its_own_positions(family: str) -> None:
    """A padded batch answers like its single prompts, which are compared with the formulas above."""
    model, prompts = tiny_requests.model(family), prompts_of(family)
    request = request_of(family, prompts)
    maps, first = depth_maps(images_in(request)), 0
    with attach(model, DSCR(depth=maps, space="pre-rotation", processor=UNCROPPED)):
        actual = reference.plugged_answers(model, request)
    for row, prompt in enumerate(prompts):
        alone = request_of(family, [prompt])
        own = maps[first : first + images_in(alone)]
        first += images_in(alone)
        with attach(model, DSCR(depth=own, space="pre-rotation", processor=UNCROPPED)):
            expected = reference.plugged_answers(model, alone)[0]
        torch.testing.assert_close(actual[row], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("lost_cells", "changed"), [("mix", True), ("skip", False)])
def test_a_sliding_window_may_have_lost_a_part_of_the_image(lost_cells: str, changed: bool) -> None:
    """Gemma 3's sliding layers have seven tokens here, only a part of the image."""
    model = tiny_requests.model("gemma3")
    alone = tiny_requests.request("gemma3", [Prompt((2, (0, 0), 2), seed=1)])
    grids = reference.grids_of(alone, depth_maps(1), TILED)
    with attach(model, DSCR(depth=depth_maps(1), layers="0,2", lost_cells=lost_cells)) as attached:
        actual = reference.plugged_answers(model, alone)[0]
    plain = reference.plugged_answers(model, alone)[0]
    expected = reference.answer(model, alone, grids, [0, 2]) if changed else plain
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)
    assert bool((actual - plain).abs().max() > 1e-4) is changed
    (report,) = attached.report()
    lost = report.plugins["dscr"].lost_cells_by_layer
    # Of 36 cells five remain: the last two of the window's seven columns are the end of the image and a word.
    assert lost == dict.fromkeys((0, 2), 31 if changed else 36)


@pytest.mark.parametrize("family", FAMILIES)
def test_running_the_last_token_separately_has_no_effect(family: str) -> None:
    """Without changes to the cache, the answer equals that of plain `generate`."""
    model, request = tiny_requests.model(family), request_of(family, prompts_of(family))
    plain = reference.plugged_answers(model, request)
    with attach(model, DSCR(depth=depth_maps(images_in(request)), blend=0.0, processor=UNCROPPED)):
        actual = reference.plugged_answers(model, request)
    torch.testing.assert_close(actual, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}]
)
def test_the_first_logits_are_equal_for_every_way_to_generate(options: dict[str, Any]) -> None:
    """Compare with greedy search and the default cache, for every beam and answer."""
    model, request = tiny_requests.model("gemma3"), request_of("gemma3", prompts_of("gemma3"))
    plugin = DSCR(depth=depth_maps(images_in(request)))
    with attach(model, plugin):
        expected = reference.plugged_answers(model, request, 1)
        actual = reference.plugged_answers(model, request, 1, **options)
    repeats = actual.shape[0] // expected.shape[0]
    torch.testing.assert_close(actual, expected.repeat_interleave(repeats, 0), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["qwen2-vl", "llava"])
def test_dscr_refines_keys_of_states_edited_by_scr(family: str) -> None:
    """Use random sources, which do not depend on a token that the reference runs later."""
    model, prompts = tiny_requests.model(family), prompts_of(family)[:1]
    request, scr = request_of(family, prompts), SCR(selection="uniform", sources=3)
    grids = reference.grids_of(request, depth_maps(1), TILED)
    with attach(model, scr, DSCR(depth=depth_maps(1), processor=UNCROPPED)):
        actual = reference.plugged_answers(model, request)[0]
    with attach(model, scr):
        expected = reference.answer(model, request, grids, [1, 2, 3])
    without = reference.answer(model, request, grids, [1, 2, 3])
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)
    assert (expected - without).abs().max() > 1e-3


def test_keys_in_bfloat16_are_mixed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deepcopy(tiny_requests.model("qwen2-vl")).to(torch.bfloat16)
    request = request_of("qwen2-vl", prompts_of("qwen2-vl")[:1])
    (grid,) = reference.grids_of(request, depth_maps(1), TILED)
    edit, seen = CacheRefinement.edit_cache, []

    def watched(self: CacheRefinement, cache: Any, rows: tuple[int, ...], length: int) -> None:
        before = cache.layers[2].keys.clone()
        edit(self, cache, rows, length)
        seen.append((before, cache.layers[2].keys))

    monkeypatch.setattr(CacheRefinement, "edit_cache", watched)
    with torch.no_grad(), attach(model, DSCR(depth=depth_maps(1))):
        model(**{**request.inputs, "pixel_values": request.inputs["pixel_values"].to(torch.bfloat16)})
    ((before, after),) = seen
    expected = before.float()
    reference.refine(expected, [grid])
    assert after.dtype == torch.bfloat16
    # Half a unit in the last place of bfloat16's eight bits.
    torch.testing.assert_close(after.float(), expected, rtol=2**-8, atol=1e-6)
