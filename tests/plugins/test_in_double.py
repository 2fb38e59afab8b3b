"""Test in float64 that results equal the formulas to ten digits, so that differences in float32 are rounding."""

from __future__ import annotations

import pytest
import torch

import qkedit
from qkedit import DSCR, SCR
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
from tests.plugins.in_double import doubled, in_double, model
from tests.plugins.scr import test_scr
from tests.plugins.tiny_requests import request, two_prompts

# The products of its experts exist only in single precision.
SINGLE_ONLY = ("qwen3-vl-moe",)
# Random images in float64 differ from those in float32, and two scores of these are too near to compare sources.
NEAR_SCORES = ("idefics3",)
PRECISE = {"rtol": 0, "atol": 1e-10}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SINGLE_ONLY])
def test_dscr_equals_the_formulas_in_float64(family: str) -> None:
    tiny, prompts = model(family), prompts_of(family)
    with in_double():
        given = doubled(request_of(family, prompts))
        maps = [depth.double() for depth in depth_maps(images_in(given))]
        with qkedit.attach(tiny, DSCR(depth=maps, processor=UNCROPPED)):
            actual = reference.plugged_answers(tiny, given)
        first = 0
        for row, prompt in enumerate(prompts):
            alone = doubled(request_of(family, [prompt]))
            grids = reference.grids_of(alone, maps[first : first + images_in(alone)], TILED)
            first += images_in(alone)
            expected = reference.answer(
                tiny, alone, grids, LAYERS.get(family, [1, 2, 3]), whole_prompt_first=family == "paligemma"
            )
            torch.testing.assert_close(actual[row], expected, **PRECISE)


@pytest.mark.parametrize("family", [family for family in test_scr.FAMILIES if family not in NEAR_SCORES])
def test_scr_in_a_padded_batch_equals_the_formulas_in_float64(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, prompts = model(family), two_prompts(family)
    monkeypatch.setattr(test_scr, "model", lambda family: tiny)
    monkeypatch.setattr(test_scr, "request", lambda *own: doubled(request(*own)))
    with in_double(), torch.no_grad():
        with qkedit.attach(tiny, SCR(**test_scr.SETTINGS)):
            result = tiny(**doubled(request(family, prompts)).inputs).logits
        for row, prompt in enumerate(prompts):
            alone, _, logits, _ = test_scr.expected(family, prompt)
            torch.testing.assert_close(result[row, -alone.ids.shape[1] :], logits, **PRECISE)
