"""Test GPU runs on simulated devices: they compute the same as a CPU."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor

from qkedit.api.editing import steer
from qkedit.inspection import comparison, spectra
from qkedit.inspection.comparison import compare_spectra
from qkedit.inspection.spectra import inspect
from qkedit.spectral.suppression import Channel, Suppression
from qkedit.steering.engine import edited_weights as engine
from qkedit.steering.engine.device import choose_device, choose_devices, recorded_device
from qkedit.steering.engine.edited_tensor import EditedTensor
from qkedit.steering.engine.edited_weights import edited_weights
from qkedit.steering.engine.reading import stored_layers
from qkedit.steering.plan import SteerPlan, plan_for
from qkedit.steering.steer_options import SteerOptions
from tests import tiny_models
from tests.pretended_devices import PretendedDevices

CPU = torch.device("cpu")
HEAD_SIZE = 16
EDITS = {
    "k": Suppression(2),
    "energy": Suppression(energy=0.4, retain=0.2),
    "index": Suppression(2, control="index"),
    "norm": Suppression(2, control="norm"),
    "symmetric": Suppression(2, channel="symmetric"),
    "antisymmetric, index": Suppression(2, channel="antisymmetric", control="index"),
}
# Biases; norms of every kind; gated, fused and scattered projections; multi-head attention.
FAMILIES = ("qwen2-vl", "qwen3-vl", "gemma3", "chameleon", "qwen3.5", "phi4-multimodal", "llava")
# For mps, which lacks float64, a few families are enough.
PLACES = [*(("cuda:0", family) for family in FAMILIES), *(("mps", family) for family in ("gemma3", "chameleon"))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda family: tiny_models.build(family, tmp_path_factory.mktemp("model") / family, dtype="float32"))


def edited(plan: SteerPlan, device: torch.device) -> list[EditedTensor]:
    return list(edited_weights(stored_layers(plan), plan, device))


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize(("device", "family"), PLACES)
def test_edits_are_equal_on_every_device(device: str, family: str, name: str, checkpoint: Any) -> None:
    plan = plan_for(str(checkpoint(family)), SteerOptions("0.3-0.8", "0,1", EDITS[name]))
    expected = edited(plan, CPU)
    with PretendedDevices():
        found = edited(plan, torch.device(device))
    for one, other in zip(found, expected, strict=True):
        assert one.name == other.name
        (there, record), (here, expected_record) = (one.tensor, one.record), (other.tensor, other.record)
        assert type(there) is Tensor, "the result is still on the device"
        torch.testing.assert_close(there, here, rtol=0, atol=1e-6 * float(here.abs().max()))
        for head, expected_head in zip(record.heads, expected_record.heads, strict=True):
            assert len(head.suppressed) == len(expected_head.suppressed) > 0
            assert head.suppressed == pytest.approx(expected_head.suppressed, rel=1e-6)
            assert head.energy_removed == pytest.approx(expected_head.energy_removed, abs=1e-6)


@pytest.mark.parametrize("channel", ["full", "symmetric"])
@pytest.mark.parametrize(("device", "family"), PLACES)
def test_spectra_are_equal_on_every_device(
    device: str, family: str, channel: Channel, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(str(checkpoint(family)), SteerOptions("0.3-0.8", "all", Suppression(2, channel=channel)))
    offset = (3, 3, 3)
    expected = inspect(plan, offset)
    monkeypatch.setattr(spectra, "choose_device", lambda name: torch.device(device))
    with PretendedDevices():
        found = inspect(plan, offset)
    for layer, expected_layer in zip(found.layers, expected.layers, strict=True):
        for head, expected_head in zip(layer.heads, expected_layer.heads, strict=True):
            figures, expected_figures = _figures(asdict(head)), _figures(asdict(expected_head))
            assert len(expected_figures) > HEAD_SIZE
            assert figures == pytest.approx(expected_figures, rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
@pytest.mark.parametrize("family", ["qwen2-vl", "chameleon"])
def test_comparisons_are_equal_on_every_device(
    device: str, family: str, checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(checkpoint(family))
    steer(base, out=tmp_path / "edited", layers="1-2", k=2, fsync=False)
    options = SteerOptions("1-2", "all", Suppression(2))
    plans = plan_for(base, options), plan_for(str(tmp_path / "edited"), options)
    expected = compare_spectra(*plans)
    monkeypatch.setattr(comparison, "choose_device", lambda name: torch.device(device))
    with PretendedDevices():
        found = compare_spectra(*plans)
    assert _figures(found.as_dict()["layers"]) == pytest.approx(
        _figures(expected.as_dict()["layers"]), rel=1e-6, abs=1e-6, nan_ok=True
    )


def _figures(value: Any) -> list[float]:
    """Return every number in nested lists and dictionaries, with NaN for None."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [figure for item in value for figure in _figures(item)]
    return [math.nan if value is None else value]


