"""Test adapters against the dense edits in the other layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qkedit.api.editing import steer
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.errors import QkeditError
from qkedit.steering.apply import apply_edits
from qkedit.steering.export import export
from qkedit.steering.steer_options import OutputOptions
from qkedit.steering.verify import verify
from tests.families.published import PUBLISHED, written
from tests.steering.checkpoints import HEAD_SIZE, HEADS, contents, query_name, same_bits, tensors_of, weights, write

FACTORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
EDITS: list[dict[str, Any]] = [
    {"k": 2},
    {"k": 3, "retain": 0.25, "heads": "1,3"},
    {"energy": 0.6},
    {"k": 2, "control": "index", "seed": 3},
    {"k": 2, "control": "norm", "seed": 3},
    {"k": 2, "channel": "symmetric"},
    {"k": 2, "channel": "antisymmetric"},
]


def adapter(base: Path, out: Path, **options: Any) -> Manifest:
    return steer(base, out=out, layout="lora", fsync=False, **options).manifest


def exported(edit: Path, base: Path, out: Path, **options: Any) -> Manifest:
    return export(edit, base=str(base), output=OutputOptions(out, "lora", fsync=False, **options)).manifest


def applied(edit: Path, base: Path, out: Path) -> dict[str, Tensor]:
    apply_edits([edit], base=str(base), output=OutputOptions(out, fsync=False))
    return tensors_of(out)


def changes(directory: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return `B` and `A` of each module, float64, as read by the safetensors library."""
    found = load_file(directory / FACTORS)
    modules = sorted({name.rpartition(".lora_")[0] for name in found})
    assert sorted(f"{module}.lora_{side}.weight" for module in modules for side in "AB") == sorted(found)
    return {
        module: (found[f"{module}.lora_B.weight"].double(), found[f"{module}.lora_A.weight"].double())
        for module in modules
    }


def module_name(layer: int) -> str:
    return f"model.language_model.layers.{layer}.self_attn.q_proj"


