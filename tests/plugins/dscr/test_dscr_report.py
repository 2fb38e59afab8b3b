"""Test DSCR's report and refusals, and that a blend of zero has no effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qkedit.errors import UsageError
from qkedit.plugins.dscr.plugin import DSCR
from qkedit.plugins.dscr.refinement import CacheRefinement
from qkedit.plugins.transformers.attach import attach
from tests.plugins import tiny_requests
from tests.plugins.dscr import dscr_reference as reference
from tests.plugins.dscr.dscr_requests import (
    TILED,
    UNCROPPED,
    depth_maps,
    images_in,
    prompts_of,
    request_of,
)


@pytest.mark.parametrize("space", ["cache", "pre-rotation"])
@pytest.mark.parametrize("family", ["qwen2-vl", "gemma3", "paligemma"])
def test_a_blend_of_zero_keeps_every_byte_of_the_cache(
    family: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, request = tiny_requests.model(family), request_of(family, prompts_of(family))
    edit, edited = CacheRefinement.edit_cache, []

    def compared(self: CacheRefinement, cache: Any, rows: tuple[int, ...], length: int) -> None:
        before = [tensor.clone() for layer in cache.layers for tensor in (layer.keys, layer.values)]
        edit(self, cache, rows, length)
        after = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        edited.append(all(map(torch.equal, before, after)))

    monkeypatch.setattr(CacheRefinement, "edit_cache", compared)
    with torch.no_grad():
        plain = model(**request.inputs)
        with attach(model, DSCR(depth=depth_maps(images_in(request)), blend=0.0, refine="both", space=space)):
            output = model(**request.inputs)
    assert edited == [True]
    torch.testing.assert_close(output.logits[:, -1], plain.logits[:, -1], rtol=0, atol=1e-5)


def test_the_report_has_effective_tokens_and_kept_variance() -> None:
    model, prompts = tiny_requests.model("llava"), prompts_of("llava")
    request = request_of("llava", prompts[:1])
    (grid,) = reference.grids_of(request, depth_maps(1), TILED)
    with torch.no_grad():
        before = model(**request.inputs, use_cache=True).past_key_values.layers[3].keys[0, :, grid.columns]
        with attach(model, DSCR(depth=depth_maps(1), processor=UNCROPPED)) as attached:
            after = model(**request.inputs, use_cache=True).past_key_values.layers[3].keys[0, :, grid.columns]
    (report,) = attached.report()
    said = report.plugins["dscr"]
    spread = [sum(float((head - head.mean(0)).square().sum()) for head in keys) for keys in (after, before)]
    assert said.variance_kept_by_layer[3] == pytest.approx(spread[0] / spread[1], rel=1e-4)
    assert said.effective_tokens == pytest.approx(reference.oracle.effective_tokens(grid.weights), rel=1e-4)
    assert said.share_mixed == pytest.approx(said.effective_tokens / 35, rel=1e-6)
    assert said.grids == 1
    assert said.warnings == ()
    assert tuple(said.variance_kept_by_layer) == said.layers == (1, 2, 3)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, []),
        ({"standardize": False}, ["nearly the image's average", "nearly all equal"]),
        ({"depth": torch.ones(8, 8)}, ["nearly the image's average", "nearly all equal"]),
        ({"standardize": False, "blend": 0.5}, ["nearly the image's average"]),
    ],
)
def test_a_mix_that_averages_the_image_causes_a_warning(options: dict[str, Any], warned: list[str]) -> None:
    """The published kernel averages the image for depth in [0, 1] and without depth."""
    depth = torch.linspace(0, 1, 120)[:, None].repeat(1, 120)
    model, request = tiny_requests.model("qwen2-vl"), request_of("qwen2-vl", prompts_of("qwen2-vl")[:1])
    with torch.no_grad(), attach(model, DSCR(**{"depth": depth, **options})) as attached:
        model(**request.inputs)
    (report,) = attached.report()
    sentences = report.plugins["dscr"].warnings
    assert len(sentences) == len(warned)
    assert all(words in sentence for words, sentence in zip(warned, sentences, strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"refine": "queries"}, "keys or values or both"),
        ({"blend": 1.5}, "0 to 1"),
        ({"depth_sigma": 0.0}, "positive"),
        ({"depth_exponent": float("inf")}, "inf is negative or not finite"),
        ({"place_exponent": float("nan")}, "negative"),
        ({"layers": "3-1"}, "layers"),
        ({"depth": torch.zeros(3)}, "shape"),
        ({"depth": [torch.full((4, 4), float("nan"))]}, "finite"),
        ({"depth": "no/such/depth.npy"}, "no/such/depth.npy"),
        ({"layers": "0,2"}, "no layer with a query-key product"),
        ({"layers": "3-4"}, "layers 0 to 3"),
    ],
)
def test_invalid_settings_are_refused_before_a_request(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        attach(tiny_requests.model("qwen3.5"), DSCR(**{"depth": torch.zeros(4, 4), **options}))


def test_a_wrong_number_of_depth_maps_is_refused() -> None:
    model, request = tiny_requests.model("qwen2-vl"), request_of("qwen2-vl", prompts_of("qwen2-vl"))
    with attach(model, DSCR(depth=torch.zeros(4, 4))), pytest.raises(UsageError, match=r"1 depth maps .* 3 images"):
        model(**request.inputs)


def test_a_request_without_a_cache_is_refused() -> None:
    model, request = tiny_requests.model("qwen2-vl"), request_of("qwen2-vl", prompts_of("qwen2-vl"))
    with attach(model, DSCR(depth=depth_maps(3))), pytest.raises(UsageError, match="no cache"):
        model(**request.inputs, use_cache=False)
