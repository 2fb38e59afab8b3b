"""DSCR attached to tiny models of every family, against the formulas written out token by token."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qkedit.errors import UsageError
from qkedit.plugins.attach import attach
from qkedit.plugins.dscr import DSCR
from qkedit.plugins.refinement import CacheRefinement
from tests.plugins import dscr_reference as reference
from tests.plugins import tiny_requests
from tests.plugins.tiny_requests import ANY_RESOLUTION, TILES, Prompt, Request

FAMILIES = tuple(family for family in tiny_requests.ALL if family not in ("vipllava", "glm-ocr", "idefics3"))
TILED = (1, 2)  # what the larger of the tiled images is cut into
LAYERS = {"qwen3.5": [1, 3]}  # its other layers are linear attention
# What a processor says of itself that shows the model the whole image.
UNCROPPED = SimpleNamespace(do_center_crop=False)


def depth_maps(count: int) -> list[torch.Tensor]:
    """Maps whose sides every grid divides, so that the mean of a cell is the mean of whole pixels."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(120, 120, generator=generator).cumsum(number % 2) for number in range(count)]


def images_in(request: Request) -> int:
    return len({cell[0] for row in request.cells for cell in row.values()})


def prompts_of(family: str) -> list[Prompt]:
    """Two prompts of different length, the second with two images; LLaVA-NeXT's images fill their tiles."""
    prompts = tiny_requests.two_prompts(family)
    if family not in ANY_RESOLUTION:
        return prompts
    filling = {(40, 90): (48, 96), (80, 70): (96, 48)}
    return [
        replace(prompt, items=tuple(item if isinstance(item, int) else filling[item] for item in prompt.items))
        for prompt in prompts
    ]


def request_of(family: str, prompts: list[Prompt]) -> Request:
    """Return a request whose thumbnails show what their tiles show, as that tells how the tiles lie."""
    request = tiny_requests.request(family, prompts)
    if family not in TILES:
        return request
    pixels = request.inputs["pixel_values"]
    for row, prompt in enumerate(prompts):
        tiles = pixels if family == "internvl" else pixels[row]
        start = 0
        for other in prompts[: row + 1] if family == "internvl" else [prompt]:
            for shape in (item for item in other.items if not isinstance(item, int)):
                if shape == TILED:
                    picture = torch.cat([tiles[start], tiles[start + 1]], dim=-1)
                    tiles[start + 2] = torch.nn.functional.adaptive_avg_pool2d(picture, picture.shape[-2])
                start += 3 if shape == TILED else 1
    return request


def compare(family: str, prompts: list[Prompt], options: dict[str, Any], slow: dict[str, Any]) -> Any:
    """Answer with the plug-in and the slow way, and hold the logits of every row against each other."""
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
        torch.testing.assert_close(actual[row], expected, rtol=0, atol=3e-5)
        # The comparison would say nothing if the edit did nothing.
        assert (expected - plain).abs().max() > 1e-3
    (report,) = attached.report()
    return report.plugins["dscr"]


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_formulas(family: str) -> None:
    report = compare(family, prompts_of(family), {}, {})
    assert report["layers"] == LAYERS.get(family, [1, 2, 3])


@pytest.mark.parametrize(
    ("family", "options", "slow"),
    [
        ("qwen2-vl", {"refine": "values"}, {"refine_keys": False, "refine_values": True}),
        ("llava", {"refine": "both", "layers": "0,2"}, {"refine_values": True, "layers": [0, 2]}),
        ("internvl", {"blend": 0.3}, {"blend": 0.3}),
    ],
)
def test_options_equal_the_formulas(family: str, options: dict[str, Any], slow: dict[str, Any]) -> None:
    compare(family, prompts_of(family), options, slow)


