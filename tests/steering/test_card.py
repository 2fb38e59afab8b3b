"""Test the model card: fields from the card of the base, and unusual content of that card."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qkedit.api.editing import steer
from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.manifest_file import RecordedBase
from qkedit.errors import UsageError
from qkedit.steering.card import make_card
from qkedit.steering.verify import verify

BASE_CARD = """---
license: other
license_name: tongyi
license_link: https://example.org/a---b
language:
- en
- "no"
pipeline_tag: image-text-to-text
library_name: transformers
tags: [multimodal, 7]
datasets: [org/data]
model-index: [not, a, list, of, results]
---
# Base

--- and a line
"""


def front_matter(card: bytes) -> dict[str, Any]:
    _, header, _ = card.decode().split("---\n", 2)
    return yaml.safe_load(header)


def steered(source: Path, out: Path, **options: Any) -> bytes:
    steer(source, out=out, **{"layers": "1", "fsync": False, **options})
    return (out / "README.md").read_bytes()


def with_card(base: Path, directory: Path, card: str | bytes) -> Path:
    shutil.copytree(base, directory)
    (directory / "README.md").write_bytes(card.encode() if isinstance(card, str) else card)
    return directory


def test_licence_and_task_are_inherited_and_a_local_base_is_not_named(base: Path, tmp_path: Path) -> None:
    source = with_card(base, tmp_path / "source", BASE_CARD)
    fields = front_matter(steered(source, tmp_path / "edited"))
    assert fields == {
        "license": "other",
        "license_name": "tongyi",
        "license_link": "https://example.org/a---b",
        "language": ["en", "no"],
        "pipeline_tag": "image-text-to-text",
        "library_name": "transformers",
        "tags": ["7", "multimodal", "qkedit"],
    }
    assert (tmp_path / "edited" / "README.base.md").read_text() == BASE_CARD


def test_a_base_on_the_hub_is_the_base_model(base: Path, tmp_path: Path) -> None:
    report = steer(base, out=tmp_path / "edited", layers="1", fsync=False)
    manifest = replace(report.manifest, base=RecordedBase(model="org/name", revision="0123abcd"))
    card = make_card(open_checkpoint(LocalFiles(base)), manifest)
    fields = front_matter(card)
    assert (fields["base_model"], fields["base_model_relation"]) == ("org/name", "finetune")
    assert b"`0123abcd`" in card


def test_the_card_describes_the_edit(base: Path, tmp_path: Path) -> None:
    report = steer(base, out=tmp_path / "edited", layers="0-1", k=3, retain=0.125, fsync=False)
    text = (tmp_path / "edited" / "README.md").read_text()
    energy = sum(head.energy_removed for head in report.heads) / len(report.heads)
    moved = sum(head.relative_change for head in report.heads) / len(report.heads)
    for said in ("layers 0-1", "8 heads", "3 per head", "12.5%", f"{energy:.1%}", f"{moved:.1%}", "verify", "Undo"):
        assert said in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retain": 0.999}, "99.9%"),
        ({"retain": 0.001}, "0.1%"),
        ({"energy": 0.005}, "0.5%"),
        ({"control": "index", "seed": 5}, "seed 5"),
        ({"control": "norm"}, "control"),
        ({"channel": "symmetric"}, "symmetric part"),
    ],
)
def test_the_card_names_the_options(base: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    assert said in steered(base, tmp_path / "edited", **options).decode()


UNUSUAL: dict[str, bytes] = {
    "no front matter": b"# Model\n---\nlicense: mit\n---\n",
    "not closed": b"---\nlicense: mit\n",
    "not a mapping": b"---\n- license\n---\n",
    "invalid YAML": b"---\nlicense: [mit\n---\n",
    "an invalid date": b"---\ndate: 2024-02-30\n---\n",
    "python objects": b"---\nlicense: !!python/object/apply:os.system [true]\n---\n",
    "too deep": b"---\na: " + b"[" * 5000 + b"\n---\n",
    "tags are not a list": b"---\ntags: {a: b}\n---\n",
    "not UTF-8": b"---\nlicense: \xff\xfe\n---\n",
    "empty": b"",
}


@pytest.mark.parametrize("card", UNUSUAL)
def test_an_unusual_base_card_is_kept_without_errors(base: Path, tmp_path: Path, card: str) -> None:
    source = with_card(base, tmp_path / "source", UNUSUAL[card])
    fields = front_matter(steered(source, tmp_path / "edited"))
    assert "qkedit" in fields["tags"]
    assert "base_model" not in fields
    assert (tmp_path / "edited" / "README.base.md").read_bytes() == UNUSUAL[card]


def test_line_ends_and_byte_order_marks_of_windows_are_understood(base: Path, tmp_path: Path) -> None:
    source = with_card(base, tmp_path / "source", b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n# Model\r\n")
    assert front_matter(steered(source, tmp_path / "edited"))["license"] == "mit"


def test_a_base_without_a_card_gets_one_and_no_copy(base: Path, tmp_path: Path) -> None:
    card = steered(base, tmp_path / "edited")
    assert front_matter(card)["tags"] == ["qkedit"]
    assert b"README.base.md" not in card
    assert not (tmp_path / "edited" / "README.base.md").exists()


def test_steering_again_keeps_the_first_card_and_the_licence(base: Path, tmp_path: Path) -> None:
    source = with_card(base, tmp_path / "source", BASE_CARD)
    steered(source, tmp_path / "once", layers="0")
    card = steered(tmp_path / "once", tmp_path / "twice", layers="1")
    steered(tmp_path / "twice", tmp_path / "thrice", layers="2")
    assert front_matter(card)["license"] == "other"
    assert b"steered before, 1 time" in card
    for directory in ("once", "twice", "thrice"):
        assert (tmp_path / directory / "README.base.md").read_text() == BASE_CARD


def test_a_base_without_a_card_gets_no_base_card_later(base: Path, tmp_path: Path) -> None:
    first = steered(base, tmp_path / "once", layers="0")
    second = steered(tmp_path / "once", tmp_path / "twice", layers="1")
    assert not any((tmp_path / directory / "README.base.md").exists() for directory in ("once", "twice"))
    assert b"card is kept" not in first + second


def test_the_base_card_replaces_no_file_of_the_base(base: Path, tmp_path: Path) -> None:
    source = with_card(base, tmp_path / "source", BASE_CARD)
    (source / "README.base.md").write_text("the model that this one was trained from")
    card = steered(source, tmp_path / "edited")
    assert b"kept as `README.base.base.md`" in card
    assert (tmp_path / "edited" / "README.base.md").read_text() == "the model that this one was trained from"
    assert (tmp_path / "edited" / "README.base.base.md").read_text() == BASE_CARD
    assert verify(tmp_path / "edited", base=str(source)).mismatches == ()


def test_the_name_of_a_directory_may_not_be_utf8(base: Path, tmp_path: Path) -> None:
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        shutil.copytree(base, source)
    except OSError:
        pytest.skip("the file system accepts only names in UTF-8")
    assert b"caf\\udce9" in steered(source, tmp_path / "edited")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(12)
)


@pytest.mark.parametrize(
    "block",
    [
        f"license: mit\n{BOMB}",
        f"license: mit\n{BOMB}\ntags: *m",
        "license: &l {a: b}\nlanguage:\n  <<: [*l, *l]",
        "license: " + "[" * 5_000,
        "license: mit\nlanguage: " + "x" * 200_000,
        "license: mit\nlicense: apache-2.0",
    ],
)
def test_a_hostile_metadata_block_is_ignored(base: Path, tmp_path: Path, block: str) -> None:
    source = with_card(base, tmp_path / "source", f"---\n{block}\n---\n# Base\n")
    assert front_matter(steered(source, tmp_path / "edited")) == {"tags": ["qkedit"]}


def test_only_texts_and_lists_of_texts_are_inherited(base: Path, tmp_path: Path) -> None:
    block = "license: {a: b}\nlanguage: [en, {a: b}]\ntags: [[x]]\npipeline_tag: 1.10\nlicense_name: null"
    source = with_card(base, tmp_path / "source", f"---\n{block}\n---\n")
    assert front_matter(steered(source, tmp_path / "edited")) == {"pipeline_tag": "1.10", "tags": ["qkedit"]}


def test_a_rewritten_card_is_replaced_only_by_force(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "edited"
    steer(base, out=out, layers="1", fsync=False)
    steer(base, out=out, layers="1", k=2, overwrite=True, fsync=False)
    (out / "README.md").write_text("# What I found\n")
    with pytest.raises(UsageError, match=r"changed since qkedit wrote them \(README\.md\)"):
        steer(base, out=out, layers="1", overwrite=True, fsync=False)
    assert (out / "README.md").read_text() == "# What I found\n"
    assert verify(out, base=str(base)).mismatches == ()  # users may rewrite the card
    steer(base, out=out, layers="1", force=True, fsync=False)
    assert (out / "README.md").read_text() != "# What I found\n"
