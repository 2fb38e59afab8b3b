"""Test DAMO against its formulas in float64, column by column over the whole text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qkedit
from qkedit.errors import UsageError
from qkedit.plugins.early_exit.damo import DAMO
from qkedit.plugins.scr.plugin import SCR
from qkedit.plugins.vaf.plugin import VAF
from tests.plugins.closeness import assert_equals_formulas
from tests.plugins.greedy import STEPS, generated, one_image_each
from tests.plugins.tiny_requests import distinct, model, request
from tests.plugins.whole_text import whole_text

FAMILIES = distinct("qwen2-vl", "qwen2.5-vl", "llava", "llava-next", "internvl", "gemma3")
# With these values states are replaced in some steps of these models and not in others.
SETTINGS = {"tau": 0.0, "beta1": 0.3, "beta2": 0.6, "alpha": 0.4}


class Column:
    """The state of the method for one token."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []
        self.turn = self.momentum = torch.zeros(1, dtype=torch.float64)
        self.is_on = False

    def after(self, state: Tensor, predict: Callable[[Tensor], Tensor], *, decides: bool) -> Tensor:
        if decides:
            p1, p2, p3 = (predict(one) for one in (*self.states[-2:], state))
            self.turn = SETTINGS["alpha"] * self.turn + (1 - SETTINGS["alpha"]) * (p2 - p1)
            cosine = (p3 - p2) @ self.turn / ((p3 - p2).norm() * self.turn.norm())
            beta = SETTINGS["beta1"]
            if cosine < SETTINGS["tau"]:
                self.is_on, beta = True, SETTINGS["beta2"]
            self.momentum = beta * self.momentum + (1 - beta) * (state - self.states[-1])
            if self.is_on:
                state = self.states[-1] + self.momentum
        self.states.append(state)
        return state


@contextmanager
def replaced(vlm: Any, prompt: int) -> Iterator[dict[tuple[int, int], Column]]:
    """Replace the states of the prompt's last token and of every later one, in layers 2 and 3 of 4.

    Yields:
        The state of the method for each row and column of the last forward pass.
    """
    head = vlm.get_output_embeddings()
    known: dict[tuple[int, int], Column] = {}

    def predict(state: Tensor) -> Tensor:
        return (head.weight.double() @ state).softmax(dim=-1)

    def hook(index: int) -> Callable[..., Any]:
        def after(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output if isinstance(output, Tensor) else output[0]
            edited = hidden.clone()
            for place in product(range(hidden.shape[0]), range(prompt - 1, hidden.shape[1])):
                if index == 0:
                    known[place] = Column()
                edited[place] = known[place].after(hidden[place].double(), predict, decides=index >= 2)
            return edited if isinstance(output, Tensor) else (edited, *output[1:])

        return after

    with ExitStack() as hooks, torch.no_grad():
        for index, layer in enumerate(vlm.get_decoder().layers):
            hooks.callback(layer.register_forward_hook(hook(index)).remove)
        yield known


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_the_formulas(family: str) -> None:
    prompts, vlm = one_image_each(family), model(family)
    with qkedit.attach(vlm, DAMO(**SETTINGS)) as attached:
        answers, logits = generated(family, request(family, prompts).inputs)
    replaced_somewhere = 0
    for row, prompt in enumerate(prompts):
        alone, answer = request(family, [prompt]).inputs, []
        for step in range(STEPS):
            length = alone["input_ids"].shape[1]
            with replaced(vlm, length) as known:
                expected = whole_text(vlm, alone, answer).logits[0, -1]
            assert_equals_formulas(logits[step][row], expected)
            answer.append(int(expected.argmax()))
            replaced_somewhere += known[0, length - 1 + step].is_on
        assert answers[row].tolist() == answer
    report = attached.report()[0].plugins["damo"]
    assert report.steps == STEPS
    assert report.share_edited == replaced_somewhere / (STEPS * len(prompts))
    assert sum(report.edited_from.values()) == replaced_somewhere > 0


@pytest.mark.parametrize("settings", [{"tau": -1.0}, {"tau": 1.0, "beta1": 0.0, "beta2": 0.0}], ids=str)
def test_identity_settings_change_nothing(settings: dict[str, float]) -> None:
    """No cosine is below −1; without memory the average equals the last change."""
    given = request("llava", one_image_each("llava")).inputs
    own, before = generated("llava", given)
    with qkedit.attach(model("llava"), DAMO(**settings)):
        answers, logits = generated("llava", given)
    assert torch.equal(answers, own)
    assert all(torch.equal(one, other) for one, other in zip(before, logits, strict=True))


@pytest.mark.parametrize("second_plugin", [SCR(), VAF(image=1.0, before=1.0)], ids=lambda plugin: plugin.name)
def test_damo_works_with_previews_and_prompts_in_parts(second_plugin: Any) -> None:
    """SCR runs an unedited preview; VAF runs the prompt in parts, of which the last one has the last token."""
    prompts, vlm = one_image_each("llava")[:1], model("llava")
    given = request("llava", prompts).inputs
    if second_plugin.name == "vaf":
        with qkedit.attach(vlm, DAMO(**SETTINGS)):
            expected = generated("llava", given)[1]
        with qkedit.attach(vlm, second_plugin, DAMO(**SETTINGS)) as attached:
            logits = generated("llava", given)[1]
        for one, other in zip(logits, expected, strict=True):
            assert_equals_formulas(one, other)
    else:
        with qkedit.attach(vlm, second_plugin):
            generated("llava", given, max_new_tokens=1)
        with qkedit.attach(vlm, second_plugin, DAMO(**SETTINGS)) as attached:
            generated("llava", given)
    assert attached.report()[-1].plugins["damo"].steps == STEPS


def test_beams_equal_those_of_an_edited_forward_pass() -> None:
    """The reference runs the whole text at every step, without a cache."""
    vlm = model("llava")
    given = request("llava", one_image_each("llava")[:1]).inputs
    own = generated("llava", given, num_beams=3)[1]
    with qkedit.attach(vlm, DAMO(**SETTINGS)):
        answers, logits = generated("llava", given, num_beams=3)
    with replaced(vlm, given["input_ids"].shape[1]):
        expected, of_itself = generated("llava", given, num_beams=3, use_cache=False)
    assert torch.equal(answers, expected)
    assert_equals_formulas(torch.stack(logits), torch.stack(of_itself))
    assert (torch.stack(own) - torch.stack(logits)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DAMO(tau=2), "damo tau"),
        (lambda: DAMO(beta2=-1), "damo beta2"),
        (lambda: DAMO(alpha=float("nan")), "damo alpha"),
        (lambda: DAMO(norm="none"), "damo norm"),  # type: ignore[arg-type]
        (lambda: qkedit.attach(model("llava"), DAMO(start=1)), "damo start"),
        (lambda: qkedit.attach(model("llava"), DAMO(start=4)), "damo start"),
    ],
)
def test_invalid_settings_are_refused(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make()
