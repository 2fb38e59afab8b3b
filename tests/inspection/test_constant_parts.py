"""Test the contribution of biases and norms' shifts to a logit, against the logit as a function of two inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qkedit.inspection.spectra import inspect
from qkedit.steering.plan import plan_for
from qkedit.steering.run import run_plan
from qkedit.steering.steer_options import OutputOptions, SteerOptions
from tests.steering.checkpoints import (
    CONFIG,
    HEAD_SIZE,
    HEADS,
    HIDDEN,
    KEY_HEADS,
    key_name,
    query_name,
    tensors_of,
    weights,
    write,
)

Logit = Callable[[np.ndarray, np.ndarray], float]
OPTIONS = SteerOptions(layers="0", allow_text_only=True, compute_dtype="float64")


def chameleon_like(path: Path, *, biases: bool, shifts: str) -> Path:
    """Return a checkpoint with a layer norm per head, with gains and shifts per head, like Chameleon."""
    tensors = weights(dtype=torch.float64, biases=biases)
    generator = torch.Generator().manual_seed(5)
    for layer in range(3):
        for side, name, heads in (("q", query_name, HEADS), ("k", key_name, KEY_HEADS)):
            norm = name(layer).replace(f"{side}_proj.weight", f"{side}_norm")
            tensors[f"{norm}.weight"] = torch.randn(heads, HEAD_SIZE, generator=generator, dtype=torch.float64)
            if side in shifts:
                tensors[f"{norm}.bias"] = torch.randn(heads, HEAD_SIZE, generator=generator, dtype=torch.float64)
    directory = write(path, tensors)
    config = {**CONFIG, "text_config": {**CONFIG["text_config"], "model_type": "chameleon"}}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def logit_of(directory: Path, head: int) -> Logit:
    """Return the logit of layer 0 before division by the norms' standard deviations, which depend on tokens."""
    stored = {name: tensor.numpy() for name, tensor in tensors_of(directory).items()}

    def side(projection: str, at: int, count: int) -> Callable[[np.ndarray], np.ndarray]:
        norm = projection.replace("_proj.weight", "_norm")
        weight = stored[projection].reshape(count, HEAD_SIZE, HIDDEN)[at]
        bias = stored.get(projection.replace("weight", "bias"), np.zeros(count * HEAD_SIZE)).reshape(count, -1)[at]
        gain, shift = stored[f"{norm}.weight"][at], stored.get(f"{norm}.bias", np.zeros((count, HEAD_SIZE)))[at]

        def of(x: np.ndarray) -> np.ndarray:
            y = weight @ x + bias
            return gain * (y - y.mean()) + shift

        return of

    query = side(query_name(0), head, HEADS)
    key = side(key_name(0), head // (HEADS // KEY_HEADS), KEY_HEADS)
    return lambda x, z: float(query(x) @ key(z))


def linear_parts(logit: Logit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the parts of a logit that are linear in the query's input, in the key's, and in both."""
    nothing, basis = np.zeros(HIDDEN), np.eye(HIDDEN)
    constant = logit(nothing, nothing)
    queries = np.array([logit(x, nothing) for x in basis]) - constant
    keys = np.array([logit(nothing, z) for z in basis]) - constant
    both = np.array([[logit(x, z) for z in basis] for x in basis]) - queries[:, None] - keys[None, :] - constant
    return queries, keys, both


@pytest.mark.parametrize("biases", [True, False], ids=["biased", "unbiased"])
@pytest.mark.parametrize("shifts", ["qk", "q", "k", ""])
def test_the_share_of_biases_and_shifts_in_the_variance_of_logits(tmp_path: Path, biases: bool, shifts: str) -> None:
    directory = chameleon_like(tmp_path / "model", biases=biases, shifts=shifts)
    inspection = inspect(plan_for(str(directory), OPTIONS))
    for head in inspection.layers[0].heads:
        queries, keys, both = linear_parts(logit_of(directory, head.head))
        brought = np.sum(queries**2) + np.sum(keys**2)
        if not biases and not shifts:
            assert head.bias_share is None
        else:
            assert head.bias_share == pytest.approx(brought / (brought + np.sum(both**2)), abs=1e-9)
            assert head.bias_share > 0.01
    warned = any("biases and shifts of norms" in sentence for sentence in inspection.warnings)
    assert warned == (biases or bool(shifts))


@pytest.mark.parametrize("biases", [True, False], ids=["biased", "unbiased"])
@pytest.mark.parametrize("shifts", ["qk", "k"])
def test_an_edit_reports_its_change_through_the_constant_part_of_keys(
    tmp_path: Path, biases: bool, shifts: str
) -> None:
    directory = chameleon_like(tmp_path / "model", biases=biases, shifts=shifts)
    report = run_plan(plan_for(str(directory), OPTIONS), OutputOptions(tmp_path / "out"))
    for head in report.heads:
        before, after = (linear_parts(logit_of(path, head.head))[0] for path in (directory, tmp_path / "out"))
        assert head.key_bias_effect == pytest.approx(np.linalg.norm(after - before), rel=1e-9)
    assert any("keys have biases or shifts" in sentence for sentence in report.warnings)
