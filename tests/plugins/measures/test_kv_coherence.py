"""Test KV-coherence and the entropy of norms against sums over pairs and the modules' own keys."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.core.norm_entropy import norm_entropy
from qkedit.plugins.dscr.plugin import DSCR
from qkedit.plugins.measures.key_colours import principal_colours
from qkedit.plugins.measures.kv_coherence import KeyCoherence, coherence
from qkedit.plugins.transformers.attach import attach
from qkedit.report.keys_plot import keys_plot
from tests.plugins import tiny_requests
from tests.plugins.dscr import dscr_reference
from tests.plugins.dscr.dscr_requests import UNCROPPED, depth_maps, prompts_of, request_of


def slow_coherence(keys: torch.Tensor) -> float:
    """Return the mean cosine of 4-neighbours minus that of all pairs, for one head's keys `[rows, columns, d]`."""
    rows, columns, _ = keys.shape
    cells = list(itertools.product(range(rows), range(columns)))
    neighbours, pairs = [], []
    for (r, c), (s, d) in itertools.combinations(cells, 2):
        cosine = torch.nn.functional.cosine_similarity(keys[r, c], keys[s, d], dim=0).item()
        pairs.append(cosine)
        if abs(r - s) + abs(c - d) == 1:
            neighbours.append(cosine)
    return sum(neighbours) / len(neighbours) - sum(pairs) / len(pairs)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 1, 5), (1, 6, 2), (4, 4, 8)])