def differences(edited: Path, base: Path, layers: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Return the change of the stored weights by an edit, float64."""
    before, after = tensors_of(base), tensors_of(edited)
    return {
        layer: (after[query_name(layer)].double() - before[query_name(layer)].double()).numpy() for layer in layers
    }


@pytest.mark.parametrize("options", EDITS, ids=str)
def test_the_factors_equal_the_edit(options: dict[str, Any], tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights(dtype=torch.float64, biases=True))
    options = {"layers": "0,2", "compute_dtype": "float64", **options}
    full = steer(base, out=tmp_path / "full", fsync=False, **options).manifest
    manifest = adapter(base, tmp_path / "adapter", **options)
    expected, found = differences(tmp_path / "full", base, (0, 2)), changes(tmp_path / "adapter")
    assert set(found) == {f"base_model.model.{module_name(layer)}" for layer in (0, 2)}
    assert manifest.adapter is not None
    planes = 2 if options.get("channel") == "antisymmetric" else 1
    for tensor, layer in zip(manifest.tensors, manifest.adapter, strict=True):
        left, right = found[f"base_model.model.{layer.module}"]
        change = (left @ right).numpy()
        size = np.linalg.norm(expected[tensor.layer])
        np.testing.assert_allclose(change, expected[tensor.layer], rtol=0, atol=1e-6 * size)
        counts = [planes * len(head.suppressed) for head in tensor.heads]
        assert (layer.tensor, layer.module, layer.error) == (tensor.name, module_name(tensor.layer), 0)
        assert left.shape[1] == right.shape[0] == layer.rank == sum(counts)
        owners = [head.head for head, count in zip(tensor.heads, counts, strict=True) for _ in range(count)]
        for column, head in zip(left.mT, owners, strict=True):
            rows = {int(row) // HEAD_SIZE for row in column.nonzero().flatten()}
            assert rows == {head}
        for side in (left, right):
            assert 0.3 < float(torch.linalg.matrix_norm(side)) / size**0.5 < 3, "the factors have equal norms"
    # The manifest also has the hashes of the weights in the other layouts.
    assert manifest.tensors == full.tensors


def test_the_config_names_base_modules_and_ranks(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    manifest = adapter(base, tmp_path / "adapter", layers="all", energy=0.5)
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert manifest.adapter is not None
    ranks = {layer.module: layer.rank for layer in manifest.adapter}
    assert len(set(ranks.values())) > 1
    rank = max(ranks.values())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", rank, rank)
    assert (config["base_model_name_or_path"], config["revision"]) == ("base", None)
    assert config["target_modules"] == [module_name(layer) for layer in range(3)]
    assert {module: config["rank_pattern"].get(module, rank) for module in ranks} == ranks
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert set(contents(tmp_path / "adapter")) == {CONFIG, FACTORS, "README.md", "qkedit.json"}


@pytest.mark.parametrize("rank", [1, 5, 8, 100])
def test_a_truncated_adapter_reports_its_error(rank: int, tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    steer(base, out=tmp_path / "full", layers="1", k=2, compute_dtype="float64", fsync=False)
    manifest = adapter(base, tmp_path / "adapter", layers="1", k=2, rank=rank)
    (expected,) = differences(tmp_path / "full", base, (1,)).values()
    ((left, right),) = changes(tmp_path / "adapter").values()
    assert manifest.adapter is not None
    (layer,) = manifest.adapter
    assert layer.rank == right.shape[0] == min(rank, 2 * HEADS)
    values = np.linalg.svd(expected, compute_uv=False)
    best = np.linalg.norm(values[layer.rank :]) / np.linalg.norm(values)
    realised = np.linalg.norm((left @ right).numpy() - expected) / np.linalg.norm(expected)
    np.testing.assert_allclose(layer.error, best, atol=1e-6)
    np.testing.assert_allclose(realised, best, atol=1e-6)
    assert (layer.error == 0) == (rank >= 2 * HEADS)


@pytest.mark.parametrize("options", [EDITS[0], EDITS[4], EDITS[6]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["full", "delta"])
def test_an_exported_edit_equals_the_stored_difference(
    options: dict[str, Any], dtype: torch.dtype, layout: Any, tmp_path: Path
) -> None:
    base = write(tmp_path / "base", weights(dtype=dtype))
    steer(base, out=tmp_path / "full", layers="0-1", fsync=False, **options)
    steer(base, out=tmp_path / "edit", layers="0-1", layout=layout, fsync=False, **options)
    manifest = exported(tmp_path / "edit", base, tmp_path / "adapter")
    expected, found = differences(tmp_path / "full", base, (0, 1)), changes(tmp_path / "adapter")
    assert manifest.adapter is not None
    for number, layer in enumerate(manifest.adapter):
        left, right = found[f"base_model.model.{layer.module}"]
        realised = np.linalg.norm((left @ right).numpy() - expected[number]) / np.linalg.norm(expected[number])
        np.testing.assert_allclose(layer.error, realised, atol=1e-6)
        assert 0 < layer.error < (1e-5 if dtype == torch.float32 else 0.02)
    direct = adapter(base, tmp_path / "direct", layers="0-1", **options)
    assert direct.adapter is not None
    assert [layer.rank for layer in manifest.adapter] == [layer.rank for layer in direct.adapter]
    assert verify(tmp_path / "adapter", base=str(base)).mismatches == ()

    # Applying it restores the stored weights except for the last bits of some.
    once, full = applied(tmp_path / "adapter", base, tmp_path / "applied"), tensors_of(tmp_path / "full")
    for name, tensor in full.items():
        apart = (once[name].double() - tensor.double()).abs()
        spacing = torch.finfo(dtype).eps * tensor.double().abs().max()
        assert float(apart.max()) <= spacing
        # Float32 weights have the precision of the factors. In bfloat16 the factors hold two of eight directions of a
        # head, with their part of the rounding, so most sums are rounded to the stored number again.
        assert dtype == torch.float32 or float((apart > 0).double().mean()) < 0.25


def test_an_export_of_full_rank_is_exact(tmp_path: Path) -> None:
    """With as many modes as rows of a head, rounding adds no direction, and the bytes are equal."""
    base = write(tmp_path / "base", weights(dtype=torch.bfloat16))
    steer(base, out=tmp_path / "full", layers="0-1", k=HEAD_SIZE, retain=0.5, fsync=False)
    manifest = exported(tmp_path / "full", base, tmp_path / "adapter")
    assert manifest.adapter is not None
    assert all(layer.error < 1e-12 for layer in manifest.adapter)
    assert all(
        same_bits(tensor, tensors_of(tmp_path / "full")[name])
        for name, tensor in applied(tmp_path / "adapter", base, tmp_path / "applied").items()
    )


def test_errors_of_truncation_and_rounding_add_up(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights(dtype=torch.bfloat16))
    steer(base, out=tmp_path / "full", layers="1", k=2, fsync=False)
    manifest = exported(tmp_path / "full", base, tmp_path / "adapter", rank=3)
    (expected,) = differences(tmp_path / "full", base, (1,)).values()
    ((left, right),) = changes(tmp_path / "adapter").values()
    assert manifest.adapter is not None
    realised = np.linalg.norm((left @ right).numpy() - expected) / np.linalg.norm(expected)
    np.testing.assert_allclose(manifest.adapter[0].error, realised, rtol=1e-5)


def test_an_applied_adapter_equals_the_edited_checkpoint(tmp_path: Path) -> None:
    tensors = weights(dtype=torch.bfloat16)
    tensors[query_name(1)][:HEAD_SIZE] = -0.0  # a head without modes keeps its bits
    base = write(tmp_path / "base", tensors)
    options: dict[str, Any] = {"layers": "1-2", "heads": "0-2", "k": 2}
    full = steer(base, out=tmp_path / "full", fsync=False, **options).manifest
    adapter(base, tmp_path / "adapter", **options)
    found = applied(tmp_path / "adapter", base, tmp_path / "applied")
    assert verify(tmp_path / "applied", base=str(base)).mismatches == ()
    before, after = tensors_of(base), tensors_of(tmp_path / "full")
    for name in before:
        if name not in (query_name(1), query_name(2)):
            assert same_bits(found[name], before[name])
    for layer in (1, 2):
        mine, theirs, old = (held[query_name(layer)] for held in (found, after, before))
        rows = slice(HEAD_SIZE if layer == 1 else 0, 3 * HEAD_SIZE)
        assert same_bits(mine[3 * HEAD_SIZE :], old[3 * HEAD_SIZE :])
        # The other one was computed in float32: a sum midway between two numbers may be rounded to either.
        assert (mine != theirs).double().mean() < 0.01
        torch.testing.assert_close(mine[rows], theirs[rows], rtol=torch.finfo(torch.bfloat16).eps, atol=1e-6)
    assert same_bits(found[query_name(1)][:HEAD_SIZE], before[query_name(1)][:HEAD_SIZE])
    manifest = Manifest.from_json((tmp_path / "applied" / "qkedit.json").read_bytes(), "")
    assert [head.relative_change for head in manifest.heads] == pytest.approx(
        [head.relative_change for head in full.heads], rel=1e-2
    )


def test_an_adapter_is_reproducible_and_replaces_only_outputs_of_qkedit(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    for name in ("one", "other"):
        adapter(base, tmp_path / name, layers="0", verify=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    steer(base, out=tmp_path / "one", layers="1", overwrite=True, fsync=False)
    adapter(base, tmp_path / "one", layers="0", overwrite=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    (tmp_path / "one" / "notes.txt").write_text("mine")
    with pytest.raises(QkeditError, match=r"notes\.txt"):
        adapter(base, tmp_path / "one", layers="0", overwrite=True)


def damage(directory: Path, kind: str) -> None:
    factors = load_file(directory / FACTORS)
    name = min(factors)
    if kind == "a number":
        factors[name][0, 0] += 1e-3
    elif kind == "a missing factor":
        del factors[name]
    elif kind == "another factor":
        factors["more"] = torch.ones(1, 1)
    elif kind == "the scaling":
        path = directory / CONFIG
        path.write_text(path.read_text().replace('"lora_alpha": 16', '"lora_alpha": 32'))
    elif kind == "no file":
        (directory / FACTORS).unlink()
        return
    save_file(factors, directory / FACTORS)


@pytest.mark.parametrize("kind", ["a number", "a missing factor", "another factor", "the scaling", "no file"])
def test_a_damaged_adapter_is_refused(kind: str, tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    adapter(base, tmp_path / "adapter", layers="0")
    assert verify(tmp_path / "adapter", base=str(base)).mismatches == ()
    assert verify(tmp_path / "adapter").layout == "lora"
    damage(tmp_path / "adapter", kind)
    assert verify(tmp_path / "adapter").mismatches
    if kind not in ("another factor", "the scaling"):
        with pytest.raises(QkeditError):
            applied(tmp_path / "adapter", base, tmp_path / "applied")
        assert not (tmp_path / "applied").exists()


def test_another_base_is_refused(tmp_path: Path) -> None:
    base, other = write(tmp_path / "base", weights()), write(tmp_path / "other", weights(seed=1))
    adapter(base, tmp_path / "adapter", layers="0")
    (mismatch,) = verify(tmp_path / "adapter", base=str(other)).mismatches
    assert mismatch.startswith(f"base: {query_name(0)}")
    for make in (applied, exported):
        steer(base, out=tmp_path / "delta", layers="0", layout="delta", overwrite=True, fsync=False)
        with pytest.raises(QkeditError, match="is not the one that was edited"):
            make(tmp_path / "delta", other, tmp_path / "out")


def test_an_edit_that_no_adapter_can_hold_is_refused_before_writing(tmp_path: Path) -> None:
    base = written(tmp_path / "base", PUBLISHED["Qwen-VL"])  # without its published code
    with pytest.raises(QkeditError, match="transformers has no model class for it"):
        steer(base, out=tmp_path / "adapter", layers="1", layout="lora", fsync=False)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_exporting_an_adapter_is_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    adapter(base, tmp_path / "adapter", layers="0")
    with pytest.raises(QkeditError, match="is an adapter already"):
        exported(tmp_path / "adapter", base, tmp_path / "again")


def test_a_local_base_must_be_named(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    steer(base, out=tmp_path / "delta", layers="0", layout="delta", fsync=False)
    with pytest.raises(QkeditError, match="--base: the base is a directory"):
        export(tmp_path / "delta", output=OutputOptions(tmp_path / "out", "lora"))


@pytest.mark.parametrize(("layout", "rank"), [("full", 4), ("lora", 0), ("lora", -1)])
def test_invalid_ranks_are_refused(layout: Any, rank: int) -> None:
    with pytest.raises(QkeditError, match="rank"):
        OutputOptions(Path("out"), layout, rank=rank)
