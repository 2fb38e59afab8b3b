"""Test that a prefill that is split to edit the cache equals one that is not split."""

import pytest
import torch

import qkedit
from qkedit.errors import QkeditError
from tests.plugins.probes import Probe
from tests.plugins.tiny_requests import ALL, Prompt, model, request, two_prompts

GREEDY = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
# Prompts with bidirectional attention cannot be split after the image.
CAUSAL = tuple(family for family in ALL if family != "paligemma")


def generated(family, inputs, *plugins, **settings):
    """Return logits of greedy steps, `[steps, batch, vocabulary]`, with or without plug-ins."""
    tiny = model(family)
    if not plugins:
        return torch.stack(tiny.generate(**inputs, **{**GREEDY, **settings}).logits)
    with qkedit.attach(tiny, *plugins):
        return torch.stack(tiny.generate(**inputs, **{**GREEDY, **settings}).logits)


def assert_same(found, expected):
    """Check equality within the rounding of float32, relative to the size of the logits."""
    scale = max(1.0, float(expected[expected > torch.finfo(expected.dtype).min].abs().max()))
    torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_running_the_last_token_separately_has_no_effect(family):
    given = request(family, two_prompts(family))
    probe = Probe(refine="end")
    found = generated(family, given.inputs, probe)
    assert_same(found, generated(family, given.inputs))
    length = given.ids.shape[1]
    cached = length if family == "paligemma" else length - 1
    assert probe.calls == [("cache", (0, 1), cached, cached), ("finish", length, length)]


@pytest.mark.parametrize("family", CAUSAL)
def test_running_the_question_separately_has_no_effect(family):
    """Each prompt is split after its own last image, at any position in the batch."""
    prompts = two_prompts(family)
    # Images of Gemma 3 have bidirectional attention, so the split after another prompt's image must not cut them.
    given = request(family, prompts[:1] if family == "gemma3" else prompts)
    probe = Probe(refine="image")
    found = generated(family, given.inputs, probe)
    assert_same(found, generated(family, given.inputs))
    cuts = {call[1]: call[2] for call in probe.calls if call[0] == "cache"}
    ends = {extent.row: extent.last + 1 for extent in probe.prefills[0].grids.extents}
    if len(set(ends.values())) == 1:
        assert cuts == {tuple(ends): ends[0]}
    else:
        assert cuts == {(row,): end for row, end in ends.items()}


@pytest.mark.parametrize("refine", ["end", "image"])
@pytest.mark.parametrize("family", ["qwen3-vl", "gemma3", "llava"])
def test_static_caches_are_supported(family, refine):
    given = request(family, two_prompts(family)[:1])
    plain = generated(family, given.inputs)
    assert_same(generated(family, given.inputs, cache_implementation="static"), plain)
    assert_same(generated(family, given.inputs, Probe(refine=refine), cache_implementation="static"), plain)


def test_a_sliding_window_may_be_smaller_than_the_image():
    """Gemma 3's sliding layers have 8 of about a hundred columns."""
    family = "gemma3"
    given = request(family, [Prompt((2, (0, 0), 12), seed=seed) for seed in (1, 2)])
    for refine in ("end", "image"):
        assert_same(generated(family, given.inputs, Probe(refine=refine)), generated(family, given.inputs))


@pytest.mark.parametrize(("family", "refine"), [("llava", "end"), ("llava", "image"), ("paligemma", "end")])
def test_tokens_after_the_split_read_the_edited_cache(family, refine):
    """Zeroed values of the image change the logits after the split and none before it."""
    given = request(family, two_prompts(family))
    probe = Probe(refine=refine)

    def zero_image_values(cache, rows, length):
        for row in rows:
            columns = probe.prefills[-1].grids.placeholders[row].nonzero().flatten()
            for layer in cache.layers:
                layer.values[row, :, columns] = 0

    probe.edit = zero_image_values
    tiny = model(family)
    with torch.no_grad():
        plain = tiny(**given.inputs).logits
        with qkedit.attach(tiny, probe):
            edited = tiny(**given.inputs).logits
    ends = {extent.row: extent.last + 1 for extent in probe.prefills[0].grids.extents}
    for row in (0, 1):
        changed = (plain[row] - edited[row]).abs().amax(dim=-1) > 1e-3
        first = given.ids.shape[1] - 1 if refine == "end" else ends[row]
        assert changed[first:].all()
        assert not changed[:first].any()


def test_stages_are_called_in_order():
    given = request("qwen2-vl", two_prompts("qwen2-vl")[:1])
    length = given.ids.shape[1]
    probe = Probe(refine="end", layers=(0, 2), preview=1)
    generated("qwen2-vl", given.inputs, probe)
    shape = torch.Size([1, length, 64])
    whole, last = (0, length - 1), (length - 1, length)
    assert probe.calls == [
        ("preview", 0, shape),
        ("preview", 1, shape),
        *[call for layer in (0, 2) for call in (("enter", layer, whole, True), ("layer", layer, whole))],
        ("cache", (0,), length - 1, length - 1),
        *[call for layer in (0, 2) for call in (("enter", layer, last, True), ("layer", layer, last))],
        ("finish", length, length),
    ]


def test_edits_of_states_and_of_the_cache_work_in_one_prefill():
    """Halving a layer's state in both parts of a split prefill equals halving it without a split."""
    given = request("internvl", two_prompts("internvl"))
    halve = {"layers": (1,), "change": lambda hidden: hidden / 2}
    whole = generated("internvl", given.inputs, Probe(**halve))
    assert_same(generated("internvl", given.inputs, Probe(**halve), Probe(refine="end", name="cut")), whole)
    assert (whole - generated("internvl", given.inputs)).abs().max() > 1e-2


def test_splitting_an_image_with_an_edit_of_states_is_refused():
    given = request("llava", [Prompt((2, (0, 0), 2)), Prompt((2, (0, 0), 30))])
    with pytest.raises(QkeditError, match="image would be cut"):
        generated("llava", given.inputs, Probe(refine="image", layers=(0,)))
    generated("llava", given.inputs, Probe(refine="image"))
    given = request("gemma3", [Prompt((2, (0, 0), 2)), Prompt((2, (0, 0), 30))])
    with pytest.raises(QkeditError, match="image would be cut"):
        generated("gemma3", given.inputs, Probe(refine="image"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"use_cache": False}, "no cache to edit"),
        ({"output_hidden_states": True}, "output_hidden_states is not available"),
        ({"padding": "right"}, "padded on the right"),
    ],
)
def test_prefills_that_cannot_be_split_are_refused(inputs, message):
    given = request("llava", two_prompts("llava"), padding=inputs.pop("padding", "left"))
    with qkedit.attach(model("llava"), Probe(refine="end")), pytest.raises(QkeditError, match=message):
        model("llava")(**given.inputs, **inputs)


def test_bidirectional_prompts_are_not_split_after_the_image():
    given = request("paligemma", two_prompts("paligemma"))
    with pytest.raises(QkeditError, match="bidirectional attention"):
        generated("paligemma", given.inputs, Probe(refine="image"))


def test_a_prompt_that_ends_with_its_image_is_refused():
    given = request("llava-next", [Prompt((2, (40, 90)))])
    with pytest.raises(QkeditError, match="nothing reads the edited cache"):
        generated("llava-next", given.inputs, Probe(refine="image"))
