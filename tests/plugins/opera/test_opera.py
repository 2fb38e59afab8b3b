"""Test that OPERA equals its formulas, and without its penalty the beam search of transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit import SCR
from qkedit.errors import UsageError
from qkedit.plugins.contrast.settings import VCD
from qkedit.plugins.core.beams import BeamRules, Beams
from qkedit.plugins.opera.plugin import OPERA
from qkedit.plugins.smoothed.plugin import KVSmooth
from tests.plugins.closeness import assert_equals_formulas
from tests.plugins.greedy import one_image_each
from tests.plugins.opera.opera_reference import SUPPRESSED, searched
from tests.plugins.tiny_requests import Prompt, distinct, model, request, two_prompts

FAMILIES = distinct("qwen2-vl", "qwen2.5-vl", "llava", "llava-next", "internvl", "gemma3")
TEXT = {"input_ids": torch.tensor([[1, 50, 51, 52]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
# A token outside every vocabulary, so that no answer ends.
ENDLESS = 10_000


@pytest.fixture
def chances(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return the log probabilities of every choice of a search, `[beams, vocabulary]`."""
    seen: list[Tensor] = []
    advanced = Beams.advanced

    def recorded(self: Beams, log_probs: Tensor, rules: BeamRules) -> Any:
        seen.append(log_probs.double())
        return advanced(self, log_probs, rules)

    monkeypatch.setattr(Beams, "advanced", recorded)
    return seen


def answered(family: str, inputs: Any, *plugins: Any, **settings: Any) -> tuple[list[list[int]], Any]:
    """Return the answers and the last report."""
    usual = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": ENDLESS, "pad_token_id": 0}
    vlm, length = model(family), inputs["input_ids"].shape[1]
    if not plugins:
        return vlm.generate(**inputs, **{**usual, **settings})[:, length:].tolist(), None
    with qkedit.attach(vlm, *plugins) as attached:
        output = vlm.generate(**inputs, **{**usual, **settings})
    return output[:, length:].tolist(), attached.report()[-1].plugins["opera"]


def assert_is_reference(
    family: str, prompts: list[Prompt], settings: OPERA, chances: list[Tensor], longest: int = 5, **ends: Any
) -> list[int]:
    """Compare answers and log probabilities of a padded batch with the reference, and return the list of returns."""
    given = request(family, prompts).inputs
    answers, report = answered(
        family,
        given,
        settings,
        max_new_tokens=longest,
        suppress_tokens=SUPPRESSED,
        **{"eos_token_id": ENDLESS, **ends},
    )
    found = [
        searched(family, request(family, [prompt]).inputs, settings, longest, list(ends.values()))
        for prompt in prompts
    ]
    width = max(len(one.answer) for one in found)
    assert answers == [[*one.answer, *[0] * (width - len(one.answer))] for one in found]
    expected = [scores for one in found for scores in one.scores]
    assert (report.steps, report.rollbacks) == (len(expected), sum(len(one.returns) for one in found))
    for own, reference in zip(chances, expected, strict=True):
        assert_equals_formulas(own, reference)
    return [column for one in found for column in one.returns]


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_the_formulas(family: str, chances: list[Tensor]) -> None:
    """The first column has the attention to the image, the others the products of columns."""
    prompts = one_image_each(family)
    assert_is_reference(family, prompts, OPERA(beams=2, candidates=3, scale=500, threshold=2, early=1), chances, 4)


@pytest.mark.parametrize(("family", "place", "scale", "longest"), [("llava", 1, 200, 7), ("qwen2-vl", 0, 500, 6)])
def test_returns_equal_those_of_the_formulas(
    family: str, place: int, scale: float, longest: int, chances: list[Tensor]
) -> None:
    settings = OPERA(beams=2, candidates=3, scale=scale, threshold=2, early=0)
    assert assert_is_reference(family, two_prompts(family)[place : place + 1], settings, chances, longest)


def test_ending_answers_equal_the_formulas(chances: list[Tensor]) -> None:
    """An end token among the candidates removes a beam from the search."""
    settings, prompts = OPERA(beams=2, candidates=4, scale=500, threshold=None, early=1), two_prompts("llava")[:1]
    plain, _ = answered("llava", request("llava", prompts).inputs, settings)
    chances.clear()
    assert_is_reference("llava", prompts, settings, chances, eos_token_id=plain[0][2])


def assert_same_up_to(ends: list[int], found: list[list[int]], expected: list[list[int]]) -> None:
    """Compare answers without the padding after their ends."""

    def cut(answer: list[int]) -> list[int]:
        return next((answer[: place + 1] for place, token in enumerate(answer) if token in ends), answer)

    assert [cut(answer) for answer in found] == [cut(answer) for answer in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_penalty_answers_equal_beam_search(family: str) -> None:
    """Use the whole vocabulary as candidates."""
    given = request(family, two_prompts(family)).inputs
    own, _ = answered(family, given, num_beams=3)
    found, report = answered(family, given, OPERA(beams=3, candidates=128, alpha=0, threshold=None))
    assert found == own
    assert report.rollbacks == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"length_penalty": 0.0, "early_stopping": "never"},
        {"length_penalty": 3.0, "early_stopping": "never"},
        {"early_stopping": True},
    ],
    ids=["canonical", "long", "early"],
)
def test_fewer_candidates_equal_beam_search_with_top_k(settings: dict[str, Any]) -> None:
    """Cover two end tokens and all rules for the end of a search."""
    from transformers import LogitNormalization, LogitsProcessorList, TopKLogitsWarper

    given = request("llava", two_prompts("llava")).inputs
    cut = LogitsProcessorList([TopKLogitsWarper(4), LogitNormalization()])
    plain, _ = answered("llava", given, num_beams=3)
    same = {"max_new_tokens": 6, "eos_token_id": [plain[0][1], plain[1][3]], **settings}
    few, _ = answered("llava", given, OPERA(beams=3, candidates=4, alpha=0, threshold=None), **same)
    assert_same_up_to(
        same["eos_token_id"], few, answered("llava", given, num_beams=3, logits_processor=cut, **same)[0]
    )