@pytest.mark.parametrize("family", ["qwen3-vl", "llava-next", "mistral3"])
def test_the_question_can_be_read_over_the_refined_cache(family: str) -> None:
    """Each prompt is refined where its own last image ends, wherever that is in the batch."""
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
        torch.testing.assert_close(actual[row], expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("family", ["qwen2-vl", "glm4v", "qwen3.5", "chameleon", "llava"])
def test_keys_can_be_mixed_before_their_rotation(family: str) -> None:
    """Keys as the modules make them, mixed by the formulas; what is read back from the cache is turned back too."""
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
    # The last token alone reads the refined cache.
    torch.testing.assert_close(again[0], made[0][:, :, :-1], rtol=0, atol=2e-5)
    cells = grid.columns
    heads = range(plain.shape[1])
    for head in heads:
        mix = torch.tensor(reference.oracle.mix(grid.weights, made[0][0, head, cells].tolist()))
        turned = refined[0, head, cells]
        assert (turned - plain[0, head, cells]).abs().max() > 1e-2
        # Positions rotate, so each key keeps its length …
        torch.testing.assert_close(turned.norm(dim=-1), mix.norm(dim=-1), rtol=1e-4, atol=1e-4)
        for other in heads:
            # … and two heads at one position are turned alike, so their inner product stays.
            other_mix = torch.tensor(reference.oracle.mix(grid.weights, made[0][0, other, cells].tolist()))
            inner = (turned * refined[0, other, cells]).sum(-1)
            torch.testing.assert_close(inner, (mix * other_mix).sum(-1), rtol=1e-4, atol=1e-3)
            # Original keys of the same position are turned alike too, which leaves the mix no other place.
            inner = (turned * plain[0, other, cells]).sum(-1)
            torch.testing.assert_close(inner, (mix * made[0][0, other, cells]).sum(-1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("lost_cells", "changed"), [("mix", True), ("skip", False)])
def test_a_window_that_has_lost_a_part_of_the_image(lost_cells: str, changed: bool) -> None:
    """Gemma 3's sliding layers keep seven tokens here: of the image, what the question has left of them."""
    model = tiny_requests.model("gemma3")
    alone = tiny_requests.request("gemma3", [Prompt((2, (0, 0), 2), seed=1)])
    grids = reference.grids_of(alone, depth_maps(1), TILED)
    with attach(model, DSCR(depth=depth_maps(1), layers="0,2", lost_cells=lost_cells)) as attached:
        actual = reference.plugged_answers(model, alone)[0]
    plain = reference.plugged_answers(model, alone)[0]
    expected = reference.answer(model, alone, grids, [0, 2]) if changed else plain
    torch.testing.assert_close(actual, expected, rtol=0, atol=3e-5)
    assert bool((actual - plain).abs().max() > 1e-4) is changed
    (report,) = attached.report()
    lost = report.plugins["dscr"]["lost_cells_by_layer"]
    # Of 36 cells five are left: the window's seven columns end with the image's end and one token of the question.
    assert lost == dict.fromkeys((0, 2), 31 if changed else 36)


@pytest.mark.parametrize("space", ["cache", "pre-rotation"])
@pytest.mark.parametrize("family", ["qwen2-vl", "gemma3", "paligemma"])
def test_no_blend_leaves_the_cache_to_the_byte(family: str, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_two_parts_is_the_prompt(family: str) -> None:
    """Where nothing is changed, running the last token by itself answers as plain `generate` does."""
    model, request = tiny_requests.model(family), request_of(family, prompts_of(family))
    plain = reference.plugged_answers(model, request)
    with attach(model, DSCR(depth=depth_maps(images_in(request)), blend=0.0, processor=UNCROPPED)):
        actual = reference.plugged_answers(model, request)
    torch.testing.assert_close(actual, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}]
)
def test_however_the_answer_is_made(options: dict[str, Any]) -> None:
    """The first token's logits are those of greedy search with the default cache, in every beam and every answer."""
    model, request = tiny_requests.model("gemma3"), request_of("gemma3", prompts_of("gemma3"))
    plugin = DSCR(depth=depth_maps(images_in(request)))
    with attach(model, plugin):
        expected = reference.plugged_answers(model, request, 1)
        actual = reference.plugged_answers(model, request, 1, **options)
    repeats = actual.shape[0] // expected.shape[0]
    torch.testing.assert_close(actual, expected.repeat_interleave(repeats, 0), rtol=0, atol=3e-5)


def test_the_report_says_how_much_was_mixed() -> None:
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
    assert said["variance_kept_by_layer"][3] == pytest.approx(spread[0] / spread[1], rel=1e-4)
    assert said["effective_tokens"] == pytest.approx(reference.oracle.effective_tokens(grid.weights), rel=1e-4)
    assert said["share_mixed"] == pytest.approx(said["effective_tokens"] / 35, rel=1e-6)
    assert said["grids"] == 1
    assert said["warnings"] == []
    assert list(said["variance_kept_by_layer"]) == said["layers"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, []),
        ({"standardize": False}, ["nearly the image's average", "nearly all alike"]),
        ({"depth": torch.ones(8, 8)}, ["nearly the image's average", "nearly all alike"]),
        ({"standardize": False, "blend": 0.5}, ["nearly the image's average"]),
    ],
)
def test_a_mix_of_everything_is_warned_of(options: dict[str, Any], warned: list[str]) -> None:
    """The published kernel on depth in [0, 1], or on no depth at all, blurs the image away."""
    depth = torch.linspace(0, 1, 120)[:, None].repeat(1, 120)
    model, request = tiny_requests.model("qwen2-vl"), request_of("qwen2-vl", prompts_of("qwen2-vl")[:1])
    with torch.no_grad(), attach(model, DSCR(**{"depth": depth, **options})) as attached:
        model(**request.inputs)
    (report,) = attached.report()
    sentences = report.plugins["dscr"]["warnings"]
    assert len(sentences) == len(warned)
    assert all(words in sentence for words, sentence in zip(warned, sentences, strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"refine": "queries"}, "keys or values or both"),
        ({"blend": 1.5}, "0 to 1"),
        ({"depth_sigma": 0.0}, "positive"),
        ({"place_exponent": float("nan")}, "negative"),
        ({"layers": "3-1"}, "layers"),
        ({"depth": torch.zeros(3)}, "shape"),
        ({"depth": [torch.full((4, 4), float("nan"))]}, "finite"),
        ({"depth": "no/such/depth.npy"}, "no/such/depth.npy"),
        ({"layers": "0,2"}, "none of these layers has keys"),
        ({"layers": "3-4"}, "layers 0 to 3"),
    ],
)
def test_wrong_settings_are_refused_before_a_request_comes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        attach(tiny_requests.model("qwen3.5"), DSCR(**{"depth": torch.zeros(4, 4), **options}))


def test_as_many_maps_as_images() -> None:
    model, request = tiny_requests.model("qwen2-vl"), request_of("qwen2-vl", prompts_of("qwen2-vl"))
    with attach(model, DSCR(depth=torch.zeros(4, 4))), pytest.raises(UsageError, match=r"1 depth maps .* 3 images"):
        model(**request.inputs)


def test_without_a_cache_there_is_nothing_to_refine() -> None:
    model, request = tiny_requests.model("qwen2-vl"), request_of("qwen2-vl", prompts_of("qwen2-vl"))
    with attach(model, DSCR(depth=depth_maps(3))), pytest.raises(UsageError, match="no cache"):
        model(**request.inputs, use_cache=False)
