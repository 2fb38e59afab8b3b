"""Test that a push sends only the files that the hub lacks, in one commit, and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import qkedit
from qkedit.checkpoint.hub.write_errors import PushFailed
from qkedit.errors import CheckpointError, UsageError
from qkedit.publishing.push import PushReport
from tests.fake_writable_hub import WritableHub
from tests.publishing.conftest import BASE, COMMIT, REPO, TOKEN, Edited
from tests.steering.checkpoints import contents

MANIFEST = "qkedit.json"
# The hub of these tests does not have the Xet protocol, so the library's older way to send files is used.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


def touched(directory: Path) -> str:
    """Return the one shard with an edited tensor."""
    (shard,) = {tensor["shard"] for tensor in json.loads((directory / MANIFEST).read_text())["tensors"]}
    return shard


def actions(report: PushReport) -> dict[str, str]:
    return {file.name: file.action for file in report.plan.files}


def shards(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.safetensors"))


def test_one_commit_copies_files_of_the_base_and_uploads_the_others(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    directory = edited()
    report = qkedit.push(directory, REPO)
    changed = touched(directory)
    unchanged = [name for name in shards(directory) if name != changed]
    assert len(unchanged) == 2
    assert hub.writes() == [
        f"create {REPO}",
        f"upload {len(contents(directory)[changed])} bytes to {REPO}",
        *(f"copy {name} from {BASE}" for name in unchanged),
        f"commit {REPO}",
    ]
    repository = hub.repositories[REPO]
    assert repository.files() == contents(directory) | {".gitattributes": base[".gitattributes"]}
    assert [commit for commit, _ in repository.branches["main"].commits][1:] == [report.commit]
    assert not repository.private
    assert hub.uploaded() == report.plan.bytes_of("upload") - sum(
        file.size for file in report.plan.files if file.action == "upload" and not file.name.endswith(".safetensors")
    )
    assert hub.tokens == {TOKEN}


def test_an_unchanged_output_makes_no_commit_and_sends_no_file(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    directory = edited()
    qkedit.push(directory, REPO)
    hub.writes()
    hub.log.clear()
    report = qkedit.push(directory, REPO)
    assert (report.commit, set(actions(report).values())) == (None, {"unchanged"})
    assert hub.writes() == []
    assert {method for method, _, _ in hub.log} == {"GET"}


def test_a_changed_card_is_sent_without_other_files(hub: WritableHub, base: dict[str, bytes], edited: Edited) -> None:
    directory = edited()
    qkedit.push(directory, REPO)
    hub.writes()
    with (directory / "README.md").open("a") as card:
        card.write("\nMeasured since.\n")
    report = qkedit.push(directory, REPO, message="Figures")
    assert hub.writes() == [f"commit {REPO}"]
    assert [file.name for file in report.plan.changes] == ["README.md"]
    assert hub.repositories[REPO].files()["README.md"].endswith(b"Measured since.\n")


@pytest.mark.parametrize("broken", ["commit", "upload"])
def test_after_a_failure_only_missing_files_are_sent(
    hub: WritableHub, base: dict[str, bytes], edited: Edited, broken: str
) -> None:
    directory = edited()
    upload = f"upload {len(contents(directory)[touched(directory)])} bytes to {REPO}"
    hub.faults.refused = {upload if broken == "upload" else f"commit {REPO}": (400, "the disk of the hub is full")}
    with pytest.raises(PushFailed) as raised:
        qkedit.push(directory, REPO)
    assert "the disk of the hub is full" in raised.value.what
    assert "run the same command again" in raised.value.remedy
    assert len(hub.repositories[REPO].branches["main"].commits) == 1  # the failed push is not visible
    hub.faults.refused = {}
    hub.writes()
    report = qkedit.push(directory, REPO)
    sent = hub.writes()
    assert (upload in sent) is (broken == "upload")
    assert sent[-1] == f"commit {REPO}"
    assert hub.repositories[REPO].head() == report.commit
    assert contents(directory).items() <= hub.repositories[REPO].files().items()


def test_a_dry_run_lists_the_action_of_each_file_and_writes_nothing(
    hub: WritableHub, base: dict[str, bytes], edited: Edited, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = edited()
    monkeypatch.delenv("HF_TOKEN")  # no login is needed, since nothing is written
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    report = qkedit.push(directory, REPO, dry_run=True)
    changed = touched(directory)
    assert report.commit is None
    assert hub.repositories.keys() == {BASE}
    assert {method for method, _, _ in hub.log} == {"GET"}
    assert actions(report) == {
        name: "copy" if name.endswith(".safetensors") and name != changed else "upload" for name in contents(directory)
    }
    fields = report.as_dict()
    assert fields["bytes_to_copy"] == sum(len(base[name]) for name in shards(directory) if name != changed)
    assert fields["bytes_to_upload"] + fields["bytes_to_copy"] == sum(map(len, contents(directory).values()))
    assert (fields["new_repository"], fields["license"]) == (True, ["apache-2.0"])
    assert fields["base"] == {"model": BASE, "revision": COMMIT}


def test_a_delta_is_pushed_with_a_card_and_the_licence_of_the_base(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    directory = edited("delta")
    qkedit.push(directory, REPO)
    files = hub.repositories[REPO].files()
    assert set(files) == {".gitattributes", MANIFEST, "qkedit-delta.safetensors", "README.md", "LICENSE"}
    assert files["LICENSE"] == base["LICENSE"]
    _, block, text = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(block) == {
        "license": "apache-2.0",
        "base_model": BASE,
        "base_model_relation": "adapter",
        "tags": ["qkedit"],
    }
    assert f"hf download {REPO} --local-dir ./edit" in text
    assert "README.md" not in contents(directory)
    assert set(actions(qkedit.push(directory, REPO)).values()) == {"unchanged"}


def test_an_adapter_is_pushed_with_its_card_and_the_licence_of_the_base(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    directory = edited("lora")
    report = qkedit.push(directory, REPO)
    files = hub.repositories[REPO].files()
    assert files == contents(directory) | {name: base[name] for name in (".gitattributes", "LICENSE")}
    assert set(actions(report).values()) == {"upload"}
    assert set(actions(qkedit.push(directory, REPO)).values()) == {"unchanged"}
    qkedit.push(edited("delta"), REPO)
    assert not any(name.startswith("adapter") for name in hub.repositories[REPO].files())


def test_a_changed_adapter_is_refused(hub: WritableHub, base: dict[str, bytes], edited: Edited) -> None:
    directory = edited("lora")
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"changed since qkedit wrote them: adapter_config\.json"):
        qkedit.push(directory, REPO)
    (directory / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"missing: adapter_config\.json"):
        qkedit.push(directory, REPO)


def test_a_delta_that_replaces_a_model_deletes_its_files(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    qkedit.push(edited(), REPO)
    before = hub.repositories[REPO].files()
    report = qkedit.push(edited("delta"), REPO)
    left = hub.repositories[REPO].files()
    assert not any(name.startswith("model") for name in left)
    assert set(left) == {".gitattributes", MANIFEST, "qkedit-delta.safetensors", "README.md", "LICENSE"}
    assert {name for name, action in actions(report).items() if action == "delete"} == set(before) - set(left)


def test_other_files_of_the_repository_are_kept(hub: WritableHub, base: dict[str, bytes], edited: Edited) -> None:
    hub.add(REPO, {"README.md": b"mine", "results.csv": b"1\n", ".gitattributes": b""})
    report = qkedit.push(edited(), REPO)
    assert report.plan.left_there == (".gitattributes", "results.csv")
    assert hub.repositories[REPO].files()["results.csv"] == b"1\n"


def test_a_model_that_qkedit_did_not_push_is_replaced_only_by_force(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    hub.add(REPO, {"model.safetensors": b"weights", "config.json": b"{}"})
    with pytest.raises(UsageError, match=r"config.json, model.safetensors.*--force"):
        qkedit.push(edited(), REPO)
    assert hub.writes() == []
    report = qkedit.push(edited("delta"), REPO, force=True)
    assert hub.writes()[-1] == f"commit {REPO}"
    assert report.plan.warnings == (f"{REPO} also holds other weights, which loaders may read: model.safetensors",)
