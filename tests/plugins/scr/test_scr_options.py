"""Test SCR's options and their refusals."""

import dataclasses
import math
from collections import Counter

import pytest
import torch

import qkedit
from qkedit import SCR
from qkedit.errors import UsageError
from qkedit.plugins.core.norm_entropy import norm_entropy
from qkedit.plugins.core.prefill import Span
from qkedit.plugins.scr import plugin as scr
from qkedit.plugins.scr.diagnosis import image_keys, query_columns
from qkedit.plugins.transformers.modules import vlm_modules
from qkedit.selection import describe
from tests.plugins.probes import Probe
from tests.plugins.tiny_requests import IMAGE, Prompt, model, request, two_prompts
from tests.plugins.transformers.test_prefill import assert_same, generated

LAYERS = {"layers": "0-2", "diagnosis": "1,3", "sources": 5, "factor": 1.3}


def run(family, prompts, settings, attached=None):
    """Return logits of the prompts' last tokens, and SCR's report."""
    given = request(family, prompts)
    if attached is not None:
        with torch.no_grad():
            logits = model(family)(**given.inputs).logits[:, -1]
        return logits, attached.report()[-1].plugins["scr"]
    with qkedit.attach(model(family), settings) as own:
        return run(family, prompts, settings, own)


@pytest.mark.parametrize(
    ("count", "edited", "scored"),
    [
        (32, "0-15", "8-16"),
        (28, "0-13", "7-14"),
        (33, "0-16", "8-17"),
        (4, "0-1", "1-2"),
        (2, "0", "1"),
        (1, "0", "0"),
    ],
)
def test_default_layers_are_the_first_half_with_sources_from_the_second_quarter(count, edited, scored):
    parts = dataclasses.replace(
        vlm_modules(model("llava")),
        layers=torch.nn.ModuleList(torch.nn.Identity() for _ in range(count)),
        attention_layers=tuple(range(count)),
    )
    bound = SCR().bind(parts)
    assert (describe(bound.edited), describe(bound.scored)) == (edited, scored)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "3-1"}, "runs backwards; write 1-3"),
        ({"diagnosis": "first"}, "cannot be read"),
        ({"sources": 0}, "0 is not a positive number"),
        ({"seed": 2**64}, "18446744073709551616 exceeds 64 bits"),
        ({"seed": -(2**63) - 1}, "exceeds 64 bits"),
        ({"factor": 0.9}, "0.9 is not a factor"),
        ({"factor": math.nan}, "not a factor"),
        ({"selection": "random"}, "attention or uniform"),
        ({"queries": "all"}, "text-after or last-token"),
        ({"claim": "first"}, "greedy or fixed"),
        ({"alone": "skip"}, "divide or keep"),
        ({"per": "tile"}, "grid or image"),
    ],
)
def test_invalid_settings_are_refused_without_a_model(settings, message):
    with pytest.raises(UsageError, match=message):
        SCR(**settings)


def test_layers_without_attention_are_left_out_or_refused():
    parts = vlm_modules(model("qwen3.5"))  # every second layer has attention
    assert SCR(diagnosis="0-3").bind(parts).scored == (1, 3)
    with pytest.raises(UsageError, match=r"no layer with a query-key product; choose among 1, 3"):
        SCR(diagnosis="2").bind(parts)


def test_layers_may_be_fractions_or_mid():
    """Fractions and "mid" depend on the number of layers."""
    parts = vlm_modules(model("llava"))
    bound = SCR(layers="mid", diagnosis="0.5-1").bind(parts)
    assert (bound.edited, bound.scored) == ((1, 2, 3), (2, 3))


def test_text_after_an_image_excludes_other_images():
    family = "pixtral"  # rows of a later image end with tokens that are not placeholders
    probe = Probe()
    generated(family, request(family, [Prompt((2, (3, 3), 4, (3, 4), 3)), Prompt((2, (3, 3), 30))]).inputs, probe)
    prefill = probe.prefills[0]
    first, second = (extent for extent in prefill.grids.extents if extent.row == 0)
    between = list(range(first.last + 1, second.first))
    behind = list(range(second.last + 1, prefill.length))
    assert query_columns(prefill, first, "text-after").tolist() == between + behind
    assert query_columns(prefill, second, "text-after").tolist() == behind
    assert query_columns(prefill, first, "last-token").tolist() == [prefill.length - 1]
    assert len(between) == 1 + 4  # the image's end token and the text
    right = request(family, [Prompt((2, (3, 3), 4)), Prompt((2, (3, 3), 9))], padding="right")
    with torch.no_grad(), qkedit.attach(model(family), probe):
        model(family)(**right.inputs)
    prefill = probe.prefills[-1]
    extent = prefill.grids.extents[0]
    assert query_columns(prefill, extent, "last-token").tolist() == [extent.last + 5]
    assert query_columns(prefill, extent, "text-after").tolist() == list(range(extent.last + 1, extent.last + 6))


