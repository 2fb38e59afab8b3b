"""Test that the heuristic proposes the layers with planted outlying modes."""

from __future__ import annotations

import re
import shlex

import pytest

from qkedit.demo import SMALL_DEMO
from qkedit.inspection.suggestion import COST, NO_GAIN, outlying_modes, suggest
from qkedit.steering.steer_options import SteerOptions
from tests.inspection.inspections import inspection, spiked
from tests.paths import ROOT


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
    assert f" and more than {suggestion.threshold:.0%} in each layer proposed, " in suggestion.reason
    one = suggest(inspection({**layers, 5: layers[1], 6: layers[1]}))
    assert one.layers == (8,)
    assert "each layer" not in one.reason
    assert one.reason.endswith("the median head of this layer has 3 such modes")
    assert suggestion.as_dict()["heuristic"] is True
    assert suggestion.evidence[0].startswith("Evidence: the layers and k come from these spectra alone")
    assert suggestion.tune == (
        "qkedit tune org/model -b custom --questions questions.jsonl --images ./photos --objective hr --out tune.jsonl"
    )


def test_the_evidence_is_what_the_laboratory_measured() -> None:
    table = (ROOT / "docs" / "laboratory.md").read_text().partition("\n## Real weights\n")[2]
    losses = {name: re.search(rf"(?m)^\| {name} \| \d+% \| \+(\S+) ", table) for name in ("k 4", "k 4, symmetric")}
    full, symmetric = (float(found[1]) for found in losses.values() if found is not None)
    assert "cost a third of that of the full one" in COST
    assert 0.28 < symmetric / full < 0.39
    difference = re.search(r"(?m)^\| k 4, symmetric − k 4 \| −\S+ \[−\S+, (.)\S+\]", table)
    assert difference is not None
    assert difference[1] == "−"  # the whole interval is below 0


def test_without_outlying_modes_no_layer_is_proposed() -> None:
    suggestion = suggest(inspection({layer: [spiked([2.0]), spiked([2.0])] for layer in range(6)}))
    assert suggestion.layers == ()
    assert suggestion.command is None
    assert "no layer stands out" in suggestion.reason
    assert suggestion.evidence == (NO_GAIN,)
    assert "search all of them" in suggestion.search
    assert suggestion.tune is not None
    assert suggestion.tune.startswith("qkedit tune org/model ")
    of_demo = suggest(inspection({layer: [spiked([2.0])] for layer in range(6)}, model=SMALL_DEMO))
    assert of_demo.tune == "qkedit tune demo-small --scenes 200 --out tune.jsonl"
    without_vision = suggest(inspection({0: [spiked([2.0])]}), SteerOptions(allow_text_only=True))
    assert without_vision.tune is None


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
    evidence = " ".join(suggest(inspection(layers, channel="symmetric")).evidence)
    assert "--channel symmetric" not in evidence  # it is chosen already


def test_the_command_names_the_model_as_requested() -> None:
    layers = {layer: [spiked([2.0 + 0.05 * layer])] for layer in range(8)} | {4: [spiked([9.0, 8.0])]}
    command = suggest(inspection(layers, model="qwen2-vl"), model="./deep er/qwen2-vl").command
    assert command == "qkedit steer './deep er/qwen2-vl' --layers 4 --k 2 --out ./edited"
