"""Test refused pushes and their messages, which contain no token or address."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import qkedit
from qkedit.api.editing import steer
from qkedit.checkpoint.card_fields import card_fields
from qkedit.checkpoint.hub.write_errors import PushFailed
from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.errors import CheckpointError, QkeditError, UsageError, VerificationError
from tests.cli.command import Result
from tests.cli.command import qkedit as run
from tests.fake_writable_hub import WritableHub
from tests.publishing.conftest import BASE, COMMIT, REPO, TOKEN, Edited

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


def refused(hub: WritableHub, directory: Path, repository: str = REPO, **options: Any) -> QkeditError:
    """Return the error of a push that ends before anything is written."""
    with pytest.raises(QkeditError) as raised:
        qkedit.push(directory, repository, **options)
    assert hub.writes() == []
    return raised.value


def base_with(hub: WritableHub, base: dict[str, bytes], card: str | None, **files: str) -> None:
    """Replace or remove the card of the base, and add files."""
    changed = {name: content for name, content in base.items() if name not in ("README.md", "LICENSE")}
    changed |= {} if card is None else {"README.md": card.encode()}
    hub.add(BASE, changed | {name: text.encode() for name, text in files.items()}, commit=COMMIT)


# --- licences


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ("license: cc-by-nd-4.0", "cc-by-nd-4.0, forbids derivatives"),
        ("license: cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0, forbids derivatives"),
        ("license: [mit, cc-by-nd-4.0]", "cc-by-nd-4.0, forbids derivatives"),
        ("license: other\nlicense_name: tongyi\nlicense_link: LICENSE", "other (tongyi) (LICENSE)"),
        ("license: My Own", "does not know whether it permits derivatives"),
        ("license: unknown", "the base's card does not name a licence"),
        ("license: {a: b}", "the base's card does not name a licence"),
        ("tags: [a]", "the base's card does not name a licence"),
    ],
)
@pytest.mark.parametrize("layout", ["full", "delta"])
def test_an_unclear_licence_of_the_base_needs_license(
    hub: WritableHub, base: dict[str, bytes], edited: Edited, licence: str, said: str, layout: str
) -> None:
    base_with(hub, base, f"---\n{licence}\n---\n# Base\n")
    error = refused(hub, edited(layout), dry_run=True)
    assert isinstance(error, UsageError)
    assert error.where == BASE
    assert said in error.what
    assert "--license" in error.remedy


@pytest.mark.parametrize("card", [None, "no block", "---\nlicense: [\n---\n"])
def test_without_a_readable_card_the_licence_file_is_named(
    hub: WritableHub, base: dict[str, bytes], edited: Edited, card: str | None
) -> None:
    base_with(hub, base, card, **{"LICENSE.txt": "Text"})
    assert "read LICENSE.txt of the base" in refused(hub, edited(), dry_run=True).remedy


def test_a_stated_licence_is_added_only_to_the_pushed_card(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    base_with(hub, base, None)
    directory = edited()
    card = (directory / "README.md").read_text()
    report = qkedit.push(directory, REPO, license="mit")
    sent = hub.repositories[REPO].files()["README.md"].decode()
    assert card_fields(sent) == card_fields(card) | {"license": "mit"}
    assert sent.split("---\n", 2)[2] == card.split("---\n", 2)[2]
    assert (directory / "README.md").read_text() == card
    assert report.plan.warnings == ()


def test_a_licence_named_other_is_confirmed_with_name_and_link(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    base_with(hub, base, "---\nlicense: other\nlicense_name: tongyi\nlicense_link: https://e.org/a\n---\n")
    qkedit.push(edited(), REPO, license="other")
    fields = card_fields(hub.repositories[REPO].files()["README.md"].decode())
    assert (fields["license"], fields["license_name"]) == ("other", "tongyi")
    assert fields["license_link"] == "https://e.org/a"


def test_a_licence_that_differs_from_the_base_causes_a_warning(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    (warning,) = qkedit.push(edited(), REPO, license="mit", dry_run=True).plan.warnings
    assert warning == "the base's licence is apache-2.0: make sure that it lets you publish under mit"
    assert "is not the identifier" in refused(hub, edited("delta"), license="MIT License").what


def test_a_card_that_contradicts_the_base_is_refused(hub: WritableHub, base: dict[str, bytes], edited: Edited) -> None:
    directory = edited()
    card = directory / "README.md"
    card.write_text(card.read_text().replace("apache-2.0", "mit", 1))
    assert refused(hub, directory).what == "gives the licence mit, and the base's licence is apache-2.0"


def test_the_licence_of_a_local_base_is_read_from_the_cards_of_the_output(hub: WritableHub, tmp_path: Path) -> None:
    source = shutil.copytree(demo_checkpoint(SMALL_DEMO), tmp_path / "source")
    card = source / "README.md"
    card.write_text(card.read_text().replace("license: apache-2.0", "license: cc-by-nd-4.0", 1))
    steer(source, out=tmp_path / "edited", layers="1", fsync=False)
    assert "forbids derivatives" in refused(hub, tmp_path / "edited").what
    steer(SMALL_DEMO, out=tmp_path / SMALL_DEMO, layers="1", layout="delta", fsync=False)
    report = qkedit.push(tmp_path / SMALL_DEMO, REPO)
    assert str(report.plan.licence) == "apache-2.0"
    assert {file.action for file in report.plan.files} == {"upload"}


# --- files


def test_foreign_files_are_pushed_only_if_they_are_named(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    directory = edited()
    (directory / "qkedit-plugins.json").write_text("{}")
    (directory / "notes.txt").write_text("private")
    (directory / ".cache").mkdir()
    (directory / ".cache" / "token").write_text("secret")
    error = refused(hub, directory)
    assert "notes.txt, qkedit-plugins.json (qkedit-plugins.json would attach plug-ins" in error.what
    assert "matches none of the files" in refused(hub, directory, include=("*.csv",)).what
    report = qkedit.push(directory, REPO, include=("qkedit-plugins.json",), exclude=("notes.*",))
    files = hub.repositories[REPO].files()
    assert "qkedit-plugins.json" in files
    assert not {"notes.txt", ".cache/token"} & set(files)
    assert report.plan.left_here == (".cache/token", "notes.txt")


def test_links_out_of_the_directory_are_refused_except_for_shards(
    hub: WritableHub, base: dict[str, bytes], edited: Edited, snapshot: Path, tmp_path: Path
) -> None:
    directory = edited()
    shard = "model-00002-of-00003.safetensors"
    (directory / shard).unlink()
    (directory / shard).symlink_to(snapshot / shard)
    assert {file.name: file.action for file in qkedit.push(directory, REPO, dry_run=True).plan.files}[shard] == "copy"
    (tmp_path / "secret").write_text("x")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").symlink_to(tmp_path / "secret")
    error = refused(hub, directory)
    assert error.what == f"is a link to {tmp_path / 'secret'}"


def test_a_directory_that_differs_from_its_manifest_is_refused(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    directory = edited()
    manifest = json.loads((directory / "qkedit.json").read_text())
    shard = directory / manifest["tensors"][0]["shard"]
    content = bytearray(shard.read_bytes())
    entry = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])[manifest["tensors"][0]["name"]]
    content[8 + int.from_bytes(content[:8], "little") + entry["data_offsets"][0]] ^= 1
    shard.write_bytes(content)
    error = refused(hub, directory)
    assert isinstance(error, VerificationError)
    assert error.mismatches == (f"{manifest['tensors'][0]['name']}: SHA-256 differs from the manifest",)


def test_a_file_that_differs_from_the_base_is_refused(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    directory = edited()
    untouched = directory / "model-00002-of-00003.safetensors"
    content = bytearray(untouched.read_bytes())
    content[-1] ^= 1
    untouched.write_bytes(content)
    (directory / "tokenizer.json").write_text("{}")
    error = refused(hub, directory)
    assert isinstance(error, VerificationError)
    assert error.mismatches == tuple(
        f"{name}: differs from the file of {BASE}" for name in (untouched.name, "tokenizer.json")
    )


def test_a_missing_file_is_named(hub: WritableHub, base: dict[str, bytes], edited: Edited) -> None:
    directory = edited()
    (directory / "tokenizer.json").unlink()
    error = refused(hub, directory)
    assert isinstance(error, CheckpointError)
    assert error.what == "files of the output are missing: tokenizer.json"


def test_a_directory_without_a_manifest_is_refused(hub: WritableHub, snapshot: Path) -> None:
    assert refused(hub, snapshot).what == "there is no readable qkedit.json"


# --- the hub


def test_a_private_repository_is_made_private_and_a_public_one_refused(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    directory = edited()
    report = qkedit.push(directory, REPO, private=True)
    assert hub.writes()[0] == f"create {REPO}, private"
    assert hub.repositories[REPO].private
    assert report.as_dict()["private"] is True
    assert qkedit.push(directory, REPO, private=True).commit is None
    hub.repositories[REPO].private = False
    assert refused(hub, directory, private=True).what == "exists and is public"


def test_a_branch_is_made_from_the_default_one(hub: WritableHub, base: dict[str, bytes], edited: Edited) -> None:
    hub.add(REPO, {".gitattributes": b"x"})
    directory = edited()
    qkedit.push(directory, REPO, branch="k4/strong")
    written = hub.writes()
    assert (written[0], written[-1]) == (f"branch k4/strong of {REPO}", f"commit {REPO}")
    assert set(hub.repositories[REPO].files()) == {".gitattributes"}
    assert "qkedit.json" in hub.repositories[REPO].files("k4/strong")
    assert qkedit.push(directory, REPO, branch="k4/strong").commit is None


def test_a_concurrent_commit_is_not_overwritten(hub: WritableHub, base: dict[str, bytes], edited: Edited) -> None:
    hub.add(REPO, {".gitattributes": b"x"})
    branch = hub.repositories[REPO].branches["main"]
    hub.faults.before_commit = lambda: branch.commits.append(("f" * 40, {"other": b""}))
    with pytest.raises(PushFailed, match="somebody else committed to it in the meantime"):
        qkedit.push(edited(), REPO)
    assert branch.head == "f" * 40


def test_shards_that_the_hub_does_not_copy_can_be_uploaded(
    hub: WritableHub, base: dict[str, bytes], edited: Edited
) -> None:
    hub.faults.uncopied = "another region"
    directory = edited()
    with pytest.raises(PushFailed) as raised:
        qkedit.push(directory, REPO)
    assert "another region" in raised.value.what
    assert "--no-copy" in raised.value.remedy
    hub.writes()
    report = qkedit.push(directory, REPO, copy=False)
    assert {file.action for file in report.plan.files} == {"upload"}
    assert (
        len([write for write in hub.writes() if write.startswith("upload")]) == 2
    )  # the edited one is already on the hub


def test_a_base_that_is_not_on_the_hub_is_named(hub: WritableHub, edited: Edited) -> None:
    error = refused(hub, edited())
    assert (error.where, error.what) == (
        f"the base {BASE}",
        "the hub does not have this model, or no longer, or the model is private",
    )


# --- the command line


def command(*arguments: str | Path) -> Result:
    result = run("push", *arguments)
    assert TOKEN not in result.stdout + result.stderr
    assert "X-Amz-Signature" not in result.stdout + result.stderr
    return result


def test_the_command_lists_the_action_of_each_file(hub: WritableHub, base: dict[str, bytes], edited: Edited) -> None:
    directory = edited()
    result = command(directory, REPO, "--dry-run", "--private")
    assert (result.code, result.stderr) == (0, "")
    assert "model-00002-of-00003.safetensors" in result.stdout
    assert result.stdout.count(f"copied from {BASE}") == 2
    for said in (f"{REPO} (new, private)", "apache-2.0", "Nothing was sent."):
        assert said in result.stdout
    assert hub.writes() == []
    document = command(directory, REPO, "--json").document
    assert document["commit"] == hub.repositories[REPO].head()
    assert {file["name"]: file["action"] for file in document["files"]}["model-00002-of-00003.safetensors"] == "copy"
    assert "there was nothing to commit" in command(directory, REPO).stdout
    assert command(directory, REPO, "--quiet").stdout == ""


@pytest.mark.parametrize(
    ("status", "message", "said"),
    [
        (401, "Invalid username or password", "`hf auth login` with a token that can write for me"),
        (403, "storage limit reached", "the hub refuses to create the repository (403: storage limit reached)"),
        (429, "", "wait some minutes"),
        (400, f"bad https://s3/x?X-Amz-Signature=y {TOKEN}", "request to create the repository (400: bad …"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(
    hub: WritableHub, base: dict[str, bytes], edited: Edited, status: int, message: str, said: str
) -> None:
    hub.faults.refused = {f"create {REPO}": (status, message)}
    result = command(edited(), REPO)
    assert result.code == 1
    assert said in result.sentence()


@pytest.mark.parametrize("repository", ["edited", "./edited", "a/b/c", "", "me/ed ited"])
def test_a_repository_needs_an_owner_and_a_name(hub: WritableHub, edited: Edited, repository: str) -> None:
    result = command(edited(), repository)
    assert (result.code, hub.log) == (2, [])
    assert "is not a repository's name" in result.sentence()


def test_a_missing_network_or_login_is_an_error_at_once(
    hub: WritableHub, edited: Edited, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = edited()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in command(directory, REPO, "--dry-run").sentence()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "you are not logged in to the hub" in command(directory, REPO).sentence()
    assert hub.log == []
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    result = command(directory, REPO, "--dry-run")
    assert "the connection to the hub failed" in result.sentence()