def test_a_negligible_weight_keeps_the_answers() -> None:
    """The search continues rows of the cache that it has tried."""
    given = request("qwen2-vl", two_prompts("qwen2-vl")).inputs
    own, _ = answered("qwen2-vl", given, num_beams=3)
    assert answered("qwen2-vl", given, OPERA(beams=3, candidates=128, alpha=1e-12, threshold=None))[0] == own


def test_opera_works_without_images_and_streams_at_the_end() -> None:
    """Qwen stores the position offset of an image on a module; a streamed token cannot be taken back."""
    given = request("qwen2-vl", two_prompts("qwen2-vl")[1:]).inputs
    plugin, streamed = OPERA(beams=2, candidates=3, scale=200, threshold=2, early=0), []

    class Streamer:
        def put(self, value: Tensor) -> None:
            streamed.append(value.flatten().tolist())

        def end(self) -> None:
            streamed.append([])

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, report = answered("qwen2-vl", given, plugin)
    assert torch.equal(torch.rand(2), expected)
    assert (report.layer, report.image_tokens) == (3, int((given["input_ids"] == 5).sum()))
    text, of_text = answered("qwen2-vl", TEXT, plugin)
    again, _ = answered("qwen2-vl", given, plugin, streamer=Streamer())
    assert again == first
    assert streamed == [given["input_ids"][0].tolist(), *[[token] for token in first[0]], []]
    assert of_text.warnings == ("there is no image, so the first tokens are chosen by probability alone",)
    assert (
        answered("qwen2-vl", TEXT, OPERA(beams=2, candidates=128, alpha=0, threshold=None))[0]
        == (answered("qwen2-vl", TEXT, num_beams=2)[0])
    )
    assert len(text[0]) == 5


def test_opera_works_with_edits_of_the_prefill() -> None:
    """Without its penalty it equals beam search with SCR."""
    given = request("llava", one_image_each("llava")).inputs
    plugin, scr = OPERA(beams=2, candidates=128, alpha=0, threshold=None), SCR()
    vlm, length = model("llava"), given["input_ids"].shape[1]
    with qkedit.attach(vlm, scr):
        beams = vlm.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=ENDLESS, num_beams=2)
    with qkedit.attach(vlm, scr, plugin) as attached:
        found = vlm.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=ENDLESS)
    assert torch.equal(found[:, length:], beams[:, length:])
    assert attached.report()[-1].plugins.keys() == {"scr", "opera"}


def test_the_random_control_is_as_strong_and_depends_on_its_seed() -> None:
    given = request("llava", two_prompts("llava")[:1]).inputs
    settings = {"beams": 2, "candidates": 3, "scale": 1000.0, "threshold": 2, "early": 0}
    own, report = answered("llava", given, OPERA(**settings))
    found = [answered("llava", given, OPERA(**settings, control=seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0][0] != own or found[2][0] != own
    assert report.rollbacks
    assert found[0][1].rollbacks


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_beams": 2}, "num_beams: opera cannot act: beam search reorders"),
        ({"num_return_sequences": 2, "num_beams": 2}, "opera cannot act"),
        ({"do_sample": True}, "do_sample: opera cannot act: its search does not sample; ask for temperature 0"),
        ({"cache_implementation": "static"}, "cache_implementation: opera cannot act"),
        ({"use_cache": False}, "use_cache: opera cannot act: it needs a cache"),
        ({"prefill_chunk_size": 4}, "prefill_chunk_size: opera cannot act"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate: opera cannot act"),
        ({"custom_generate": lambda *_, **__: None}, "custom_generate: opera cannot act"),
    ],
)
def test_unsupported_ways_to_generate_are_refused(settings: dict[str, Any], said: str) -> None:
    given = request("llava", one_image_each("llava")[:1]).inputs
    with pytest.raises(UsageError, match=said):
        answered("llava", given, OPERA(), **settings)


@pytest.mark.parametrize("other", [VCD(), KVSmooth()])
def test_other_plugins_on_decoding_are_refused(other: Any) -> None:
    given = request("llava", one_image_each("llava")[:1]).inputs
    said = f"^opera: {other.name} cannot follow its search, which exchanges and takes back tokens; attach it without"
    for plugins in ((OPERA(), other), (other, OPERA())):
        with pytest.raises(UsageError, match=said):
            answered("llava", given, *plugins)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"beams": 0}, "opera beams: 0 is too small; give 1 or more"),
        ({"candidates": 1}, "opera candidates"),
        ({"threshold": 1}, "opera threshold"),
        ({"early": -1}, "opera early"),
        ({"alpha": math.nan}, "opera alpha"),
        ({"scale": -1.0}, "opera scale"),
        ({"beams": 10**12}, "opera beams"),
        ({"beams": 10**6}, "opera: 1000000 beams with 5 tokens to try are 5000000 texts at once; give fewer"),
        (
            {"beams": 10_001, "alpha": 0.0, "threshold": None},
            "opera: 10001 beams with 1 tokens to try are 10001 texts",
        ),
        ({"control": -1}, "opera control"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        OPERA(**settings)


def test_more_candidates_than_tokens_are_refused() -> None:
    given = request("llava", one_image_each("llava")[:1]).inputs
    with pytest.raises(UsageError, match="the model has only 128 tokens"):
        answered("llava", given, OPERA(candidates=129))
