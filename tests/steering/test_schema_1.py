"""Test that files of qkedit 0.1 (schema 1 of the manifest) are read with the new names.

`schema_1` holds a delta of the demo model written by that version, whose manifest is also that of the full output, and
`chained.json`, the manifest of a second edit of that output.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import qkedit
from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.io.ownership import files_by_owner
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.manifest_file import Lineage, Manifest, part_of
from qkedit.demo import SMALL_DEMO
from qkedit.inspection.comparison import base_of
from qkedit.steering.base import Base, base_for
from qkedit.steering.manifest import read_manifest

DELTA = Path(__file__).parent / "schema_1"


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    for name in ("qkedit.json", "qkedit-delta.safetensors"):
        (tmp_path / "delta").mkdir(exist_ok=True)
        shutil.copy(DELTA / name, tmp_path / "delta")
    return tmp_path / "delta"


@pytest.fixture
def full(delta: Path, tmp_path: Path) -> Path:
    """Return the full output of the delta in the format of 0.1."""
    qkedit.apply(delta, base=SMALL_DEMO, out=tmp_path / "full", fsync=False)
    shutil.copy(delta / "qkedit.json", tmp_path / "full")
    return tmp_path / "full"


def written(name: str) -> Any:
    return json.loads((DELTA / name).read_bytes())


@pytest.mark.parametrize("name", ["qkedit.json", "chained.json"])
def test_values_are_equal_under_the_new_names(name: str) -> None:
    expected = written(name)
    assert expected["schema"] == 1
    expected |= {"schema": 2, "generated": {}}
    expected["options"]["retain"] = expected["options"].pop("residual")
    shares = [head.pop("residual", None) for tensor in expected["tensors"] for head in tensor["heads"]]
    manifest = Manifest.from_json((DELTA / name).read_bytes(), name)
    assert [head.unrealized_share for head in manifest.heads] == shares
    found = manifest.as_dict()
    for tensor in found["tensors"]:
        for head in tensor["heads"]:
            head.pop("unrealized_share", None)
    assert found == expected  # with its history, verbatim
    assert manifest.options.retain == (0.25 if name == "qkedit.json" else 0.0)


def test_a_delta_is_verified_and_applied(delta: Path, tmp_path: Path) -> None:
    assert qkedit.verify(delta, base=SMALL_DEMO).mismatches == ()
    report = qkedit.apply(delta, base=SMALL_DEMO, out=tmp_path / "full", fsync=False, verify=True)
    assert report.verification is not None
    assert report.verification.mismatches == ()
    recorded = written("qkedit.json")
    assert json.loads((tmp_path / "full" / "qkedit.json").read_bytes())["schema"] == 2
    (tensor,) = report.manifest.tensors
    assert tensor.sha256_after == recorded["tensors"][0]["sha256_after"]
    assert tuple(recorded["files"]) == report.manifest.files
    assert set(report.manifest.generated) == {"README.md"}


def test_a_full_output_is_verified_against_its_base(full: Path) -> None:
    result = qkedit.verify(full)
    assert (result.compared_with_base, result.mismatches) == (SMALL_DEMO, ())
    assert base_of(open_checkpoint(LocalFiles(full))).files.name == SMALL_DEMO
    assert base_for(str(full), None, None) == Base(SMALL_DEMO, None)
    assert [difference.name for difference in qkedit.diff(SMALL_DEMO, full)] == [read_manifest(full).tensors[0].name]


def test_a_full_output_is_replaced_like_by_that_version(full: Path) -> None:
    (full / "README.md").write_text("rewritten")  # without a hash, this cannot be distinguished from our card
    found = files_by_owner(full)
    assert (found.others, found.changed) == ((), ())
    assert "README.md" in found.ours
    qkedit.steer(SMALL_DEMO, out=full, layers="3", overwrite=True, fsync=False)
    assert read_manifest(full).history == ()


def test_a_second_edit_keeps_the_first_manifest_verbatim(full: Path, tmp_path: Path) -> None:
    qkedit.steer(full, out=tmp_path / "again", layers="2", k=1, fsync=False)
    first = written("qkedit.json")
    assert first.pop("history") == []
    assert read_manifest(tmp_path / "again").history == (first,)
    lineage = part_of((tmp_path / "again" / "qkedit.json").read_bytes(), Lineage)
    assert lineage is not None
    assert [lineage.base.model, *(step.base.model for step in lineage.history)] == ["full", SMALL_DEMO]
