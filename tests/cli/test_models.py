"""Test `qkedit models --check`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint.architecture.language_model import projections
from tests.checkpoint.written import write_single
from tests.cli.command import qkedit


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ({}, ""),
        ({"q_norm": (8,), "k_norm": (8,)}, "rms"),
        ({"q_norm": (32,), "k_norm": (16,)}, "rms over all heads"),
    ],
)
def test_a_layer_is_listed_with_its_norm(tmp_path: Path, norms: dict[str, tuple[int, ...]], expected: str) -> None:
    shapes = {f"model.layers.0.self_attn.{name}.weight": shape for name, shape in norms.items()}
    config = {
        "model_type": "qwen3" if norms else "llama",
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    write_single(tmp_path, {**projections("model.layers.0"), **shapes}, config)
    result = qkedit("models", "--check", tmp_path, "--allow-text-only")
    assert (result.code, result.stderr) == (0, "")
    header, row = result.stdout.splitlines()[-2:]
    assert header.split() == ["layer", "form", "heads", "d_h", "norm", "bias", "positions", "query", "rows"]
    assert row.split() == f"0 separate 4 on 2 8 {expected} rotary 0-31 of 32".split()


@pytest.mark.parametrize("arguments", [("--revision", "main"), ("--allow-text-only",)])
def test_options_of_check_are_refused_without_it(arguments: tuple[str, ...]) -> None:
    result = qkedit("models", *arguments)
    assert result.code == 2
    sentence = result.sentence()
    assert sentence.startswith(f"{arguments[0]}: ")
    assert "--check MODEL" in sentence


def test_the_list_ignores_a_revision_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKEDIT_REVISION", "main")
    assert qkedit("models").code == 0
