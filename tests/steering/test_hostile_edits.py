"""Test that edits with matching hashes and a false manifest are refused by every command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import qkedit
from qkedit.api.editing import steer
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.demo import SMALL_DEMO
from qkedit.errors import CheckpointError, QkeditError, UsageError
from qkedit.report.strength import energy_sentence
from qkedit.steering.apply import apply_edits, interpolate_edit, merge_edits
from qkedit.steering.differences.difference import difference_between
from qkedit.steering.export import export
from qkedit.steering.steer_options import OutputOptions
from qkedit.steering.verify import verify
from tests.cli.command import qkedit as run
from tests.steering.adapters.test_hostile_adapters import rewritten, sha256
from tests.steering.checkpoints import MODULES, key_name, query_name, tensors_of, weights
from tests.steering.manifests import small_file

DELTA = "qkedit-delta.safetensors"
LISTED = "0,1"
Ways = dict[str, Callable[[Path], object]]


def changed(edit: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((edit / "qkedit.json").read_text())
    change(manifest)
    (edit / "qkedit.json").write_text(json.dumps(manifest))


@pytest.fixture
def edit(base: Path, tmp_path: Path) -> Path:
    """Return a delta of layer 1 that changes two of its four heads."""
    steer(base, out=tmp_path / "edit", layers="1", heads=LISTED, k=2, layout="delta", device="cpu", fsync=False)
    return tmp_path / "edit"


@pytest.fixture
def ways(base: Path, tmp_path: Path) -> Ways:
    """Return every way to apply an edit, and every command that reads one."""
    steer(base, out=tmp_path / "other", layers="2", k=1, layout="delta", device="cpu", fsync=False)
    full, delta, lora = (OutputOptions(tmp_path / "out", layout, fsync=False) for layout in ("full", "delta", "lora"))

    def exported(edit: Path) -> object:
        with patch("qkedit.checkpoint.query_modules.query_modules", lambda *_: MODULES):
            return export(edit, base=str(base), output=lora)

    return {
        "apply": lambda edit: apply_edits([edit], base=str(base), output=full),
        "apply, several": lambda edit: apply_edits([edit, tmp_path / "other"], base=str(base), output=full),
        "merge": lambda edit: merge_edits([edit, tmp_path / "other"], base=str(base), output=delta),
        "interpolate": lambda edit: interpolate_edit(edit, 0.5, base=str(base), output=full),
        "strength 1": lambda edit: interpolate_edit(edit, 1, base=str(base), output=full),
        "export": exported,
        "diff": lambda edit: difference_between(str(base), str(edit)),
    }


def refused(edit: Path, base: Path, ways: Ways, words: str) -> None:
    for way, go in ways.items():
        with pytest.raises(CheckpointError, match=words):
            go(edit)
        assert not (edit.parent / "out").exists(), way
    assert any(words in mismatch for mismatch in verify(edit, base=str(base)).mismatches)


def test_a_valid_edit_is_accepted_by_every_command(edit: Path, base: Path, ways: Ways) -> None:
    """Otherwise the refusals below would be meaningless."""
    for go in ways.values():
        go(edit)
        if (out := edit.parent / "out").exists():
            out.rename(edit.parent / f"done {len(list(edit.parent.iterdir()))}")
    assert verify(edit, base=str(base)).mismatches == ()


@pytest.mark.parametrize("name", [key_name(1), "language_model.lm_head.weight", "vision_tower.patch.weight"])
def test_a_tensor_without_queries_is_refused(edit: Path, base: Path, ways: Ways, name: str) -> None:
    """Write a delta that replaces keys or other tensors, with matching hashes on both sides."""
    before = weights()[name]
    after = before * 2
    save_file({name: after}, edit / DELTA)

    def say_so(manifest: dict[str, Any]) -> None:
        tensor = manifest["tensors"][0]
        tensor |= {"name": name, "shape": list(before.shape)}
        tensor |= {"sha256_before": sha256(before), "sha256_after": sha256(after)}

    changed(edit, say_so)
    refused(edit, base, ways, "holds the queries of no layer")


def test_a_change_of_an_unlisted_head_is_refused(edit: Path, base: Path, ways: Ways) -> None:
    def last_head(name: str, value: Tensor) -> Tensor:
        value[-1, -1] += 1
        return value

    rewritten(edit, DELTA, last_head)
    refused(edit, base, ways, "outside the heads that the manifest lists")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor, head: tensor.update(layer=0), "of layer 1, not of 0"),
        (lambda tensor, head: head.update(head=4), "the layer has 4 query heads in the base"),
        (lambda tensor, head: head.update(key_head=1), "reads key head 0, not 1"),
        (lambda tensor, head: head.update(suppressed=[1.0] * 9), "lists 9 modes, and a head of the layer has 8"),
    ],
)
def test_values_that_contradict_the_base_are_refused(
    edit: Path, base: Path, ways: Ways, change: Callable[[Any, Any], None], words: str
) -> None:
    changed(edit, lambda manifest: change(manifest["tensors"][0], manifest["tensors"][0]["heads"][0]))
    refused(edit, base, ways, words)


@pytest.mark.parametrize("layout", ["full", "delta"])
def test_verify_checks_heads_that_are_not_listed(base: Path, tmp_path: Path, layout: str) -> None:
    """All heads were edited, but the manifest lists one of them."""
    steer(base, out=tmp_path / "out", layers="1", k=2, layout=layout, device="cpu", fsync=False)
    changed(
        tmp_path / "out", lambda manifest: manifest["tensors"][0].update(heads=manifest["tensors"][0]["heads"][1:2])
    )
    (mismatch,) = verify(tmp_path / "out", base=str(base)).mismatches
    assert mismatch == f"{query_name(1)}: differs from the base outside the heads that the manifest lists"


def test_edits_of_a_loaded_model_are_checked_too(tmp_path: Path) -> None:
    loaded = qkedit.load(SMALL_DEMO)
    before = {name: value.clone() for name, value in loaded.model.named_parameters()}
    steer(SMALL_DEMO, out=tmp_path / "edit", layers="2", heads="0", k=2, layout="delta", fsync=False)
    stored = tensors_of(qkedit.demo.demo_checkpoint(SMALL_DEMO))
    key = next(name for name in stored if name.endswith("layers.2.self_attn.k_proj.weight"))

    def other_head(name: str, value: Tensor) -> Tensor:
        value[-1] += 1
        return value

    rewritten(tmp_path / "edit", DELTA, other_head)
    with pytest.raises(QkeditError, match="outside the heads"):
        qkedit.edit(loaded.model, tmp_path / "edit")
    twice = stored[key] * 2
    save_file({key: twice}, tmp_path / "edit" / DELTA)
    other = {
        "name": key,
        "shape": list(twice.shape),
        "sha256_before": sha256(stored[key]),
        "sha256_after": sha256(twice),
    }
    changed(tmp_path / "edit", lambda manifest: manifest["tensors"][0].update(other))
    with pytest.raises(QkeditError, match="holds the queries of no layer"):
        qkedit.edit(loaded.model, tmp_path / "edit")
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.named_parameters())


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    with patch("qkedit.checkpoint.query_modules.query_modules", lambda *_: MODULES):
        steer(base, out=tmp_path / "edit", layers="1", heads=LISTED, k=2, layout="lora", device="cpu", fsync=False)
    return tmp_path / "edit"


SETTINGS: list[tuple[str, Any]] = [
    ("lora_alpha", 64),
    ("r", 2),
    ("use_dora", True),
    ("use_rslora", True),
    ("target_modules", ["q_proj"]),
    ("target_modules", "all-linear"),
    ("rank_pattern", {"layers.1.q_proj": 1}),
    ("alpha_pattern", {"layers.1.q_proj": 99}),
    ("bias", "all"),
    ("fan_in_fan_out", True),
    ("modules_to_save", ["lm_head"]),
    ("init_lora_weights", "pissa"),
    ("layers_to_transform", [0]),
    ("peft_type", "IA3"),
    ("base_model_name_or_path", "somebody/else"),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_a_config_with_another_effect_does_not_verify(adapter: Path, base: Path, name: str, value: Any) -> None:
    file = adapter / "adapter_config.json"
    for content, expected in ((None, ()), ({name: value}, (f"adapter_config.json: {name} is not that of the edit",))):
        config = json.loads(file.read_text()) | (content or {})
        file.write_text(json.dumps(config))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        changed(adapter, lambda manifest, digest=digest: manifest["generated"].update({file.name: digest}))
        assert verify(adapter, base=str(base)).mismatches == expected
        assert verify(adapter).mismatches == expected


def test_a_config_saved_by_a_later_peft_verifies(adapter: Path) -> None:
    """A config that was saved again has additional settings, which are all off; only its hash differs."""
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"lora_bias": False, "layers_to_transform": None, "megatron_config": {}}
    file.write_text(json.dumps(config))
    assert verify(adapter).mismatches == ("adapter_config.json: SHA-256 differs from the manifest",)
    for content in ("", "[]", '{"r": NaN}', "{" * 1000):
        file.write_text(content)
        assert any("is not a config" in mismatch for mismatch in verify(adapter).mismatches)


def test_factors_that_change_other_rows_are_refused(adapter: Path, base: Path) -> None:
    def last_row(name: str, value: Tensor) -> Tensor:
        if "lora_B" in name:
            value[-1] += 1
        return value

    rewritten(adapter, "adapter_model.safetensors", last_row)
    for strength in (0.5, 1):
        with pytest.raises(CheckpointError, match="rows outside the heads"):
            interpolate_edit(
                adapter, strength, base=str(base), output=OutputOptions(adapter.parent / "out", fsync=False)
            )
    (mismatch,) = verify(adapter, base=str(base)).mismatches
    assert "rows outside the heads" in mismatch
    rewritten(adapter, "adapter_model.safetensors", lambda name, value: value[:1] if "lora_A" in name else value)
    assert any("shape differs" in mismatch for mismatch in verify(adapter).mismatches)


@pytest.mark.parametrize(
    ("place", "values"),
    [
        (("options", "k"), {"k": 0}),
        (("options", "k"), {"k": 2**64}),
        (("options", "seed"), {"seed": -1}),
        (("options", "energy"), {"energy": 7.0}),
        (("options", "retain"), {"retain": 1.0}),
        (("tensors", "layer"), {"layer": -1}),
        (("heads", "head"), {"head": -1}),
        (("heads", "suppressed"), {"suppressed": [-1.0]}),
        (("heads", "energy"), {"energy_removed": 1.5}),
        (("heads", "moved"), {"relative_change": -0.5}),
    ],
)
def test_numbers_out_of_range_are_one_sentence(place: tuple[str, str], values: dict[str, Any]) -> None:
    document = small_file()
    (tensor,) = document["tensors"]
    {"options": document["options"], "tensors": tensor, "heads": tensor["heads"][0]}[place[0]].update(values)
    with pytest.raises(CheckpointError, match=r"^qkedit\.json"):
        Manifest.from_json(json.dumps(document).encode(), "qkedit.json")


def test_strengths_are_multiplied(edit: Path, base: Path, tmp_path: Path) -> None:
    def in_strength(source: Path, strength: float, out: str) -> Path:
        output = OutputOptions(tmp_path / out, "delta", fsync=False)
        interpolate_edit(source, strength, base=str(base), output=output)
        return tmp_path / out

    strong = in_strength(edit, 1.5, "strong")
    with pytest.raises(UsageError, match=r"strength 1\.5 already.*at most 1\.33"):
        in_strength(strong, 1.4, "stronger")
    weak = in_strength(strong, 0.5, "weak")
    in_strength(weak, 2, "as before")
    steer(base, out=tmp_path / "other", layers="2", k=1, layout="delta", device="cpu", fsync=False)
    merge_edits([strong, tmp_path / "other"], base=str(base), output=OutputOptions(tmp_path / "both", "delta"))
    with pytest.raises(UsageError, match=r"strength 1\.5 already"):
        in_strength(tmp_path / "both", 2, "both, stronger")
    assert len(load_file(tmp_path / "as before" / DELTA)) == 1


def test_added_energy_is_reported_as_added() -> None:
    assert energy_sentence([-0.5, -1.0], "full") == (
        "75.0% of the query-key products added (50.0% to 100.0% per head): an edit beyond removal"
    )
    assert energy_sentence([0.5, 0.7], "full").startswith("60.0% of the query-key products removed (50.0% to 70.0%")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("steer", "--seed", "3"), "--seed: has no effect without --control"),
        (("steer", "--layout", "lora", "--link", "copy"), "--link: has no effect with --layout lora"),
        (("steer", "--layout", "delta", "--keep-plugins"), "--keep-plugins: has no effect with --layout delta"),
        (("apply",), "no edit is named"),
        (("merge",), "no edit is named"),
        (("interpolate", "EDIT"), "--strength is not given"),
        (("interpolate", "EDIT", "--strength", "1", "--layout", "delta", "--link", "copy"), "--link: has no effect"),
    ],
)
def test_edits_without_effect_and_missing_edits_are_one_sentence(
    base: Path, edit: Path, command: tuple[str, ...], words: str
) -> None:
    arguments = [edit if word == "EDIT" else word for word in command]
    if command[0] == "steer":
        arguments += [base]
    result = run(*arguments, "--out", edit.parent / "out")
    assert result.code == 2
    assert words in result.sentence()
    assert not (edit.parent / "out").exists()