@pytest.mark.parametrize("option", [{"queries": "last-token"}, {"claim": "fixed"}, {"sources": 9}, {"factor": 1.1}])
def test_every_option_changes_the_logits(option):
    prompts = two_prompts("llava")
    plain, _ = run("llava", prompts, SCR(**LAYERS))
    other, _ = run("llava", prompts, SCR(**{**LAYERS, **option}))
    assert (plain - other).abs().max() > 1e-4


def test_sources_are_counted_per_grid_or_per_image():
    prompts = two_prompts("internvl")  # grids: 2 tiles and a thumbnail; the same and a single one
    _, by_grid = run("internvl", prompts, SCR(layers="0", sources=1, claim="fixed"))
    _, by_image = run("internvl", prompts, SCR(layers="0", sources=1, claim="fixed", per="image"))
    assert (by_grid.sources, by_grid.grids) == (7, 7)
    assert (by_image.sources, by_image.grids, by_image.grids_without_sources) == (3, 7, 4)


def test_a_source_without_neighbours_is_divided_or_kept():
    """In a 5 × 5 grid whose nine inner cells are all sources, the middle one has no neighbours."""
    prompts = [Prompt((2, (5, 5), 4), seed=1)]
    settings = {"layers": "0", "diagnosis": "1", "factor": 2.0, "sources": 9, "claim": "fixed"}
    divided, _ = run("pixtral", prompts, SCR(**settings, alone="divide"))
    kept, report = run("pixtral", prompts, SCR(**settings, alone="keep"))
    assert (report.sources, report.neighbours) == (9, 16)
    assert (divided - kept).abs().max() > 1e-4


def test_uniform_sources_depend_on_the_seed_and_need_no_preview():
    prompts = two_prompts("qwen2-vl")
    first, report = run("qwen2-vl", prompts, SCR(**LAYERS, selection="uniform", seed=1))
    again, _ = run("qwen2-vl", prompts, SCR(**LAYERS, selection="uniform", seed=1))
    other, _ = run("qwen2-vl", prompts, SCR(**LAYERS, selection="uniform", seed=2))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-4
    assert (report.norm_ratio, report.diagnosis, report.entropy_unedited) == ({}, None, None)
    with qkedit.attach(model("qwen2-vl"), SCR(**LAYERS, selection="uniform")) as attached:
        drawn = [run("qwen2-vl", prompts, None, attached)[0] for _ in range(2)]
    assert (drawn[0] - drawn[1]).abs().max() > 1e-4  # each request is a new draw


def test_uniform_sources_are_uniform():
    """Over many requests, inner cells are drawn about equally often, and border cells never."""
    counts = torch.zeros(6, 6)
    settings = SCR(layers="0", diagnosis="1", selection="uniform", sources=1)
    given = request("llava", [Prompt((2, (0, 0), 3))])
    probe = Probe()
    generated("llava", given.inputs, probe)
    bound = settings.bind(vlm_modules(model("llava")))
    for _ in range(1600):
        (choice,) = bound.start(probe.prefills[0])._diagnosis.choices[0]
        counts.view(-1)[choice.sources[0]] += 1
    assert counts[1:-1, 1:-1].sum() == 1600
    # 100 each; a deviation of 5 standard deviations (9.7 each) has a probability below 1e-5 over all cells.
    assert (counts[1:-1, 1:-1] - 100).abs().max() < 49


def test_cached_sources_skip_the_preview_and_depend_only_on_the_image():
    family = "qwen2-vl"
    question, other = Prompt((2, (5, 6), 4), seed=1), Prompt((2, (5, 6), 4), seed=2)
    with qkedit.attach(model(family), SCR(**LAYERS, remember=True)) as attached:
        first, report = run(family, [question], None, attached)
        assert (report.images_remembered, sorted(report.norm_ratio)) == (0, [0, 1, 2])
        again, report = run(family, [question], None, attached)
        assert torch.equal(first, again)
        assert (report.images_remembered, report.norm_ratio) == (1, {})
        _, report = run(family, [other], None, attached)
        assert report.images_remembered == 0
        both, report = run(family, [question, other], None, attached)
        assert report.images_remembered == 2
        # The same image with another question has the first question's sources.
        given = request(family, [question])
        ids = given.ids.clone()
        ids[0, -3:] = torch.tensor([41, 42, 43])
        with torch.no_grad():
            model(family)(**{**given.inputs, "input_ids": ids})
        assert attached.report()[-1].plugins["scr"].images_remembered == 1
    fresh, _ = run(family, [question, other], SCR(**LAYERS))
    assert_same(both, fresh)