def test_coherence_equals_the_sum_over_pairs(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    keys = torch.randn(3, *shape) + 0.5
    expected = [slow_coherence(head) for head in keys]
    assert coherence(keys).tolist() == pytest.approx(expected, abs=1e-5)


def test_smoothly_changing_keys_are_coherent() -> None:
    ramp = torch.linspace(0, 3, 16)
    smooth = torch.stack([ramp.cos(), ramp.sin()], dim=-1)[None, None].expand(1, 5, 16, 2)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    shuffled = smooth.flatten(1, 2)[:, order].unflatten(1, (5, 16))
    assert coherence(smooth).item() > 0.3
    assert abs(coherence(torch.ones(1, 4, 4, 3)).item()) < 1e-6
    assert abs(coherence(shuffled).item()) < 0.1


def test_entropy_equals_its_definition() -> None:
    lengths = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    expected = [math.log(4), 0.0, -sum(n / 10 * math.log(n / 10) for n in range(1, 5))]
    assert norm_entropy(lengths).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("family", ["llava", "glm4v", "qwen3.5", "gemma3", "llava-next"])
def test_measurements_on_a_model_equal_those_of_its_modules(family: str) -> None:
    """Compare with the keys of modules and the states of layers, grid by grid."""
    model = tiny_requests.model(family)
    request = request_of(family, prompts_of(family)[:1])
    layer = 1
    states: list[torch.Tensor] = []
    handle = model.get_decoder().layers[layer].register_forward_hook(lambda *call: states.append(call[2]))
    with torch.no_grad(), dscr_reference.keys_before_rotation(model, layer) as made:
        model(**request.inputs)
    handle.remove()
    with torch.no_grad(), attach(model, KeyCoherence()) as attached:
        model(**request.inputs)
    measured = attached.report()[0].plugins["coherence"]
    grids = dscr_reference.grids_of(request, depth_maps(1), (1, 1))
    shapes = [(1 + max(cell[2] for cell in own), 1 + max(cell[3] for cell in own)) for own in _parts(request)]
    by_grid, entropies = [], []
    for grid, shape in zip(grids, shapes, strict=True):
        by_grid.append([slow_coherence(head[grid.columns].unflatten(0, shape)) for head in made[0][0]])
        norms = [states[0][0, column].norm().item() for column in grid.columns]
        entropies.append(-sum(n / sum(norms) * math.log(n / sum(norms)) for n in norms))
    found = measured.layers[layer]
    assert found.layer == layer
    assert found.by_head == pytest.approx([sum(own) / len(own) for own in zip(*by_grid, strict=True)], abs=1e-4)
    assert found.entropy == pytest.approx(sum(entropies) / len(entropies), abs=1e-4)
    torch.testing.assert_close(measured.keys[layer].flatten(1, 2), made[0][0][:, grids[0].columns], rtol=0, atol=1e-4)
    without_keys = {"qwen3.5": [0, 2], "gemma3": [0, 2]}.get(family, [])
    assert [own.layer for own in measured.layers if own.by_head is None] == without_keys


def _parts(request: tiny_requests.Request) -> list[list[Any]]:
    cells = [cell for _, cell in sorted(request.cells[0].items())]
    return [[cell for cell in cells if cell[:2] == part] for part in dict.fromkeys(cell[:2] for cell in cells)]


def test_coherence_is_measured_on_keys_refined_by_dscr() -> None:
    model, request = tiny_requests.model("llava"), request_of("llava", prompts_of("llava")[:1])
    plugins = DSCR(depth=depth_maps(1), processor=UNCROPPED, space="pre-rotation"), KeyCoherence()
    with torch.no_grad(), attach(model, KeyCoherence()) as attached:
        model(**request.inputs)
    with torch.no_grad(), attach(model, *plugins) as refined:
        model(**request.inputs)
    before, after = (report.report()[0].plugins["coherence"] for report in (attached, refined))
    (grid,) = dscr_reference.grids_of(request, depth_maps(1), (1, 1))
    for layer in (1, 2, 3):
        cells = before.keys[layer].flatten(1, 2)
        mixes = torch.tensor([dscr_reference.oracle.mix(grid.weights, head.tolist()) for head in cells])
        torch.testing.assert_close(after.keys[layer].flatten(1, 2), mixes, rtol=0, atol=1e-4)
    torch.testing.assert_close(after.keys[0], before.keys[0], rtol=0, atol=1e-5)


def test_a_request_without_a_cache_is_refused() -> None:
    model, request = tiny_requests.model("llava"), request_of("llava", prompts_of("llava")[:1])
    with torch.no_grad(), attach(model, KeyCoherence()), pytest.raises(UsageError, match="no cache"):
        model(**request.inputs, use_cache=False)


def test_colours_equal_the_principal_components() -> None:
    """Keys on three axes of decreasing length: each axis has its own colour."""
    torch.manual_seed(0)
    rows, columns = 5, 7
    scores = torch.randn(rows, columns, 3)
    scores = torch.linalg.qr((scores - scores.mean((0, 1))).flatten(0, 1))[0].unflatten(0, (rows, columns))
    lengths = torch.tensor([9.0, 4.0, 1.0])
    axes = torch.linalg.qr(torch.randn(8, 8))[0][:3]
    keys = ((scores * lengths) @ axes).unflatten(-1, (2, 4)).permute(2, 0, 1, 3)
    colours, again = principal_colours(keys, 0.1 * keys + 3)
    assert colours.shape == (rows, columns, 3)
    for colour in range(3):
        together = torch.corrcoef(torch.stack([colours[..., colour].flatten(), scores[..., colour].flatten()]))[0, 1]
        assert abs(together) > 0.97
    # Refined keys differ less, and the colours are scaled accordingly.
    torch.testing.assert_close(colours, again, rtol=0, atol=1e-4)
    assert (colours.min(), colours.max()) == (0, 1)


def test_fewer_cells_than_colours_are_accepted() -> None:
    keys = torch.randn(2, 1, 2, 4)
    assert principal_colours(keys, keys)[0].shape == (1, 2, 3)


@pytest.mark.parametrize("file_format", ["png", "svg", "pdf"])
def test_the_plot_is_a_valid_image(file_format: str) -> None:
    image = Image.new("RGB", (40, 30), "teal")
    colours = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(0))
    panels = [("keys", colours), ("keys with dscr", 1 - colours)]
    content = keys_plot(panels, image, "a $model_name$, layer 3", file_format)
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[file_format])
    assert content == keys_plot(panels, image, "a $model_name$, layer 3", file_format)
    if file_format == "png":
        shown = torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).flatten(0, 1)
        # It contains the colours of the middle cell and of the image.
        for colour in ((colours[2, 3] * 255).int().tolist(), [0, 128, 128]):
            assert (shown.int() - torch.tensor(colour)).abs().max(1).values.min() <= 1


def test_without_matplotlib_its_install_command_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkedit.report.plots.find_spec", lambda name: None)
    with pytest.raises(QkeditError, match=r"^--plot: .*pip install 'qkedit\[plot\]'"):
        keys_plot([("keys", torch.rand(2, 2, 3))], Image.new("RGB", (4, 4)), "", "png")
