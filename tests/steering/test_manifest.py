"""Test `qkedit.json`: it is complete, reproducible and chained, and checked when it is read."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qkedit
from qkedit.api.editing import steer
from qkedit.checkpoint.manifest_file import (
    EditControl,
    EditedChannel,
    HeadEdit,
    Manifest,
    RecordedBase,
    RecordedOptions,
    TensorEdit,
    Tool,
)
from qkedit.errors import CheckpointError
from qkedit.spectral.suppression import Channel, Control
from qkedit.steering.manifest import read_manifest
from qkedit.steering.plan import plan_for
from qkedit.steering.run import check_plan
from qkedit.steering.steer_options import SteerOptions
from tests.steering.checkpoints import contents, query_name, tensors_of
from tests.steering.manifests import SMALL, small_file

TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ['"heads": null', '"tensors": null', "\\", "\n", "heads", "tensors"]
)
NUMBERS = st.integers(-(2**64) + 1, 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
SHARES = st.floats(0, 1)
HEADS = st.builds(
    HeadEdit,
    head=st.integers(0, 99),
    key_head=st.integers(0, 99),
    suppressed=st.lists(st.floats(0, 1e9), max_size=4).map(tuple),
    energy_removed=SHARES,
    gap=st.none() | st.floats(1, 1e300),
    relative_change=st.floats(0, 10),
    unrealized_share=SHARES,
    leak=SHARES,
    scale=st.none() | st.floats(0, 10),
    key_bias_effect=st.none() | st.floats(0, 10),
)
TENSORS = st.builds(
    TensorEdit,
    name=TEXT,
    shard=TEXT,
    layer=st.integers(0, 200),
    form=TEXT,
    norm=st.none() | TEXT,
    dtype=TEXT,
    shape=st.lists(st.integers(0, 9999), max_size=3).map(tuple),
    sha256_before=TEXT,
    sha256_after=TEXT,
    heads=st.lists(HEADS, min_size=1, max_size=3, unique_by=lambda head: head.head).map(tuple),
)
OPTIONS = st.builds(
    RecordedOptions,
    layers=TEXT,
    heads=TEXT,
    k=st.integers(1, 99),
    energy=st.none() | st.floats(0, 1, exclude_min=True),
    retain=st.floats(0, 1, exclude_max=True),
    channel=st.sampled_from(EditedChannel),
    control=st.sampled_from(EditControl),
    seed=st.integers(0, 2**64 - 1),
    compute_dtype=TEXT,
    device=TEXT,
)
MANIFESTS = st.builds(
    Manifest,
    tool=st.builds(Tool, name=TEXT, version=TEXT),
    libraries=st.dictionaries(TEXT, TEXT, max_size=2),
    base=st.builds(RecordedBase, model=TEXT, revision=st.none() | TEXT),
    understood_as=st.none() | TEXT,
    options=OPTIONS,
    tensors=st.lists(TENSORS, min_size=1, max_size=3, unique_by=lambda tensor: tensor.name).map(tuple),
    files=st.lists(TEXT, max_size=3).map(tuple),
    generated=st.dictionaries(TEXT, TEXT, max_size=2),
    history=st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=2).map(tuple),
)


@settings(max_examples=40)
@given(MANIFESTS)
def test_a_manifest_is_read_as_written(manifest: Manifest) -> None:
    content = manifest.to_json()
    assert json.loads(content) == manifest.as_dict()
    assert Manifest.from_json(content, "here") == manifest
    assert Manifest.from_json(content, "here").to_json() == content


@settings(max_examples=40)
@given(MANIFESTS)
def test_every_head_has_a_separate_line(manifest: Manifest) -> None:
    lines = [line.strip().rstrip(",") for line in manifest.to_json().decode().split("\n")]
    for tensor in manifest.as_dict()["tensors"]:
        for head in tensor["heads"]:
            assert json.dumps(head, ensure_ascii=False) in lines


@settings(max_examples=40)
@given(manifest=MANIFESTS, key=st.text(min_size=1).map("later {}".format), value=VALUES, data=st.data())
def test_keys_of_a_later_version_are_ignored(manifest: Manifest, key: str, value: Any, data: st.DataObject) -> None:
    found = manifest.as_dict()
    places = [found, found["tool"], found["base"], found["options"], found["tensors"][0]]
    data.draw(st.sampled_from([*places, found["tensors"][0]["heads"][0]]))[key] = value
    assert Manifest.from_json(json.dumps(found).encode(), "here") == manifest


def test_the_keys_of_the_file_are_terms_of_the_mathematics() -> None:
    assert tuple(EditedChannel) == get_args(Channel)
    assert tuple(EditControl) == get_args(Control)


def test_the_manifest_describes_the_run(base: Path, tmp_path: Path) -> None:
    report = steer(base, out=tmp_path / "edited", layers="1", heads="0-2", k=2, seed=4, device="cpu", fsync=False)
    found = json.loads((tmp_path / "edited" / "qkedit.json").read_bytes())
    assert found == report.manifest.as_dict()
    assert found["schema"] == 2
    assert found["tool"] == {"name": "qkedit", "version": qkedit.__version__}
    assert set(found["libraries"]) == {"torch", "numpy", "accelerate"}
    assert found["base"] == {"model": "base", "revision": None}
    assert found["options"] == {
        "layers": "1",
        "heads": "0-2",
        "k": 2,
        "energy": None,
        "retain": 0.0,
        "channel": "full",
        "control": "none",
        "seed": 4,
        "compute_dtype": "float32",
        "device": "cpu",
    }
    (tensor,) = found["tensors"]
    for when, directory in (("before", base), ("after", tmp_path / "edited")):
        raw = tensors_of(directory)[query_name(1)].numpy().tobytes()
        assert tensor[f"sha256_{when}"] == hashlib.sha256(raw).hexdigest()
    assert (tensor["name"], tensor["layer"], tensor["dtype"], tensor["shape"]) == (query_name(1), 1, "F32", [32, 32])
    assert query_name(1).encode() in (base / tensor["shard"]).read_bytes()
    assert [head["head"] for head in tensor["heads"]] == [0, 1, 2]
    assert [head["key_head"] for head in tensor["heads"]] == [0, 0, 1]
    assert found["history"] == []


def test_two_runs_write_the_same_bytes_to_any_directory(base: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    outs = [tmp_path / "one", tmp_path / "elsewhere" / "another name"]
    moved = shutil.copytree(base, tmp_path / "elsewhere" / "base")
    for source, out in zip((base, moved), outs, strict=True):
        steer(source, out=out, layers="all", k=3, control="norm", seed=9, fsync=False)
    first, second = map(contents, outs)
    assert first == second
    for place in (str(tmp_path), "another name", "elsewhere"):
        assert not any(place.encode() in content for content in first.values())


def test_steering_again_chains_the_manifests(base: Path, tmp_path: Path) -> None:
    source = base
    for number, out in enumerate(("first", "second", "third")):
        steer(source, out=tmp_path / out, layers=str(number), k=1, fsync=False)
        source = tmp_path / out
    first, second, third = (read_manifest(tmp_path / name) for name in ("first", "second", "third"))
    assert first.history == ()
    assert second.history == (without_history(first),)
    assert third.history == (without_history(first), without_history(second))
    assert [entry.base.model for entry in (first, second, third)] == ["base", "first", "second"]
    # The same layer again: the earlier hash after the edit is the hash before this one.
    steer(tmp_path / "third", out=tmp_path / "fourth", layers="0", k=1, fsync=False)
    fourth = read_manifest(tmp_path / "fourth")
    assert fourth.tensors[0].sha256_before == first.tensors[0].sha256_after


def without_history(manifest: Manifest) -> dict[str, Any]:
    return {name: value for name, value in manifest.as_dict().items() if name != "history"}


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [path] * bool(path) + [found for name, child in items for found in paths_of(child, (*path, name))]


@given(st.data())
def test_a_changed_manifest_is_valid_or_refused_in_one_sentence(data: st.DataObject) -> None:
    """Replace or remove any part of the manifest."""
    found = small_file()
    *way, last = data.draw(st.sampled_from(paths_of(found)))
    place = found
    for name in way:
        place = place[name]
    if data.draw(st.booleans()) or isinstance(place, list):
        place[last] = data.draw(VALUES)
    else:
        del place[last]
    try:
        parsed = Manifest.from_json(json.dumps(found).encode(), "here")
    except CheckpointError as error:
        sentence = str(error)
    else:
        assert Manifest.from_json(parsed.to_json(), "here") == parsed
        return
    assert re.fullmatch(r"here(, .+)?: .+; (write the output again|update qkedit)\.", sentence)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema": NaN}',
        b'{"schema": 1, "schema": 2}',
        b'{"k": ' + b"9" * 5000,
    ],
    ids=lambda content: repr(content[:24]),
)
def test_invalid_json_is_refused_in_one_sentence(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^here: is not a manifest \(.+\); write the output again\.$"):
        Manifest.from_json(content, "here")


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"schema": "1"}', '{"schema": true}', '{"schema": 0}'])
def test_a_manifest_without_a_schema_is_refused_in_one_sentence(content: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"^here: is not a manifest \(its schema is .+\); write the output again\.$"
    ):
        Manifest.from_json(content.encode(), "here")


def test_a_later_schema_is_refused_with_the_update_as_remedy() -> None:
    with pytest.raises(CheckpointError, match=r"later qkedit \(schema 3\); update qkedit"):
        Manifest.from_json(b'{"schema": 3, "other": "fields"}', "here")


def changed(path: str, value: Any) -> bytes:
    found = place = small_file()
    *way, last = (int(name) if name.isdigit() else name for name in path.split())
    for name in way:
        place = place[name]
    place[last] = value
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"schema": 2}', "here: lacks tool, base, tensors, history"),
        (b'{"schema": 1, "tensors": {}, "options": []}', "here: lacks tool, base, history"),
        (changed("options k", "4"), "here, options, k: is '4', not a whole number"),
        (changed("options channel", "symetric"), "here, options, channel: is 'symetric', which is not a known word"),
        (
            changed("options channel", "symmetric"),
            "here: has a head of the symmetric channel without unrealized_share",
        ),
        (changed("tensors", []), "here: lists no tensors"),
        (changed("tensors", 2 * small_file()["tensors"]), "here: lists a tensor twice"),
        (changed("tensors 0 heads", []), "here, tensors 1: lists no heads"),
        (changed("tensors 0 heads 0 gap", "wide"), "here, tensors 1, heads 1, gap: is 'wide', not a number or null"),
        (changed("tensors 0 heads 0 head", True), "here, tensors 1, heads 1, head: is True, not a whole number"),
        (changed("history", {}), "here, history: is {}, not a list"),
        (changed("generated", {"README.md": 3}), "here, generated.README.md: is 3, not text"),
    ],
)
def test_an_invalid_value_is_refused_by_key(content: bytes, sentence: str) -> None:
    with pytest.raises(CheckpointError) as error:
        Manifest.from_json(content, "here")
    assert str(error.value).startswith(sentence)
    assert str(error.value).endswith("; write the output again.")


def test_a_base_with_a_broken_manifest_is_refused_before_writing(base: Path, tmp_path: Path) -> None:
    source = shutil.copytree(base, tmp_path / "source")
    (source / "qkedit.json").write_text("{}")
    complaint = r"source/qkedit.json: is not a manifest \(.+\); update qkedit; or, if another program wrote it"
    with pytest.raises(CheckpointError, match=complaint):
        steer(source, out=tmp_path / "edited", layers="0", fsync=False)
    plan = plan_for(str(source), SteerOptions("0"))
    with pytest.raises(CheckpointError, match=complaint):
        check_plan(plan, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "source"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_outside_json_are_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        replace(SMALL, made_of=({"strength": value},)).to_json()