def test_the_latest_images_are_cached(monkeypatch):
    monkeypatch.setattr(scr, "REMEMBERED", 2)
    first, second, third = (Prompt((2, (0, 0), 4), seed=seed) for seed in (1, 2, 3))
    known = []
    with qkedit.attach(model("llava"), SCR(remember=True)) as attached:
        for prompt in (first, second, first, third, first, second):
            known.append(run("llava", [prompt], None, attached)[1].images_remembered)
    assert known == [0, 0, 1, 0, 1, 0]


def test_images_of_equal_content_and_different_shapes_differ():
    prompts = [[Prompt((2, shape, 4), seed=1)] for shape in ((4, 6), (6, 4))]
    probe = Probe()
    for prompt in prompts:
        generated("qwen2-vl", request("qwen2-vl", prompt).inputs, probe)
    wide, high = (
        dataclasses.replace(prefill, arguments={"inputs_embeds": torch.ones(1, prefill.length, 64)})
        for prefill in probe.prefills
    )
    assert image_keys(wide) == image_keys(wide)
    assert image_keys(wide) != image_keys(high)


@pytest.mark.parametrize("family", ["qwen2-vl", "chameleon"])
def test_the_preview_stops_early_and_encodes_the_image_once(family):
    tiny = model(family)
    ran = Counter()
    vision = tiny.model.vqmodel.encoder if family == "chameleon" else tiny.model.visual
    parts = {"image": vision, **dict(enumerate(tiny.get_decoder().layers))}
    hooks = [
        part.register_forward_hook(lambda module, args, output, name=name: ran.update([name]))
        for name, part in parts.items()
    ]
    try:
        run(family, two_prompts(family)[:1], SCR(layers="0", diagnosis="1"))
    finally:
        for hook in hooks:
            hook.remove()
    # The preview stops in the attention of layer 1.
    assert ran == {"image": 1, 0: 2, 1: 1, 2: 1, 3: 1}


def test_measuring_reaches_every_edited_layer():
    prompts = two_prompts("llava")
    _, short = run("llava", prompts, SCR(layers="0-3", diagnosis="1"))
    _, whole = run("llava", prompts, SCR(layers="0-3", diagnosis="1", measure=True))
    assert sorted(short.norm_ratio) == [0]
    assert sorted(whole.norm_ratio) == [0, 1, 2, 3]
    assert short.entropy_unedited is None
    assert whole.entropy != whole.entropy_unedited
    _, still = run("llava", prompts, SCR(layers="0-3", factor=1.0, measure=True))
    assert still.norm_ratio == dict.fromkeys(range(4), 1.0)
    assert still.entropy == still.entropy_unedited


def test_the_entropy_of_equal_norms_is_the_logarithm_of_their_number():
    assert norm_entropy(torch.full((576,), 3.0)) == pytest.approx(math.log(576))
    assert norm_entropy(torch.tensor([1.0, 0.0, 0.0])) == 0.0
    assert norm_entropy(torch.tensor([1.0, 3.0])) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


def test_equal_states_are_scaled_by_the_formula():
    """With one source and equal states, its eight neighbours are multiplied by λ and the source is divided by λ."""
    tiny = model("llava")
    given = request("llava", [Prompt((2, (0, 0), 3))])
    probe = Probe()
    generated("llava", given.inputs, probe)
    edit = SCR(layers="0", diagnosis="1", sources=1, factor=1.5).bind(vlm_modules(tiny)).start(probe.prefills[0])
    length = given.ids.shape[1]
    edited = edit.edit_layer(0, torch.ones(1, length, 64), Span(0, length))
    values = edited[0, given.ids[0] == IMAGE, 0]
    assert sorted(values.tolist()) == pytest.approx([1 / 1.5] + [1.0] * 27 + [1.5] * 8)
    assert torch.equal(edited[0, given.ids[0] != IMAGE], torch.ones(length - 36, 64))


def test_thin_grids_are_reported():
    prompts = [Prompt((2, (2, 8), 4))]
    plain = generated("qwen2-vl", request("qwen2-vl", prompts).inputs)[0]
    logits, report = run("qwen2-vl", prompts, SCR(**LAYERS))
    assert (report.sources, report.grids_without_sources) == (0, 1)
    assert_same(logits, plain)
