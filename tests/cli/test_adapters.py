"""Test adapters on the command line, and the output quoted in docs/adapters.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qkedit.api.editing import steer
from qkedit.demo import SMALL_DEMO
from tests.cli.command import qkedit
from tests.paths import ROOT


def facts(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines() if not line.startswith("warning"))


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edited") / "full"
    steer(SMALL_DEMO, out=out, layers="2-5", fsync=False)
    return out


def test_the_document_quotes_the_printed_output(edited: Path, tmp_path: Path) -> None:
    document = (ROOT / "docs" / "adapters.md").read_text()
    quoted = [block.partition("\n")[2] for block in document.split("```")[1::2] if block.startswith("\n")]
    whole, cut = (facts(block) for block in quoted)
    command = ("steer", SMALL_DEMO, "--layers", "2-5", "--layout", "lora", "--no-fsync", "--out")
    assert f"qkedit {' '.join(command[:-2])} --out ./adapter" in document
    found = facts(qkedit(*command, tmp_path / "whole").stdout)
    assert {name: found[name] for name in whole if name not in ("time", "written")} == {
        name: fact for name, fact in whole.items() if name not in ("time", "written")
    }
    # The card and the manifest hold the version.
    assert found["written"].endswith(" kB)")
    assert "lacks" not in found
    found = facts(qkedit(*command, tmp_path / "cut", "--rank", "16").stdout)
    assert {name: found[name] for name in cut} == cut

    exported = facts(qkedit("export", edited, "--no-fsync", "--out", tmp_path / "exported").stdout)
    least, most = exported["lacks"].split()[0], exported["lacks"].split()[2]
    assert f"{least} to {most} for the edit above" in document


def test_every_command_accepts_an_adapter(edited: Path, tmp_path: Path) -> None:
    adapter, applied = tmp_path / "adapter", tmp_path / "applied"
    result = qkedit("export", edited, "--format", "lora", "--out", adapter, "--no-fsync", "--verify", "--json")
    assert result.code == 0, result.stderr
    layers = result.document["manifest"]["adapter"]
    assert [layer["rank"] for layer in layers] == [32] * 4
    assert result.document["layout"] == "lora"
    assert result.document["manifest"] == json.loads((adapter / "qkedit.json").read_text())
    result = qkedit("verify", adapter)
    assert result.code == 0, result.stderr
    assert result.stdout == "4 edited tensors as recorded; the base demo-small is the one that was edited.\n"
    assert qkedit("apply", adapter, "--base", SMALL_DEMO, "--out", applied, "--no-fsync", "--verify").code == 0
    result = qkedit("diff", edited, applied, "--json")
    assert max(difference["relative_change"] for difference in result.document["differences"]) < 1e-3
    card = (applied / "README.md").read_text()
    assert "adapter" in card
    (adapter / "adapter_config.json").write_text("{}")
    assert qkedit("verify", adapter).code == 3


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (
            ["steer", SMALL_DEMO, "--out", "OUT", "--rank", "8"],
            2,
            "rank: only an adapter has a rank; choose --layout lora",
        ),
        (["steer", SMALL_DEMO, "--out", "OUT", "--layout", "lora", "--rank", "0"], 2, "rank: 0 is less than 1"),
        (["export", "EDITED", "--out", "OUT", "--format", "gguf"], 2, "gguf"),
        (["export", "EDITED"], 2, "--out"),
        (["export", "OUT", "--out", "ELSEWHERE"], 1, "there is no readable qkedit.json"),
        (["export", "EDITED", "--out", "EDITED"], 2, "EDITED"),
    ],
)
def test_impossible_requests_for_adapters_are_refused(
    words: list[str], code: int, says: str, edited: Path, tmp_path: Path
) -> None:
    places = {"EDITED": str(edited), "OUT": str(tmp_path / "out"), "ELSEWHERE": str(tmp_path / "elsewhere")}
    result = qkedit(*(places.get(word, word) for word in words))
    assert result.code == code
    assert places.get(says, says) in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_plans_an_adapter(tmp_path: Path) -> None:
    result = qkedit("steer", SMALL_DEMO, "--layout", "lora", "--out", tmp_path / "out", "--dry-run")
    assert result.code == 0, result.stderr
    assert "write an adapter, the change alone as a LoRA, to" in " ".join(result.stdout.split())
    assert list(tmp_path.iterdir()) == []
