"""Test edits that are switched on and off in any order against a record of the active ones."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn

from qkedit.runtime.edited_parameters import Change, EditedParameter
from qkedit.runtime.editing import ModelEdit

DTYPES = (torch.bfloat16, torch.float32)


class SwitchedEdits(RuleBasedStateMachine):
    """Make edits and switch them; after each step, the weights equal those of the active edits."""

    @initialize(dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
    def load(self, dtype: torch.dtype, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.parameters = [nn.Parameter(self.random().to(dtype), requires_grad=number > 0) for number in range(2)]
        self.originals = [parameter.detach().clone() for parameter in self.parameters]
        self.edits: list[ModelEdit] = []
        self.enabled: list[bool] = []
        self.contexts: list[tuple[int, bool, ExitStack]] = []
        self.seen: dict[frozenset[int], list[Tensor]] = {frozenset(): self.originals}

    def random(self) -> Tensor:
        return torch.randn(3, 4, generator=self.generator)

    @precondition(lambda self: len(self.edits) < 4)
    @rule(touched=st.sampled_from(([0], [1], [0, 1])), on_base=st.booleans(), rows=st.integers(1, 3))
    def make(self, touched: list[int], on_base: bool, rows: int) -> None:
        changes = []
        for number in touched:
            parameter = EditedParameter.of(self.parameters[number])
            before = parameter.original if on_base else parameter.current
            after = before.clone()
            after[:rows] = self.random()[:rows].to(before.dtype)
            changes.append((parameter, Change(before, after)))
            parameter.add(changes[-1][1])
            if not on_base or not any(self.enabled):
                assert torch.equal(self.parameters[number], after)
        self.edits.append(ModelEdit(changes, ()))
        self.enabled.append(True)

    @precondition(lambda self: self.edits)
    @rule(data=st.data(), enabled=st.booleans())
    def switch(self, data: st.DataObject, enabled: bool) -> None:
        number = data.draw(st.integers(0, len(self.edits) - 1))
        if enabled:
            self.edits[number].enable()
        else:
            self.edits[number].disable()
        self.enabled[number] = enabled

    @precondition(lambda self: self.edits)
    @rule(data=st.data())
    def begin_without(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.edits) - 1))
        stack = ExitStack()
        self.contexts.append((number, self.enabled[number], stack))
        stack.enter_context(self.edits[number].disabled())
        self.enabled[number] = False

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def end_without(self, data: st.DataObject) -> None:
        number, was_enabled, stack = self.contexts.pop(data.draw(st.integers(0, len(self.contexts) - 1)))
        stack.close()
        self.enabled[number] = was_enabled

    @invariant()
    def weights_equal_those_of_the_active_edits(self) -> None:
        if not hasattr(self, "edits"):
            return
        on = frozenset(number for number, enabled in enumerate(self.enabled) if enabled)
        assert [edit.enabled for edit in self.edits] == self.enabled
        expected = self.seen.setdefault(on, [parameter.detach().clone() for parameter in self.parameters])
        for parameter, weights in zip(self.parameters, expected, strict=True):
            assert parameter.detach().view(torch.uint8).equal(weights.view(torch.uint8))

    def teardown(self) -> None:
        for edit in getattr(self, "edits", ()):
            edit.disable()
        for parameter, original in zip(getattr(self, "parameters", ()), getattr(self, "originals", ()), strict=True):
            assert parameter.detach().view(torch.uint8).equal(original.view(torch.uint8))


def test_edits_can_be_switched_in_any_order() -> None:
    bounded = settings(max_examples=20, stateful_step_count=20, deadline=None)
    run_state_machine_as_test(SwitchedEdits, settings=bounded)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("dtype", DTYPES)
def test_edits_of_different_rows_are_exact(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.full((4, 2), 1e4).to(dtype))
    record = EditedParameter.of(parameter)
    changes = []
    for row in (0, 2):
        after = record.original.clone()
        after[row] = 1e-7
        changes.append(Change(record.original, after))
        record.add(changes[-1])
    assert torch.equal(parameter[::2], torch.full((2, 2), 1e-7).to(dtype))
    assert torch.equal(parameter[1::2], record.original[1::2])


def test_the_record_is_dropped_with_the_last_edit() -> None:
    """A garbage-collected edit cannot be switched off; its weights are then taken as the model's own."""
    parameter = nn.Parameter(torch.zeros(2, 2))
    record = EditedParameter.of(parameter)
    assert EditedParameter.of(parameter) is record
    record.add(Change(record.original, torch.ones(2, 2)))
    del record
    assert torch.equal(EditedParameter.of(parameter).original, torch.ones(2, 2))


def test_a_moved_model_stays_edited() -> None:
    """`module.to` moves parameters to other memory."""
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()
    record = EditedParameter.of(module.weight)
    change = Change(record.original, before + 1)
    record.add(change)
    module.double()
    record.set(change, enabled=False)
    assert torch.equal(module.weight, before.double())
