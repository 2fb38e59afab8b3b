"""Test spectra of saved checkpoints against dense products of transformers' own attention modules."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.errors import CheckpointError, UsageError
from qkedit.inspection.positions import parse_offset, rotary_positions
from qkedit.inspection.spectra import inspect
from qkedit.spectral.suppression import Channel, Suppression
from qkedit.steering.plan import SteerPlan, make_plan
from qkedit.steering.steer_options import SteerOptions
from tests import tiny_models
from tests.families.module_oracle import Projections, attention_modules, projections
from tests.spectral import oracle
from tests.spectral.weights import with_spectrum
from tests.steering.checkpoints import HEAD_SIZE, HEADS, HIDDEN, key_name, query_name, weights, write

CHANNELS: tuple[Channel, ...] = ("full", "symmetric", "antisymmetric")
# Families with the accuracy of the oracle's products: the modules' norms calculate in float32 and add an epsilon.
FAMILIES = {
    "qwen2-vl": 1e-9,  # biases, multimodal positions
    "llava": 1e-9,  # multi-head
    "gemma3": 1e-5,  # (1 + w) norms, two rotary bases
    "glm4v": 1e-9,  # partial multimodal positions in adjacent pairs
    "chameleon": 2e-5,  # layer norms
    "qwen3.5": 1e-5,  # gated and normed
    "phi4-multimodal": 1e-9,  # fused
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spectra")


def plan(path: Path, channel: Channel = "full", **settings: str) -> SteerPlan:
    options = SteerOptions(layers="all", suppression=Suppression(k=2, channel=channel), **settings)
    return make_plan(open_checkpoint(LocalFiles(path)), options)


def dense_products(family: str) -> dict[int, Projections]:
    """Return each layer's projections as the model's modules compute them, in float64 from stored weights."""
    model = tiny_models.model(family).double()
    hidden = model.config.get_text_config().hidden_size
    torch.set_default_dtype(torch.float64)
    try:
        return {index: projections(module, hidden) for index, module in attention_modules(model).items()}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, directory: Path) -> tuple[Path, dict[int, Projections], float]:
    name = request.param
    return tiny_models.build(name, directory / name), dense_products(name), FAMILIES[name]


@pytest.mark.parametrize("offset", [(0, 0, 0), (6, 6, 6), (0, 5, -2)])
@pytest.mark.parametrize("channel", CHANNELS)
def test_spectra_equal_those_of_dense_products(
    family: tuple[Path, dict[int, Projections], float], channel: Channel, offset: tuple[int, int, int]
) -> None:
    path, layers, share = family
    planned = plan(path, channel)
    positions = {
        layer.layer.index: rotary_positions(planned.checkpoint, planned.stack.decoder, layer.layer)
        for layer in planned.layers
        if any(offset)
    }
    if len(set(offset)) > 1 and not all(found and found.axes for found in positions.values()):
        pytest.skip("one position only")
    for layer in inspect(planned, offset).layers:
        found, group = layers[layer.layer], len(layer.heads) // len({head.key_head for head in layer.heads})
        rotation = positions[layer.layer] if any(offset) else None
        turn = rotation.rotation(offset).numpy() if rotation else np.eye(found.query.weight.shape[1])
        for head in layer.heads:
            assert head.key_head == head.head // group
            query, key = turn @ found.query.folded[head.head], found.key.folded[head.key_head]
            dense = query.T @ key
            modes = oracle.modes(dense, channel)
            values = np.array(head.singular_values)
            count = min(len(values), len(modes.values))
            np.testing.assert_allclose(values[:count], modes.values[:count], rtol=0, atol=share * modes.values[0])
            energy = np.sum(modes.values[:2] ** 2) / np.sum(modes.values**2)
            np.testing.assert_allclose(head.energy_top_k, energy, atol=share)
            np.testing.assert_allclose(head.effective_rank, oracle.effective_rank(modes.values), rtol=share)
            np.testing.assert_allclose(head.gap_at_k, modes.values[1] / modes.values[2], rtol=10 * share)
            symmetric = np.linalg.norm(oracle.channel_part(dense, "symmetric")) ** 2
            np.testing.assert_allclose(head.symmetric_share, symmetric / np.linalg.norm(dense) ** 2, atol=share)
            if channel == "full":
                assert head.unrealized_share is None
            elif modes.values[1] > 1.001 * modes.values[2]:
                edit = oracle.channel_query(query, key, channel, 2, 0.0)
                np.testing.assert_allclose(head.unrealized_share, edit.unrealized_share, atol=1000 * share)
                np.testing.assert_allclose(head.leak, edit.leak, atol=1000 * share)


def test_the_share_that_survives_an_offset_equals_dense_overlaps(directory: Path) -> None:
    path = tiny_models.build("qwen2-vl", directory / "survives")
    planned, layers = plan(path), dense_products("qwen2-vl")
    positions = rotary_positions(planned.checkpoint, planned.stack.decoder, planned.layers[0].layer)
    assert positions is not None
    parts = {"all": (2, 7, -4), "temporal": (2, 0, 0), "height": (0, 7, 0), "width": (0, 0, -4)}
    for layer in inspect(planned, parts["all"]).layers:
        for head in layer.heads:
            query = layers[layer.layer].query.folded[head.head]
            key = layers[layer.layer].key.folded[head.key_head]
            before = oracle.modes(query.T @ key)
            assert head.kept is not None
            assert list(head.kept) == list(parts)
            for part, offset in parts.items():
                after = oracle.modes((positions.rotation(offset).numpy() @ query).T @ key)
                for side, share in (("left", head.kept[part].query_side), ("right", head.kept[part].key_side)):
                    overlap = getattr(before, side)[:, :2].T @ getattr(after, side)[:, :2]
                    np.testing.assert_allclose(share, np.linalg.norm(overlap) ** 2 / 2, atol=1e-8)


def test_small_singular_values_are_accurate(tmp_path: Path) -> None:
    """Float64 weights of condition 1e6 each: σ covers twelve decades, half of which squaring would lose."""
    random = np.random.default_rng(0)
    spectrum = np.logspace(0, -6, HEAD_SIZE)
    tensors = weights(dtype=torch.float64)
    frame = np.linalg.qr(random.standard_normal((HEAD_SIZE, HEAD_SIZE)))[0]
    rows = np.linalg.qr(random.standard_normal((HIDDEN, HEAD_SIZE)))[0].T
    head = torch.from_numpy(frame @ (spectrum[:, None] * rows))
    tensors[query_name(0)] = head.repeat(HEADS, 1)
    tensors[key_name(0)] = head.repeat(2, 1)
    first = inspect(plan(write(tmp_path / "graded", tensors), allow_text_only=True)).layers[0].heads[0]
    np.testing.assert_allclose(first.singular_values, spectrum**2, rtol=1e-3)
    assert first.rank == HEAD_SIZE


def test_rank_deficient_and_zero_heads_have_small_spectra(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    tensors = weights(dtype=torch.float64)
    query = tensors[query_name(0)].clone()
    query[:HEAD_SIZE] = 0
    half = np.array([2.0, 1.5, 1.2, 1.0] + [0.0] * (HEAD_SIZE - 4))
    query[HEAD_SIZE : 2 * HEAD_SIZE] = torch.from_numpy(with_spectrum(random, half, HIDDEN))
    tensors[query_name(0)] = query
    inspection = inspect(plan(write(tmp_path / "deficient", tensors), allow_text_only=True))
    zero, deficient, *_ = inspection.layers[0].heads
    assert (zero.rank, zero.k, zero.energy_top_k, zero.effective_rank) == (0, 0, 0.0, 0.0)
    assert (zero.gap_at_k, zero.symmetric_share) == (None, None)
    assert deficient.rank == 4
    assert any(
        "the query-key product of" in sentence and sentence.endswith("is zero") for sentence in inspection.warnings
    )


def test_a_subset_of_heads_has_the_same_spectra(directory: Path) -> None:
    path = tiny_models.build("qwen2-vl", directory / "subset")
    whole = inspect(plan(path)).layers
    part = inspect(plan(path, heads="1,3")).layers
    for layer, chosen in zip(whole, part, strict=True):
        assert [head.head for head in chosen.heads] == [1, 3]
        for head in chosen.heads:
            expected = layer.heads[head.head]
            assert head.key_head == expected.key_head
            np.testing.assert_allclose(head.singular_values, expected.singular_values, rtol=1e-9)


def test_the_share_of_biases_equals_that_of_dense_products(directory: Path) -> None:
    path = tiny_models.build("qwen2-vl", directory / "biased")
    layers = dense_products("qwen2-vl")
    inspection = inspect(plan(path))
    for layer in inspection.layers:
        for head in layer.heads:
            query, key = layers[layer.layer].query, layers[layer.layer].key
            weight, keys = query.weight[head.head], key.weight[head.key_head]
            brought = np.sum((weight.T @ key.bias[head.key_head]) ** 2) + np.sum((keys.T @ query.bias[head.head]) ** 2)
            expected = brought / (brought + np.sum((weight.T @ keys) ** 2))
            np.testing.assert_allclose(head.bias_share, expected, atol=1e-9)
    assert any("biases of queries and keys contribute" in sentence for sentence in inspection.warnings)


def test_each_tensor_is_read_once_and_counted(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = plan(tiny_models.build("qwen2-vl", directory / "counted"))
    read: list[tuple[str, int, int]] = []
    read_into = LocalFiles.read_into

    def counted(self: LocalFiles, file: str, start: int, buffer: bytearray) -> None:
        read.append((file, start, len(buffer)))
        read_into(self, file, start, buffer)

    monkeypatch.setattr(LocalFiles, "read_into", counted)
    told: list[int] = []
    progress = Mock(start=lambda layers, total: told.append(total), bytes_done=lambda count: told.append(count))
    inspect(chosen, progress=progress)
    assert len(set(read)) == len(read) == 4 * len(chosen.layers)  # queries, keys and both biases
    assert told[0] == sum(told[1:]) == sum(size for _, _, size in read)


@pytest.mark.parametrize(
    ("family", "offset", "expected"),
    [
        ("gemma3", "0", "normalised token by token"),
        ("glm4v", "0", "only some of each head's dimensions"),
        ("cohere2-vision", "3", "have no rotary positions"),
    ],
)
def test_misleading_numbers_cause_a_warning(family: str, offset: str, expected: str, directory: Path) -> None:
    path = tiny_models.build(family, directory / f"warned-{family}")
    warnings = inspect(plan(path), parse_offset(offset)).warnings
    assert any(expected in sentence for sentence in warnings)


def test_near_equal_singular_values_cause_a_warning(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    tensors = weights(dtype=torch.float64)
    flat = torch.from_numpy(with_spectrum(random, np.ones(HEAD_SIZE), HIDDEN))
    tensors[query_name(0)], tensors[key_name(0)] = flat.repeat(HEADS, 1), flat.repeat(2, 1)
    warnings = inspect(plan(write(tmp_path / "flat", tensors), allow_text_only=True)).warnings
    assert any(f"in {HEADS} of" in sentence and "arbitrary" in sentence for sentence in warnings)


def test_ordinary_models_cause_no_warning(tmp_path: Path) -> None:
    assert inspect(plan(write(tmp_path / "plain", weights()), allow_text_only=True)).warnings == ()


@pytest.mark.parametrize(("name", "row"), [(query_name(1), 3), (key_name(1), 9)])
def test_a_nan_weight_is_refused_by_name(name: str, row: int, tmp_path: Path) -> None:
    tensors = weights()
    tensors[name][row, 2] = float("nan")
    with pytest.raises(CheckpointError, match="NaN") as caught:
        inspect(plan(write(tmp_path / "broken", tensors), allow_text_only=True))
    assert name in caught.value.where


@pytest.mark.parametrize(
    ("text", "offset"), [("0", (0, 0, 0)), ("5", (5, 5, 5)), ("-3", (-3, -3, -3)), ("0,3,-2", (0, 3, -2))]
)
def test_offsets_are_parsed(text: str, offset: tuple[int, int, int]) -> None:
    assert parse_offset(text) == offset


@pytest.mark.parametrize("text", ["", "x", "1,2", "1,2,3,4", "1.5", "99999999999", "1,,2"])
def test_invalid_offsets_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="offset"):
        parse_offset(text)


def test_three_parts_need_multimodal_positions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one part"):
        inspect(plan(write(tmp_path / "plain", weights()), allow_text_only=True), (1, 2, 3))