def test_several_gpus_process_layers_in_turn(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices give the same results as one, in the same order; no device holds two layers."""
    plan = plan_for(str(checkpoint("qwen2-vl")), SteerOptions("all", "0,1", EDITS["k"]))
    with PretendedDevices():
        expected = edited(plan, torch.device("cuda:0"))
    busy: dict[torch.device, int] = {}
    took: dict[int, torch.device] = {}
    edit_heads = engine._edit_heads

    def watched(weights: Any, plan: SteerPlan, device: torch.device, factored: bool) -> Any:
        took[weights.planned.layer.index] = device
        busy[device] = busy.get(device, 0) + 1
        assert busy[device] == 1
        with PretendedDevices():  # it applies to the thread that enters it
            result = edit_heads(weights, plan, device, factored)
        busy[device] -= 1
        return result

    monkeypatch.setattr(engine, "_edit_heads", watched)
    devices = [torch.device("cuda", number) for number in range(2)]
    with PretendedDevices():
        found = list(edited_weights(stored_layers(plan), plan, devices))
    assert [took[planned.layer.index] for planned in plan.layers] == [
        devices[place % 2] for place in range(len(plan.layers))
    ]
    assert len(plan.layers) > len(devices)
    for one, other in zip(found, expected, strict=True):
        assert (one.name, one.record) == (other.name, other.record)
        assert torch.equal(one.tensor, other.tensor)


LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "3"}


@pytest.mark.parametrize(
    ("name", "environment", "expected", "recorded"),
    [
        ("cuda", {}, ("cuda:0", "cuda:1"), "cuda"),
        ("cuda:1", {}, ("cuda:1",), "cuda:1"),
        ("cpu", {}, ("cpu",), "cpu"),
        ("auto", LAUNCHED, ("cuda:1",), "cuda"),
        ("cuda", LAUNCHED, ("cuda:1",), "cuda"),
        ("cuda:0", LAUNCHED, ("cuda:0",), "cuda:0"),
    ],
)
def test_a_single_process_uses_all_gpus_and_each_of_several_uses_one(
    monkeypatch: pytest.MonkeyPatch, name: str, environment: dict[str, str], expected: tuple[str, ...], recorded: str
) -> None:
    """Of four processes on a machine with two GPUs, two share each."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert tuple(map(str, choose_devices(name))) == expected
    assert recorded_device(name) == recorded


def test_several_processes_without_gpus_use_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice does not wait for other processes."""
    for variable, value in LAUNCHED.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_devices("auto") == (CPU,)
    assert recorded_device("auto") == "cpu"


def test_without_an_accelerator_accelerate_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "accelerate", None)  # its import would fail
    assert choose_device("auto") == CPU


def test_with_an_accelerator_auto_is_the_choice_of_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(accelerate, "PartialState", lambda: SimpleNamespace(device=torch.device("meta")))
    assert choose_device("auto") == torch.device("meta")
