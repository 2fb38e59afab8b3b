"""Test the records of docs/adding-a-model.md in a user's directory: they make an unknown model editable."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qkedit
from qkedit.errors import QkeditError
from tests.cli.command import qkedit as run
from tests.packages import installed
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "adding-a-model.md").read_text("utf-8")
RECORDS = dict(re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", PAGE, re.DOTALL))
HEADS, KEY_HEADS, SIZE, HIDDEN, LAYERS, K = 16, 8, 4, 24, 2, 2
QKV, QUERY_NORM, KEY_NORM = (f"model.layers.{{}}.attention.{name}.weight" for name in ("qkv", "q_norm", "k_norm"))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("my-records")
    for name, text in RECORDS.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint whose key heads follow the record's defaults, and whose rows its layout."""
    directory = tmp_path_factory.mktemp("my-vl")
    generator = np.random.default_rng(5)
    tensors = {"vision_tower.patch.weight": generator.standard_normal((8, 8))}
    for layer in range(LAYERS):
        tensors[QKV.format(layer)] = generator.standard_normal(((HEADS + 2 * KEY_HEADS) * SIZE, HIDDEN))
        tensors[QUERY_NORM.format(layer)] = 1 + 0.3 * generator.standard_normal(SIZE)
        tensors[KEY_NORM.format(layer)] = 1 + 0.3 * generator.standard_normal(SIZE)
        tensors[f"model.layers.{layer}.attention.dense.weight"] = generator.standard_normal((HIDDEN, HEADS * SIZE))
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, directory / "model.safetensors")
    text = {"model_type": "my_text", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "head_dim": SIZE}
    config = {"model_type": "my_vl", "text_config": {**text, "num_attention_heads": HEADS}, "vision_config": {}}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def products(directory: Path, layer: int, between: np.ndarray | None = None) -> np.ndarray:
    """Return the dense float64 products of a layer, [query heads, D, D], by reshapes."""
    tensors = load_file(directory / "model.safetensors")
    group = HEADS // KEY_HEADS
    rows = tensors[QKV.format(layer)].astype(np.float64).reshape(KEY_HEADS, group + 2, SIZE, HIDDEN)
    queries = rows[:, :group].reshape(HEADS, SIZE, HIDDEN) * tensors[QUERY_NORM.format(layer)][:, None]
    keys = np.repeat(rows[:, group] * tensors[KEY_NORM.format(layer)][:, None], group, axis=0)
    return queries.transpose(0, 2, 1) @ (np.eye(SIZE) if between is None else between) @ keys


def suppressed(dense: np.ndarray) -> np.ndarray:
    left, values, right = np.linalg.svd(dense)
    values[..., :K] = 0
    return (left * values[..., None, :]) @ right


def test_the_document_has_one_record_of_each_kind() -> None:
    assert {Path(name).parent.name for name in RECORDS} == {"families", "decoders", "layouts"}


def test_the_model_is_refused_without_its_records(base: Path) -> None:
    with pytest.raises(QkeditError, match="no query and key projections of a known layout"):
        qkedit.plan(base)


def test_the_edit_equals_that_of_the_dense_product(base: Path, records: Path, tmp_path: Path) -> None:
    out, delta, applied = tmp_path / "out", tmp_path / "delta", tmp_path / "applied"
    steered = run("steer", base, "--layers", "1", "--k", str(K), "--out", out, "--architectures", records, "--json")
    assert steered.code == 0, steered.stderr
    dense = products(base, 1)
    scale = np.linalg.norm(dense, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(products(out, 1) / scale, suppressed(dense) / scale, atol=1e-5)
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert [name for name in before if not np.array_equal(before[name], after[name])] == [QKV.format(1)]
    # Its records are named without their directory.
    (warning,) = [text for text in steered.document["warnings"] if "records" in text]
    assert re.fullmatch(
        r"my_vl is read by records that do not come with qkedit: decoders/my-text\.yaml \(SHA-256 [0-9a-f]{16}…\), "
        r"families/my-vl\.yaml \(.*\), layouts/my-qkv\.yaml \(.*\)",
        warning,
    )
    assert json.loads((out / "qkedit.json").read_text())["understood_as"] == warning
    # The commands below need no record but accept the option.
    assert run("verify", out, "--base", base).code == 0
    assert run("verify", out, "--base", base, "--architectures", records).code == 0
    qkedit.steer(base, out=delta, layers=1, k=K, layout="delta", architectures=records)
    handed_on = run("apply", delta, "--base", base, "--out", applied)
    assert handed_on.code == 0
    assert handed_on.stderr.count("could not check") == 1
    assert (applied / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert run("diff", base, out).code in (0, 3)


def test_inspection_with_positions_equals_the_dense_rotation(base: Path, records: Path) -> None:
    spectra = qkedit.inspect(base, layers=0, offset=3, architectures=str(records))
    values = [head.singular_values for head in spectra.layers[0].heads]
    # `rope: rotary` pairs dimensions half a head apart. A query 3 positions after its key: Rᵀ(m+3) R(m) = R(-3).
    cosines, sines = (np.diag(turn(-3 / 10_000 ** (np.arange(SIZE // 2) / (SIZE // 2)))) for turn in (np.cos, np.sin))
    rotation = np.block([[cosines, -sines], [sines, cosines]])
    dense = np.linalg.svd(products(base, 0, rotation), compute_uv=False)[:, :SIZE]
    np.testing.assert_allclose(np.array(values)[:, :SIZE], dense, rtol=1e-4)


def test_models_lists_the_family_with_its_record(base: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKEDIT_ARCHITECTURES", f"{records}:")
    families = {family["family"]: family for family in run("models", "--json").document["families"]}
    assert families["My-VL"]["source"] == "user"
    assert families["My-VL"]["record"] == f"{records}/families/my-vl.yaml"
    assert families["PaliGemma"]["source"] == "qkedit"
    assert f"{records}/families/my-vl.yaml" in run("models").stdout
    checked = run("models", "--check", base)
    assert "layouts/my-qkv.yaml (SHA-256 " in checked.stdout
    assert "QKEDIT_ARCHITECTURES" not in run("compare", "a", "b").stderr  # the list reads no model
    # The flag replaces the variable; a file replaces neither.
    elsewhere = records.parent / "nothing"
    refused = run("models", "--check", base, "--architectures", elsewhere)
    assert refused.sentence() == f"{elsewhere}: there is no such directory of architecture records; check the path."


def test_a_configuration_file_lists_directories(base: Path, records: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(f"architectures: [{records}]\n")
    assert run("models", "--check", base, "--config", tmp_path / "settings.yaml").code == 0


def test_an_installed_package_provides_the_records(base: Path, tmp_path: Path) -> None:
    files = {"my_models/__init__.py": "", **{f"my_models/records/{name}": text for name, text in RECORDS.items()}}
    group, point, target = "qkedit.architectures", "my-models", "my_models.records"
    assert f'[project.entry-points."{group}"]\n{point} = "{target}"' in PAGE
    with installed(tmp_path, "my-models", files, {point: target}, group=group):
        assert "of the package my-models" in str(qkedit.plan(base, architectures=()).stack.understood_as)
