"""`qkedit.json`: complete, reproducible, chained, and never trusted when it is read again."""

from __future__ import annotations

import hashlib
import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qkedit
from qkedit.errors import CheckpointError
from qkedit.steering.manifest import dump_manifest, parse_manifest, read_manifest
from qkedit.steering.options import SteerOptions
from qkedit.steering.plan import plan_for
from qkedit.steering.run import check_plan, steer
from tests.steering.checkpoints import contents, query_name, tensors_of

TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ['"heads": null', '"tensors": null', "\\", "\n", "heads", "tensors"]
)
NUMBERS = st.integers(-(2**64) + 1, 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
HEADS = st.fixed_dictionaries(
    {
        "head": st.integers(0, 99),
        "key_head": st.integers(0, 99),
        "suppressed": st.lists(st.floats(0, 1e9), max_size=4),
        "energy_removed": st.floats(0, 1),
        "gap": st.none() | st.floats(1, 1e300),
        "relative_change": st.floats(0, 10),
    },
    optional={"heads": VALUES, "residual": st.floats(0, 1)},
)
TENSORS = st.fixed_dictionaries(
    {
        "name": TEXT,
        "shard": TEXT,
        "layer": st.integers(0, 200),
        "dtype": TEXT,
        "shape": st.lists(st.integers(0, 9999), max_size=3),
        "sha256_before": TEXT,
        "sha256_after": TEXT,
        "heads": st.lists(HEADS, min_size=1, max_size=3),
    },
    optional={"tensors": VALUES, "form": TEXT},
)
OPTIONS = st.fixed_dictionaries(
    {
        "k": st.integers(1, 99),
        "energy": st.none() | st.floats(0, 1),
        "residual": st.floats(0, 1),
        "channel": st.just("full"),
        "control": st.sampled_from(["none", "index", "norm"]),
        "seed": st.integers(0, 2**64 - 1),
    },
    optional={"tensors": VALUES, "heads": VALUES},
)
MANIFESTS = st.fixed_dictionaries(
    {
        "schema": st.just(1),
        "tool": st.fixed_dictionaries({"name": TEXT, "version": TEXT}),
        "base": st.fixed_dictionaries({"model": TEXT, "revision": st.none() | TEXT}, optional={"tensors": VALUES}),
        "options": OPTIONS,
        "tensors": st.lists(TENSORS, min_size=1, max_size=3, unique_by=lambda tensor: tensor["name"]),
        "history": st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=2),
    }
)


@given(MANIFESTS)
def test_what_is_dumped_is_what_is_parsed(manifest: dict[str, Any]) -> None:
    content = dump_manifest(manifest)
    assert json.loads(content) == manifest
    assert parse_manifest(content, "here") == manifest
    assert dump_manifest(parse_manifest(content, "here")) == content


@given(MANIFESTS)
def test_every_head_has_a_line_of_its_own(manifest: dict[str, Any]) -> None:
    for tensor in manifest["tensors"]:
        for head in tensor["heads"]:
            head.pop("heads", None)
    lines = [line.strip().rstrip(",") for line in dump_manifest(manifest).decode().split("\n")]
    for tensor in manifest["tensors"]:
        for head in tensor["heads"]:
            assert json.dumps(head, ensure_ascii=False) in lines


@pytest.fixture
def manifest(base: Path, tmp_path: Path) -> dict[str, Any]:
    steer(base, out=tmp_path / "edited", layers="0-1", k=2, fsync=False)
    return read_manifest(tmp_path / "edited")


