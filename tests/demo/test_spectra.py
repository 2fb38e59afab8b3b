"""Test the training scripts' spectra, removal of modes and rank-preserving optimizer against dense matrices."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from tests.demo.training_modules import part, scripts_on_the_path
from tests.paths import ROOT
from tests.scripts.loading import SCRIPTS, load_script

__all__ = ["scripts_on_the_path"]  # a fixture

HIDDEN, QUERY_HEADS, KEY_HEADS, HEAD_SIZE, LAYERS = 24, 4, 2, 8, 4


@pytest.fixture
def decoder() -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=QUERY_HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=HEAD_SIZE,
        vocab_size=4,
    )
    return LlamaModel(config).double()


def products(decoder: LlamaModel, layer: int) -> torch.Tensor:
    """Return every head's dense product, `[H, hidden, hidden]`."""
    attention = decoder.layers[layer].self_attn
    query, key = attention.q_proj.weight.detach(), attention.k_proj.weight.detach()
    found = []
    for head in range(QUERY_HEADS):
        group = head // (QUERY_HEADS // KEY_HEADS)
        q, k = (of[n * HEAD_SIZE : (n + 1) * HEAD_SIZE] for of, n in ((query, head), (key, group)))
        found.append(q.T @ k)
    return torch.stack(found)


def test_spectra_equal_those_of_the_dense_products(decoder: LlamaModel) -> None:
    shares, ranks = [], []
    for layer in (1, 2):
        for product in products(decoder, layer):
            energy = torch.linalg.svdvals(product)[:HEAD_SIZE] ** 2
            energy = energy / energy.sum()
            shares.append(float(energy[:4].sum()))
            ranks.append(float(torch.exp(-(energy * energy.log()).sum())))
    found = part("spectra").spectra(decoder, part("spectra").middle_layers(LAYERS))
    assert found["top_4"] == pytest.approx(sum(shares) / len(shares), rel=1e-6)
    assert found["effective_rank"] == pytest.approx(sum(ranks) / len(ranks), rel=1e-6)


def test_top_modes_are_removed_and_restored(decoder: LlamaModel) -> None:
    before, outside = products(decoder, 1), products(decoder, 0)
    with part("spectra").without_modes(decoder, [1], 3, "top"):
        for product, whole in zip(products(decoder, 1), before, strict=True):
            left, values, right = torch.linalg.svd(whole)
            rest = left[:, 3:HEAD_SIZE] * values[3:HEAD_SIZE] @ right[3:HEAD_SIZE]
            torch.testing.assert_close(product, rest, atol=1e-10, rtol=0)
        assert torch.equal(products(decoder, 0), outside)
    assert torch.equal(products(decoder, 1), before)


def test_removing_random_modes_keeps_the_top_ones(decoder: LlamaModel) -> None:
    before = products(decoder, 1)
    with part("spectra").without_modes(decoder, [1], 3, "random"):
        for product, whole in zip(products(decoder, 1), before, strict=True):
            values, kept = torch.linalg.svdvals(whole), torch.linalg.svdvals(product)
            torch.testing.assert_close(kept[:3], values[:3])
            assert int((kept > 1e-9).sum()) == HEAD_SIZE - 3


def test_an_update_moves_each_head_about_equally_in_all_directions() -> None:
    """One direction dominates each head's gradient, but not the step."""
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.zeros(2 * HEAD_SIZE, HIDDEN))
    optimizer = part("orthogonal").HeadwiseMuon([weight], lr=0.1, head_size=HEAD_SIZE)
    weight.grad = torch.randn_like(weight) + 30 * torch.randn(2 * HEAD_SIZE, 1) * torch.randn(1, HIDDEN)
    optimizer.step()
    for step, gradient in zip(weight.detach().split(HEAD_SIZE), weight.grad.split(HEAD_SIZE), strict=True):
        values = torch.linalg.svdvals(step)
        assert torch.linalg.svdvals(gradient)[0] > 20 * torch.linalg.svdvals(gradient)[1]
        assert values.max() < 2.5 * values.min()
        assert (step * gradient).sum() < 0
    # The usual size of Adam's step: a root mean square of a fifth of the learning rate.
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.1, rel=0.25)


def test_the_document_has_the_table_of_the_trials() -> None:
    trials = load_script("spectrum_trials")
    points = trials.rows_of(SCRIPTS / "demo_model" / "demo_training" / "trials.jsonl")
    assert trials.curve_table(points) in (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    assert {point["name"] for point in points} <= set(trials.TRIALS)


def test_the_page_has_the_spectra_of_the_embedded_models() -> None:
    pictures = load_script("demo_pictures")
    lines = list(pictures.spectra_table(pictures.all_spectra()))
    assert len(lines) == 5
    assert "\n".join(lines) in (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
