"""Test the base and revision that follow from a manifest and the user's options."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkedit.checkpoint.manifest_file import Manifest
from qkedit.demo import SMALL_DEMO
from qkedit.steering.base import Base, chosen_base, named_base, recorded_base
from tests.steering.manifests import of_base

COMMIT, HUB_ID, ALIAS = "c" * 40, "Qwen/Qwen2-VL-7B-Instruct", "qwen2-vl"

OF_HUB, OF_DEMO, OF_DIRECTORY = of_base(HUB_ID, COMMIT), of_base(SMALL_DEMO, None), of_base("model", None)


def test_a_manifest_names_hub_models_and_the_demo() -> None:
    assert recorded_base(OF_HUB) == chosen_base(OF_HUB, None, None) == Base(HUB_ID, COMMIT)
    assert recorded_base(OF_DEMO) == chosen_base(OF_DEMO, None, None) == Base(SMALL_DEMO, None)
    for other in (OF_DIRECTORY, of_base("./demo", None)):
        assert recorded_base(other) is None
        assert chosen_base(other, None, None) is None
    assert chosen_base(None, None, "v1") is None


@pytest.mark.parametrize("name", [HUB_ID, ALIAS, ALIAS.upper()])
def test_the_recorded_model_has_the_recorded_commit_under_any_name(name: str) -> None:
    assert named_base(OF_HUB, name, None) == chosen_base(OF_HUB, name, None) == Base(name, COMMIT)


def test_the_revision_of_the_user_has_precedence() -> None:
    assert chosen_base(OF_HUB, None, "v1") == Base(HUB_ID, "v1")
    assert chosen_base(OF_HUB, ALIAS, "v1") == Base(ALIAS, "v1")


@pytest.mark.parametrize("recorded", [OF_HUB, OF_DEMO, OF_DIRECTORY, None])
def test_another_model_has_no_recorded_revision(recorded: Manifest | None) -> None:
    assert chosen_base(recorded, "org/other", None) == Base("org/other", None)
    assert chosen_base(recorded, "org/other", "v1") == Base("org/other", "v1")


def test_a_directory_named_like_the_hub_model_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / HUB_ID).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert chosen_base(OF_HUB, HUB_ID, None) == chosen_base(OF_HUB, None, None) == Base(HUB_ID, None)