def test_the_manifest_says_what_was_done(base: Path, tmp_path: Path) -> None:
    report = steer(base, out=tmp_path / "edited", layers="1", heads="0-2", k=2, seed=4, device="cpu", fsync=False)
    found = json.loads((tmp_path / "edited" / "qkedit.json").read_bytes())
    assert found == json.loads(json.dumps(report.manifest))
    assert found["schema"] == 1
    assert found["tool"] == {"name": "qkedit", "version": qkedit.__version__}
    assert set(found["libraries"]) == {"torch", "numpy", "accelerate"}
    assert found["base"] == {"model": "base", "revision": None}
    assert found["options"] == {
        "layers": "1",
        "heads": "0-2",
        "k": 2,
        "energy": None,
        "residual": 0.0,
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


def test_two_runs_give_the_same_bytes_wherever_they_write(base: Path, tmp_path: Path) -> None:
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
    assert first["history"] == []
    assert second["history"] == [without_history(first)]
    assert third["history"] == [without_history(first), without_history(second)]
    assert [entry["base"]["model"] for entry in (first, second, third)] == ["base", "first", "second"]
    # The same layer again: what was written then is what is found now.
    steer(tmp_path / "third", out=tmp_path / "fourth", layers="0", k=1, fsync=False)
    fourth = read_manifest(tmp_path / "fourth")
    assert fourth["tensors"][0]["sha256_before"] == first["tensors"][0]["sha256_after"]


def without_history(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name != "history"}


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [path] * bool(path) + [found for name, child in items for found in paths_of(child, (*path, name))]


@given(st.data())
def test_a_broken_manifest_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever is replaced or taken away: one error class, or a manifest whose fields are still what is read."""
    manifest = deepcopy(SMALL)
    path = data.draw(st.sampled_from(paths_of(manifest)))
    *way, last = path
    place = manifest
    for name in way:
        place = place[name]
    if data.draw(st.booleans()) or isinstance(place, list):
        place[last] = data.draw(VALUES)
    else:
        del place[last]
    try:
        parsed = parse_manifest(json.dumps(manifest).encode(), "here")
    except CheckpointError as error:
        sentence = str(error)
    else:
        assert all(isinstance(head["energy_removed"], int | float) for t in parsed["tensors"] for head in t["heads"])
        assert isinstance(parsed["base"]["model"], str)
        return
    assert sentence.startswith("here: ")


SMALL: dict[str, Any] = {
    "schema": 1,
    "tool": {"name": "qkedit", "version": "0"},
    "base": {"model": "m", "revision": None},
    "options": {"k": 1, "energy": None, "residual": 0.0, "channel": "full", "control": "none", "seed": 0},
    "tensors": [
        {
            "name": "t",
            "shard": "s",
            "layer": 0,
            "dtype": "F32",
            "shape": [1, 1],
            "sha256_before": "0",
            "sha256_after": "1",
            "heads": [
                {
                    "head": 0,
                    "key_head": 0,
                    "suppressed": [1.0],
                    "energy_removed": 0.5,
                    "gap": None,
                    "relative_change": 0.5,
                }
            ],
        }
    ],
    "history": [],
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema": 1}',
        b'{"schema": "1"}',
        b'{"schema": 1, "tensors": {}}',
        json.dumps(SMALL).replace("0.5", "NaN").encode(),
        json.dumps(SMALL).replace('"layer": 0', '"layer": ' + "9" * 5000).encode(),
        json.dumps(SMALL | {"tensors": []}).encode(),
        json.dumps(SMALL | {"tensors": SMALL["tensors"] * 2}).encode(),
        json.dumps(SMALL | {"tensors": [SMALL["tensors"][0] | {"heads": []}]}).encode(),
        json.dumps(SMALL | {"options": SMALL["options"] | {"channel": "symmetric"}}).encode(),  # heads have no leak
        json.dumps(SMALL | {"options": SMALL["options"] | {"channel": "other"}}).encode(),
        json.dumps(SMALL | {"options": SMALL["options"] | {"control": "other"}}).encode(),
    ],
    ids=lambda content: repr(content[:24]),
)
def test_what_is_no_manifest_is_refused_in_one_sentence(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^here: is not a complete manifest; write the output again\.$"):
        parse_manifest(content, "here")


def test_a_later_schema_asks_for_an_update() -> None:
    with pytest.raises(CheckpointError, match=r"later qkedit \(schema 2\); update qkedit"):
        parse_manifest(b'{"schema": 2, "other": "fields"}', "here")


def test_a_base_with_a_broken_manifest_is_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    source = shutil.copytree(base, tmp_path / "source")
    (source / "qkedit.json").write_text("{}")
    complaint = r"source/qkedit.json: is not a complete manifest; update qkedit, or remove or rename it"
    with pytest.raises(CheckpointError, match=complaint):
        steer(source, out=tmp_path / "edited", layers="0", fsync=False)
    plan = plan_for(str(source), SteerOptions("0"))
    with pytest.raises(CheckpointError, match=complaint):
        check_plan(plan, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "source"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_json_is_never_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump_manifest(SMALL | {"options": SMALL["options"] | {"residual": value}})
