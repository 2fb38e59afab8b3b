"""Test edits extracted from two checkpoints, written by qkedit or by other tools."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qkedit.api.editing import steer
from qkedit.checkpoint.manifest_file import Derivation
from qkedit.errors import UsageError
from qkedit.steering.apply import apply_edits
from qkedit.steering.extraction import extract
from qkedit.steering.steer_options import OutputOptions
from tests.cli.command import qkedit
from tests.steering.checkpoints import contents, key_name, query_name, same_bits, tensors_of, weights, write


def delta_in(out: Path) -> OutputOptions:
    return OutputOptions(out, "delta", fsync=False)


def test_an_edit_of_qkedit_is_extracted_byte_for_byte(base: Path, tmp_path: Path) -> None:
    steer(base, out=tmp_path / "full", layers="0,2", heads="1,2", k=2, device="cpu", fsync=False)
    steer(base, out=tmp_path / "delta", layers="0,2", heads="1,2", k=2, device="cpu", fsync=False, layout="delta")
    result = qkedit("diff", base, tmp_path / "full", "--extract", tmp_path / "found")
    assert result.code == 0
    assert contents(tmp_path / "found") == contents(tmp_path / "delta")
    apply_edits([tmp_path / "found"], base=str(base), output=OutputOptions(tmp_path / "again", fsync=False))
    assert contents(tmp_path / "again") == contents(tmp_path / "full")


def test_an_edit_of_another_tool_is_extracted(base: Path, tmp_path: Path) -> None:
    theirs = weights()
    theirs[query_name(1)][8:16] *= 0.5
    write(tmp_path / "theirs", theirs, shards=1)
    report = extract(str(base), str(tmp_path / "theirs"), output=delta_in(tmp_path / "found"))
    assert report.manifest.derivation is Derivation.EXTRACTED
    (head,) = report.manifest.heads
    assert (head.head, head.suppressed) == (1, ())
    assert head.relative_change == pytest.approx(0.5)
    assert head.energy_removed == pytest.approx(0.75)
    apply_edits([tmp_path / "found"], base=str(base), output=OutputOptions(tmp_path / "again", fsync=False))
    found = tensors_of(tmp_path / "again")
    assert all(same_bits(found[name], theirs[name]) for name in theirs)


def test_other_changes_are_refused_or_left_out_on_request(base: Path, tmp_path: Path) -> None:
    theirs = weights()
    theirs[query_name(1)][0] += 1
    theirs[key_name(0)][0] += 1
    theirs["new"] = torch.ones(1)
    write(tmp_path / "theirs", theirs)
    result = qkedit("diff", base, tmp_path / "theirs", "--extract", tmp_path / "found")
    assert result.code == 2
    assert key_name(0) in result.stderr
    assert "--only-queries" in result.stderr
    assert not (tmp_path / "found").exists()
    assert qkedit("diff", base, tmp_path / "theirs", "--extract", tmp_path / "found", "--only-queries").code == 0
    found = tensors_of(tmp_path / "found")
    assert list(found) == [query_name(1)]
    assert same_bits(found[query_name(1)], theirs[query_name(1)])


def test_checkpoints_without_a_valid_edit_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no query projection differs"):
        extract(str(base), str(base), output=delta_in(tmp_path / "found"))
    broken = weights()
    broken[query_name(2)][0, 0] = torch.nan
    write(tmp_path / "broken", broken)
    before = sorted(tmp_path.iterdir())
    result = qkedit("diff", base, tmp_path / "broken", "--extract", tmp_path / "found")
    assert result.code == 1
    assert "NaN" in result.stderr
    assert sorted(tmp_path.iterdir()) == before
