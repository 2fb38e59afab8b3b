"""Test that a control changes as much as its method, at random positions, and restarts with each attachment."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

import qkedit
from qkedit.errors import UsageError
from qkedit.plugins.amplified.plugin import MiddleLayer, PAIAttention
from qkedit.plugins.contrast.crops import CRoPS
from qkedit.plugins.contrast.settings import ICD, M3ID, VCD, PAIContrast
from qkedit.plugins.core.random_controls import permuted_changes, random_signs
from qkedit.plugins.early_exit.damo import DAMO, Momentum
from qkedit.plugins.early_exit.deco import DeCo
from qkedit.plugins.early_exit.dola import DoLa
from qkedit.plugins.smoothed.plugin import KVSmooth
from qkedit.plugins.transformers.modules import vlm_modules
from qkedit.plugins.vaf.plugin import VAF
from tests.plugins.greedy import generated, one_image_each
from tests.plugins.tiny_requests import model, request
from tests.plugins.written_out_attention import changed_scores

OF_LOGITS: dict[str, Any] = {
    "vcd": lambda **control: VCD(**control),
    "m3id": lambda **control: M3ID(decay=0.5, **control),
    "pai-contrast": lambda **control: PAIContrast(gamma=2, **control),
    "crops": lambda **control: CRoPS(limit=1, keep=5, keep_text=3, **control),
    "dola": lambda **control: DoLa(layers="0-2", **control),
    "deco": lambda **control: DeCo(layers="0-2", **control),
}
OF_ATTENTION: dict[str, Any] = {
    "pai-attention": lambda **control: PAIAttention(alpha=0.7, layers="1-3", **control),
    "middle-layer": lambda **control: MiddleLayer(alpha=0.9, layers="1-3", **control),
    "vaf": lambda **control: VAF(layers="1-2", image=1.4, before=0.7, **control),
}
OF_STATES: dict[str, Any] = {
    "damo": lambda **control: DAMO(tau=1, beta2=0.5, **control),
    "kvsmooth": lambda **control: KVSmooth(strength=0.5, spread=0, layers="1-3", **control),
}


def test_changes_are_permuted_among_the_plausible_tokens_of_a_row() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    edited = logits + torch.arange(40) + 1
    edited[:, 1::2] = -torch.inf
    found = permuted_changes(edited, logits, torch.Generator().manual_seed(0))
    kept = edited.isfinite()
    assert torch.equal(found.isfinite(), kept)
    changes = (found - logits)[kept].reshape(3, 20)
    assert torch.equal(changes.round().sort().values, torch.arange(1.0, 41, 2, dtype=torch.float64).expand(3, 20))
    assert not torch.equal(changes[0].round(), changes[1].round())
    assert permuted_changes(edited, logits, None) is edited


def test_half_of_the_signs_are_negative() -> None:
    signs = random_signs((4000,), torch.Generator().manual_seed(0))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.06
    assert random_signs((3,), None).tolist() == [1, 1, 1]


@pytest.mark.parametrize("method", {**OF_LOGITS, **OF_ATTENTION, **OF_STATES})
def test_a_control_is_reproducible_and_differs_by_seed_and_from_its_method(method: str) -> None:
    make = {**OF_LOGITS, **OF_ATTENTION, **OF_STATES}[method]
    given = request("llava", one_image_each("llava")).inputs

    def logits(**control: int) -> torch.Tensor:
        with qkedit.attach(model("llava"), make(**control)):
            steps = generated("llava", given, max_new_tokens=3)[1]
        # Later steps, since M3ID does not change the first token; excluded tokens get an arbitrary finite number.
        return torch.cat(steps[1:]).nan_to_num(neginf=-1.0)

    own, once, again, other = logits(), logits(control=3), logits(control=3), logits(control=4)
    assert torch.equal(once, again)
    assert not torch.equal(once, own)
    assert not torch.equal(once, other)


@pytest.mark.parametrize("method", OF_LOGITS)
def test_a_control_permutes_the_changes_of_its_method(method: str) -> None:
    """Compare the second step of a forced answer, which both compute from the same state."""
    given = request("llava", one_image_each("llava")[:1]).inputs
    forced: Any = {"prefix_allowed_tokens_fn": lambda row, tokens: [7], "max_new_tokens": 2}
    plain = generated("llava", given, **forced)[1][1][0]

    def changes(**control: int) -> torch.Tensor:
        with qkedit.attach(model("llava"), OF_LOGITS[method](**control)):
            edited = generated("llava", given, **forced)[1][1][0]
        before = plain.log_softmax(dim=-1) if method in ("crops", "dola") else plain
        return (edited - before)[edited.isfinite()]

    own, control = changes(), changes(control=1)
    assert len(own) > 2
    assert not torch.allclose(own, control, atol=1e-4)
    torch.testing.assert_close(control.sort().values, own.sort().values, atol=1e-5, rtol=1e-5)


def test_a_control_of_attention_changes_each_score_by_the_same_amount() -> None:
    """Compare a control with known signs to attention with scores raised or lowered by α of their size."""
    given = request("llava", one_image_each("llava")[:1]).inputs
    ids = given["input_ids"]
    signs = random_signs(tuple(ids.shape), torch.Generator().manual_seed(2))[0]
    image = ids[0] == model("llava").config.image_token_id

    def move(layer: int, scores: torch.Tensor) -> None:
        if layer in (1, 2, 3):
            last = scores[..., ids.shape[1] - 1 :, : ids.shape[1]]
            last += 0.7 * last.abs() * (image * signs)

    with changed_scores("llava", move):
        expected = model("llava")(**given).logits[0, -1]
    with qkedit.attach(model("llava"), PAIAttention(alpha=0.7, layers="1-3", control=2)):
        _, logits = generated("llava", given, max_new_tokens=1)
    torch.testing.assert_close(logits[0][0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "kind", [VCD, ICD, M3ID, PAIContrast, PAIAttention, MiddleLayer, VAF, DoLa, DeCo, DAMO, CRoPS, KVSmooth]
)
def test_a_seed_must_be_a_non_negative_integer(kind: Any) -> None:
    with pytest.raises(UsageError, match=f"{kind.name} control: -1 is not a seed"):
        kind(control=-1)


def test_a_control_of_states_changes_each_number_by_the_same_amount() -> None:
    """Compare after the first edited layer, where method and control have the same input states."""
    settings = DAMO(tau=1, beta1=0.3, beta2=0.5)
    states = [torch.randn(2, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    modules = vlm_modules(model("llava"))

    def changes(plugin: DAMO) -> torch.Tensor:
        edit = Momentum(plugin.bind(modules))
        after = [edit.edit_state(layer, state) for layer, state in enumerate(states)]
        assert torch.equal(after[0], states[0])
        assert torch.equal(after[1], states[1])
        return after[2] - states[2]

    own, control = changes(settings), changes(replace(settings, control=5))
    torch.testing.assert_close(control.abs(), own.abs(), atol=1e-6, rtol=1e-5)
    assert 0 < (control * own < 0).float().mean() < 1


def test_a_control_of_the_cache_changes_each_number_by_the_same_amount() -> None:
    """Compare after the second token: both compute its keys and values from the same states."""
    given = request("llava", one_image_each("llava")).inputs
    vlm = model("llava")

    def cached(*plugins: KVSmooth) -> list[torch.Tensor]:
        """Return the last column of keys and values of layer 1, the first smoothed layer, after one token."""
        with qkedit.attach(vlm, *plugins) if plugins else nullcontext():
            done = vlm.generate(
                **given,
                max_new_tokens=2,
                min_new_tokens=2,
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
            )
        layer = done.past_key_values.layers[1]
        return [layer.keys[:, :, -1], layer.values[:, :, -1]]

    smoothing = KVSmooth(strength=0.5, spread=0, layers="1")
    for plain, own, control in zip(cached(), cached(smoothing), cached(replace(smoothing, control=5)), strict=True):
        assert (own - plain).abs().max() > 1e-3
        torch.testing.assert_close((control - plain).abs(), (own - plain).abs(), atol=1e-6, rtol=1e-4)
        assert 0.3 < ((control - plain) * (own - plain) < 0).float().mean() < 0.7
