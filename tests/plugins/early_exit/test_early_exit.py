"""Test DoLa and DeCo against their formulas, from the hidden states that transformers returns."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit.errors import UnsupportedForm, UsageError
from qkedit.plugins.contrast.settings import M3ID, VCD
from qkedit.plugins.early_exit.deco import DeCo
from qkedit.plugins.early_exit.dola import DoLa
from qkedit.plugins.smoothed.plugin import KVSmooth
from tests.plugins.closeness import assert_equals_formulas
from tests.plugins.greedy import STEPS, generated, one_image_each
from tests.plugins.tiny_requests import distinct, model, request
from tests.plugins.whole_text import whole_text

FAMILIES = distinct("qwen2-vl", "qwen2.5-vl", "llava", "llava-next", "internvl", "gemma3")
Formula = Callable[[Tensor, list[Tensor]], Tensor]


def distributions(vlm: Any, output: Any, layers: list[int], normed: bool) -> list[Tensor]:
    """Return the logits of the language model head after each layer, `[vocabulary]` in float64."""
    decoder = vlm.get_decoder()
    logits = []
    for layer in layers:
        state = output.hidden_states[layer + 1][0, -1]
        with torch.no_grad():
            logits.append(vlm.get_output_embeddings()(decoder.norm(state) if normed else state).double())
    return logits


def dola(final: Tensor, early: list[Tensor], beta: float = 0.1) -> Tensor:
    p = final.double().softmax(dim=-1).tolist()
    best, chosen = -math.inf, early[0]
    for logits in early:
        q = logits.softmax(dim=-1).tolist()
        distance = 0.0
        for one, other in zip(p, q, strict=True):
            mean = (one + other) / 2
            distance += 0.5 * mean * (math.log(mean / one) + math.log(mean / other))
        if distance > best:
            best, chosen = distance, logits
    edited = final.double().log_softmax(dim=-1) - chosen.log_softmax(dim=-1)
    for token, probability in enumerate(p):
        if probability < beta * max(p):
            edited[token] = -math.inf
    return edited


def deco(final: Tensor, early: list[Tensor], alpha: float = 0.6, top_p: float = 0.9, top_k: int = 20) -> Tensor:
    p = final.double().softmax(dim=-1).tolist()
    plausible: list[int] = []
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        if len(plausible) == top_k or sum(p[kept] for kept in plausible) >= top_p:
            break
        plausible.append(token)
    surest, chosen = max(
        ((max(logits.softmax(dim=-1).tolist()[token] for token in plausible), logits) for logits in early),
        key=lambda pair: pair[0],
    )
    edited = torch.full_like(final.double(), -math.inf)
    for token in plausible:
        edited[token] = final.double()[token] + alpha * surest * chosen[token]
    return edited


METHODS: dict[str, tuple[Any, list[int], bool, Formula]] = {
    "dola, normed": (DoLa(layers="0-2"), [0, 1, 2], True, dola),
    "dola, published": (DoLa(layers="0,1", norm="published", beta=0.2), [0, 1], False, lambda p, q: dola(p, q, 0.2)),
    "deco": (DeCo(layers="1-2"), [1, 2], True, deco),
    "deco, few": (DeCo(layers="0-2", top_k=3, alpha=2.0), [0, 1, 2], True, lambda p, q: deco(p, q, 2.0, top_k=3)),
}


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_the_formulas(family: str, method: str) -> None:
    plugin, layers, normed, formula = METHODS[method]
    prompts, vlm = one_image_each(family), model(family)
    with qkedit.attach(vlm, plugin) as attached:
        answers, logits = generated(family, request(family, prompts).inputs)
    report = attached.report()[0].plugins[plugin.name]
    assert report.steps == STEPS
    assert sum(report.chosen.values()) == STEPS * len(prompts)
    assert set(report.chosen) <= set(layers)
    for row, prompt in enumerate(prompts):
        alone, answer = request(family, [prompt]).inputs, []
        for step in range(STEPS):
            output = whole_text(vlm, alone, answer, output_hidden_states=True)
            expected = formula(output.logits[0, -1], distributions(vlm, output, layers, normed))
            finite = expected.isfinite()
            assert torch.equal(logits[step][row].isfinite(), finite)
            assert_equals_formulas(logits[step][row][finite], expected[finite])
            answer.append(int(expected.argmax()))
        assert answers[row].tolist() == answer


def test_a_weight_of_zero_keeps_greedy_answers() -> None:
    given = request("llava", one_image_each("llava")).inputs
    own, _ = generated("llava", given)
    with qkedit.attach(model("llava"), DeCo(alpha=0)) as attached:
        assert torch.equal(generated("llava", given)[0], own)
    assert attached.report()[0].plugins["deco"].likeliest_changed == 0


def test_default_layers_follow_the_depth() -> None:
    """Of four layers, 0.625 to 0.9 is only layer 2; the first half ends with the state after layer 1."""
    from qkedit.plugins.transformers.modules import vlm_modules

    modules = vlm_modules(model("llava"))
    assert DeCo().bind(modules).layers == (2,)
    assert DoLa().bind(modules).layers == (1,)
    assert DoLa(layers="high").bind(modules).layers == (1,)


def test_models_that_scale_logits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale the logits like Cohere's models."""
    vlm = model("llava")
    given = request("llava", one_image_each("llava")).inputs
    forward = vlm.forward

    @functools.wraps(forward)
    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    monkeypatch.setattr(vlm, "forward", scaled)
    with qkedit.attach(vlm, DeCo()), pytest.raises(UnsupportedForm, match="caps or scales"):
        generated("llava", given)


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        ((VCD(), DeCo()), "deco: it needs the model's own logits, and vcd edits them before; name deco before vcd"),
        ((M3ID(beta=0), DoLa()), "dola: .*m3id edits them before; name dola before m3id"),
        ((DoLa(), DeCo()), "deco: .*dola edits them before; leave dola out"),
        ((DeCo(), KVSmooth(), DoLa()), "dola: .*deco edits them before; leave deco out"),
    ],
    ids=lambda value: "+".join(plugin.name for plugin in value) if isinstance(value, tuple) else "",
)
def test_logits_that_are_edited_already_are_refused(plugins: tuple[Any, ...], said: str) -> None:
    """Cut logits are infinitely far from the head's, and m3id changes none of the first token."""
    given = request("llava", one_image_each("llava")).inputs
    with qkedit.attach(model("llava"), *plugins), pytest.raises(UsageError, match=said):
        generated("llava", given)


