"""Test that the heuristic proposes the layers with planted outlying modes."""

from __future__ import annotations

import shlex

import pytest

from qkedit.inspection.suggestion import outlying_modes, suggest
from qkedit.steering.steer_options import SteerOptions
from tests.inspection.inspections import inspection, spiked


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_outlying_modes_are_far_above_the_rest(count: int) -> None:
    assert outlying_modes(spiked([8.0 + number for number in range(count)])) == count


def test_a_few_values_have_no_outliers() -> None:
    assert outlying_modes((5.0, 1.0, 1.0)) == 0


def test_layers_with_outlying_energy_are_proposed_with_a_number_of_modes() -> None:
    layers = {layer: [spiked([2.0]), spiked([2.2])] for layer in range(12)}
    for layer in (5, 6, 8):
        layers[layer] = [spiked([9.0, 8.0, 7.0]), spiked([8.5, 8.0, 6.0])]
    # In a real model no two layers are equal.
    layers[0], layers[3] = [spiked([]), spiked([2.0])], [spiked([2.4]), spiked([2.0])]
    suggestion = suggest(inspection(layers))
    assert suggestion.layers == (5, 6, 8)
    assert suggestion.k == 3
    assert suggestion.command == "qkedit steer org/model --layers 5-6,8 --k 3 --out ./edited"
    assert "layer 5" in suggestion.reason or "layer 6" in suggestion.reason or "layer 8" in suggestion.reason
    assert all(suggestion.scores[layer] > suggestion.threshold for layer in suggestion.layers)
    assert suggestion.as_dict()["heuristic"] is True


def test_without_outlying_modes_no_layer_is_proposed() -> None:
    suggestion = suggest(inspection({layer: [spiked([2.0]), spiked([2.0])] for layer in range(6)}))
    assert suggestion.layers == ()
    assert suggestion.command is None
    assert "no layer stands out" in suggestion.reason


def test_zero_heads_are_accepted() -> None:
    assert suggest(inspection({0: [(0.0,) * 8], 1: [(0.0,) * 8]})).layers == ()


def test_the_command_has_the_options_of_the_inspection() -> None:
    layers = {layer: [spiked([2.0 + 0.05 * layer])] for layer in range(8)} | {4: [spiked([9.0, 8.0])]}
    command = suggest(inspection(layers), SteerOptions(heads="0,2-3", allow_text_only=True)).command
    assert command == "qkedit steer org/model --layers 4 --heads 0,2-3 --k 2 --allow-text-only --out ./edited"


def test_the_command_is_quoted_for_a_shell() -> None:
    layers = {layer: [spiked([2.0 + 0.05 * layer])] for layer in range(8)} | {4: [spiked([9.0, 8.0])]}
    command = suggest(inspection(layers, model="my models/it's", revision="abc", channel="symmetric")).command
    assert command is not None
    assert shlex.split(command)[:5] == ["qkedit", "steer", "my models/it's", "--revision", "abc"]
    assert "--channel symmetric" in command


def test_the_command_names_the_model_as_requested() -> None:
    layers = {layer: [spiked([2.0 + 0.05 * layer])] for layer in range(8)} | {4: [spiked([9.0, 8.0])]}
    command = suggest(inspection(layers, model="qwen2-vl"), model="./deep er/qwen2-vl").command
    assert command == "qkedit steer './deep er/qwen2-vl' --layers 4 --k 2 --out ./edited"
