"""Test that records are read correctly, or refused in one sentence with file and key."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qkedit.checkpoint.architecture.schema import Decoder, Explanation, Family, ProjectionLayout, Refusal
from qkedit.checkpoint.presets import Preset
from qkedit.checkpoint.record_reader import RecordError, read_record, read_records
from qkedit.configuration_files import configuration_directory, parse_configuration
from qkedit.errors import QkeditError

DECODER = {"name": "Some", "model_types": ["some"], "layouts": ["separate"], "rope": "rotary"}
NORM = {"kind": "rms", "query": "q_norm", "key": "k_norm"}
LAYOUT = {
    "name": "some",
    "attention": r"layers\.(?P<layer>\d+)\.attn",
    "query": {"tensor": "qkv", "per": "key head", "rows": ["query", "key", "value"]},
    "key": {"tensor": "qkv", "per": "key head", "rows": ["query", "key", "value"]},
}


@dataclass(frozen=True)
class Shipped:
    """Return one record of `configs/` as parsed YAML."""

    kind: Any
    value: dict[str, Any]
    file: str


def shipped() -> list[Shipped]:
    found = []
    for directory, kind in (("decoders", Decoder), ("layouts", ProjectionLayout), ("families", Family)):
        for path in sorted((configuration_directory() / directory).glob("*.yaml")):
            found.append(Shipped(kind, parse_configuration(path.read_bytes(), path.name), path.name))
    lists = [(Explanation, "explained.yaml"), (Refusal, "refusals.yaml")]
    lists += [(Preset, f"presets/{path.name}") for path in (configuration_directory() / "presets").glob("*.yaml")]
    for kind, file in lists:
        values = parse_configuration((configuration_directory() / file).read_bytes(), file)
        found += [Shipped(kind, value, file) for value in values]
    return found


SHIPPED = shipped()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all keys and items of a record."""
    if isinstance(value, dict):
        return [place for key, item in value.items() for place in [(*path, key), *places(item, (*path, key))]]
    if isinstance(value, list):
        return [place for index, item in enumerate(value) for place in [(*path, index), *places(item, (*path, index))]]
    return []


def refused(kind: Any, value: Any) -> str:
    with pytest.raises(RecordError) as error:
        read_record(kind, value, "some.yaml")
    sentence = str(error.value)
    assert sentence.startswith("some.yaml")
    assert "\n" not in sentence
    return sentence


@given(st.data())
def test_a_changed_record_is_equal_or_refused_in_one_sentence(data: st.DataObject) -> None:
    record = data.draw(st.sampled_from(SHIPPED), "record")
    path = data.draw(st.sampled_from(places(record.value)), "place")
    value = copy.deepcopy(record.value)
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    change = data.draw(st.sampled_from(["misspell the key", "another type", "reorder"]), "change")
    if change == "reorder":
        reordered = dict(reversed(value.items()))
        assert read_record(record.kind, reordered, "f") == read_record(record.kind, record.value, "f")
    elif change == "misspell the key":
        if isinstance(path[-1], str):
            holder[path[-1] + data.draw(st.sampled_from("sx_ "), "letter")] = holder.pop(path[-1])
            refused(record.kind, value)
    else:
        wrong: list[Any] = [{"a": 1}, [[]], -1.5, b"x"]
        holder[path[-1]] = data.draw(st.sampled_from(wrong), "value")
        refused(record.kind, value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_any_invalid_value_is_refused_in_one_sentence(value: Any) -> None:
    for kind, key in ((Decoder, "norm"), (Decoder, "rope"), (ProjectionLayout, "query"), (Preset, "scr")):
        base = DECODER if kind is Decoder else LAYOUT if kind is ProjectionLayout else {}
        if value is None or value in ("rotary", "none", "unknown"):
            continue
        refused(kind, base | {key: value})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rope": "interleavd rotary"}, "rope: is 'interleavd rotary', which is not a known word; "
         "did you mean 'interleaved rotary'?"),
        ({"rope": "rotary interleaved"}, "which is not a known word; did you mean"),
        ({"rop": "rotary"}, "has the unknown key 'rop'; did you mean 'rope'?"),
        ({"layouts": "separate"}, "layouts: is 'separate', not a list; correct the record."),
        ({"layouts": []}, "layouts: is [], not a list"),
        ({"name": ""}, "name: is '', not text"),
        ({"name": 7}, "name: is 7, not text"),
        ({"model_types": ["a", 1]}, "model_types: is 1, not text"),
        ({"norm": NORM | {"kind": "layernorm"}}, "norm, kind: is 'layernorm', which is not a known word; "
         "did you mean 'layer norm'?"),
        ({"norm": {"kind": "rms"}}, "norm: rms needs query and key"),
        ({"norm": {"kind": "l2", "query": "q", "key": "k"}}, "norm: l2 has no gains"),
        ({"norm": NORM | {"mlx": "rms"}}, "norm: mlx is only for one-plus rms"),
        ({"defaults": {"num_atention_heads": 4}}, "did you mean 'num_attention_heads'"),
        ({"defaults": {"num_attention_heads": True}}, "defaults.num_attention_heads is True, not a count"),
        ({"defaults": {"hidden_size": "4096"}}, "defaults.hidden_size is '4096', not a count"),
        ({"shared_keys": True}, "shared_keys: is True, not text or null"),
        ({"unrotated": {"layers": "a", "value": True, "period": "b"}}, "value: is True, not text or a whole number"),
    ],
)  # fmt: skip
def test_an_invalid_decoder_is_refused_by_key(change: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(Decoder, DECODER | change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"attention": "("}, "attention: is not a regular expression"),
        ({"attention": "attn"}, "attention must name one group"),
        ({"key": LAYOUT["key"] | {"rows": ["query", "value"]}}, "key.rows does not name key"),  # type: ignore[operator]
        ({"key": LAYOUT["key"] | {"rows": ["key", "key"]}}, "key, rows names one kind"),  # type: ignore[operator]
        ({"key": LAYOUT["key"] | {"rows": ["kee"]}}, "did you mean 'key'"),  # type: ignore[operator]
        ({"key": LAYOUT["key"] | {"per": "head"}}, "did you mean"),  # type: ignore[operator]
        ({"key": LAYOUT["key"] | {"per": "query head"}}, "not one key per query head"),  # type: ignore[operator]
    ],
)
def test_an_invalid_layout_is_refused_by_key(change: dict[str, Any], sentence: str) -> None:
    assert sentence.replace("key, rows names", "rows names") in refused(ProjectionLayout, LAYOUT | change)


def test_an_error_in_a_list_has_the_number_of_its_record() -> None:
    with pytest.raises(RecordError, match=r"^f\.yaml, record 2: lacks reason; correct the record\.$"):
        read_records(Explanation, [{"tensor": "a", "reason": "b"}, {"tensor": "a"}], "f.yaml")


@pytest.mark.parametrize(
    "content",
    [
        "a: 1\na: 2",
        "a: &x {b: 1}\nc: {<<: *x}",
        "!!timestamp x",
        "a: !!int b",
        "a: !!python/name:os.system ''",
        "a: [1",
    ],
)
def test_invalid_or_ambiguous_yaml_is_refused(content: str) -> None:
    with pytest.raises(QkeditError, match=r"^f\.yaml: cannot be read \(.+\); ") as error:
        parse_configuration(content.encode(), "f.yaml")
    assert "\n" not in str(error.value)


def test_yaml_aliases_are_not_expanded_in_an_error() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)) + "rope: *a39\n"
    assert len(refused(Decoder, {**DECODER, "rope": yaml.safe_load(bomb)["rope"]})) < 1_000