@pytest.mark.parametrize(
    "method", [DoLa(beta=0), DeCo(alpha=0, top_p=1, top_k=10_000)], ids=lambda plugin: plugin.name
)
def test_a_contrast_continues_with_the_logits_of_an_earlier_layer(method: Any) -> None:
    given = request("llava", one_image_each("llava")).inputs
    with qkedit.attach(model("llava"), method):
        answers, logits = generated("llava", given)
    with qkedit.attach(model("llava"), method, VCD(alpha=0)):
        cut_answers, cut = generated("llava", given)
    assert torch.equal(cut_answers, answers)
    for own, after in zip(logits, cut, strict=True):
        plausible = own >= own.max(dim=-1, keepdim=True).values + math.log(0.1)
        assert torch.equal(after, own.masked_fill(~plausible, -math.inf))


def test_beams_of_dola_equal_an_edited_model_and_deco_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeCo's logits of different beams would not have a common scale."""
    vlm = model("llava")
    given = request("llava", one_image_each("llava")).inputs
    with qkedit.attach(vlm, DeCo()), pytest.raises(UsageError, match="beams"):
        generated("llava", given, num_beams=2)
    with qkedit.attach(vlm, DoLa(layers="1")):
        answers, _ = generated("llava", given, num_beams=3)
    forward = vlm.forward

    @functools.wraps(forward)
    def edited(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **{**kwargs, "output_hidden_states": True})
        early = vlm.get_output_embeddings()(vlm.get_decoder().norm(output.hidden_states[2][:, -1])).double()
        rows = [dola(logits, [own]) for logits, own in zip(output.logits[:, -1], early, strict=True)]
        output.logits = torch.stack(rows)[:, None].float()
        return output

    monkeypatch.setattr(vlm, "forward", edited)
    assert torch.equal(answers, generated("llava", given, num_beams=3)[0])


@pytest.mark.parametrize("plugin", [DoLa(), DeCo()], ids=lambda plugin: plugin.name)
def test_compiled_generation_is_refused(plugin: Any) -> None:
    given = request("llava", one_image_each("llava")).inputs
    with qkedit.attach(model("llava"), plugin), pytest.raises(UsageError, match="compiled"):
        generated("llava", given, cache_implementation="static")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DoLa(layers="lower"), "dola layers"),
        (lambda: DoLa(beta=2), "dola beta"),
        (lambda: DeCo(alpha=-1), "deco alpha"),
        (lambda: DeCo(top_p=0), "deco top_p"),
        (lambda: DeCo(top_k=0), "deco top_k"),
    ],
)
def test_invalid_settings_are_refused(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make()
