"""Test edits with matching hashes whose content does not fit the base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qkedit.api.editing import steer
from qkedit.errors import QkeditError
from qkedit.steering.apply import apply_edits, interpolate_edit, merge_edits
from qkedit.steering.export import export
from qkedit.steering.steer_options import OutputOptions
from tests.steering.checkpoints import weights, write

FACTORS = "adapter_model.safetensors"
CHANGES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "NaN": ("A", lambda factor: torch.full_like(factor, float("nan"))),
    "infinity": ("B", lambda factor: factor * float("inf")),
    "columns": ("A", lambda factor: factor[:, :3]),
    "rank": ("A", lambda factor: factor[:1]),
    "rows": ("B", lambda factor: factor[:3]),
    "more rows": ("B", lambda factor: torch.cat([factor, factor])),
    "nothing": ("A", lambda factor: factor[:0]),
}


def sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def rewritten(directory: Path, weights_file: str, change: Callable[[str, Tensor], Tensor]) -> None:
    """Change the tensors of an edit, and write their new hashes into its manifest."""
    tensors = {name: change(name, value).contiguous() for name, value in load_file(directory / weights_file).items()}
    save_file(tensors, directory / weights_file)
    manifest = json.loads((directory / "qkedit.json").read_text())
    for layer in manifest.get("adapter", ()):
        for side in "AB":
            key = f"base_model.model.{layer['module']}.lora_{side}.weight"
            layer[f"sha256_{side.lower()}"] = sha256(tensors[key])
    for tensor in manifest["tensors"]:
        if tensor["name"] in tensors:
            tensor["sha256_after"] = sha256(tensors[tensor["name"]])
    (directory / "qkedit.json").write_text(json.dumps(manifest))


def refused(edit: Path, base: Path, out: Path) -> None:
    for make in (
        lambda: apply_edits([edit], base=str(base), output=OutputOptions(out, fsync=False)),
        lambda: interpolate_edit(edit, 0.5, base=str(base), output=OutputOptions(out, fsync=False)),
    ):
        with pytest.raises(QkeditError):
            make()
        assert not out.exists()


@pytest.mark.parametrize("kind", CHANGES)
def test_factors_of_wrong_shapes_are_refused(kind: str, tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    steer(base, out=tmp_path / "edit", layers="0", k=2, layout="lora", fsync=False)
    side, change = CHANGES[kind]
    rewritten(tmp_path / "edit", FACTORS, lambda name, value: change(value) if f"lora_{side}" in name else value)
    refused(tmp_path / "edit", base, tmp_path / "out")


@pytest.mark.parametrize("head", [-1, 1, 99])
def test_heads_that_the_base_lacks_are_refused(head: int, tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    steer(base, out=tmp_path / "edit", layers="0", k=2, layout="lora", fsync=False)
    manifest = json.loads((tmp_path / "edit" / "qkedit.json").read_text())
    manifest["tensors"][0]["heads"][0]["head"] = head  # 1 is already listed
    (tmp_path / "edit" / "qkedit.json").write_text(json.dumps(manifest))
    refused(tmp_path / "edit", base, tmp_path / "out")


def test_a_delta_of_nan_is_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    for name, layer in (("edit", "0"), ("other", "1")):
        steer(base, out=tmp_path / name, layers=layer, k=2, layout="delta", fsync=False)
    (file,) = (path.name for path in (tmp_path / "edit").glob("*.safetensors"))
    rewritten(tmp_path / "edit", file, lambda name, value: torch.full_like(value, float("nan")))
    refused(tmp_path / "edit", base, tmp_path / "out")
    both, out = [tmp_path / "edit", tmp_path / "other"], tmp_path / "out"
    with pytest.raises(QkeditError, match="NaN"):
        merge_edits(both, base=str(base), output=OutputOptions(out, "delta", fsync=False))
    with pytest.raises(QkeditError, match="NaN"):
        export(both[0], base=str(base), output=OutputOptions(out, "lora", fsync=False))
    assert not out.exists()
