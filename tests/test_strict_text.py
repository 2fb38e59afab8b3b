"""Test untrusted JSON and YAML: a plain value or a ValueError, with bounded memory and time."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qkedit.strict_text import (
    DECODER,
    MAX_DEPTH,
    MAX_YAML_DEPTH,
    MAX_YAML_LENGTH,
    json_lines,
    json_text,
    parse_json,
    parse_yaml,
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64) + 1, 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(values, st.booleans())
def test_valid_json_is_read_as_by_python(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text.encode()) == value


NOT_JSON: dict[str, tuple[bytes | str, str]] = {
    "not JSON": (b"{", "Expecting"),
    "not UTF-8": (b'"\xff"', "utf-8"),
    "NaN": (b'{"gap": NaN}', "NaN is not JSON"),
    "infinity": (b"[-Infinity]", "-Infinity is not JSON"),
    "an overflowing float": (b"1e999", "1e999 is beyond float64"),
    "an integer of 400 digits": (b"9" * 400, "400 digits is beyond float64"),
    "an integer of 10,000 digits": (b"9" * 10_000, "digits"),
    "a repeated key": (b'{"a": {"b": 1, "b": 1}}', "'b' occurs twice"),
    "half a surrogate pair": (rb'["\ud800"]', "not valid Unicode"),
    "half a surrogate pair in a key": (rb'{"a\uDFFF": 1}', "not valid Unicode"),
    "deep lists": (b"[" * 100_000, "is nested too deeply"),
    "deep objects": (b'{"a":' * 100_000, "is nested too deeply"),
}


@pytest.mark.parametrize("kind", NOT_JSON)
@pytest.mark.parametrize("file_names", [False, True])
def test_invalid_json_is_a_value_error(kind: str, file_names: bool) -> None:
    content, reason = NOT_JSON[kind]
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(content, file_names=file_names)
    assert len(str(caught.value)) < 300


def test_undecodable_bytes_are_allowed_only_in_file_names() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    text = json.dumps([name])
    assert parse_json(text, file_names=True) == [name]
    with pytest.raises(ValueError, match="Unicode"):
        parse_json(text)


@pytest.mark.parametrize("number", [2**128 - 1, -(10**298), 10**300 - 1])
def test_integers_of_many_digits_are_read(number: int) -> None:
    assert parse_json(str(number)) == number
    assert float(number) == pytest.approx(number)


def test_a_value_within_a_text_is_read_equally_strictly() -> None:
    assert DECODER.raw_decode('[{"a": 1}, {"a": 2}]', 1) == ({"a": 1}, 9)
    with pytest.raises(ValueError, match="'a' occurs twice"):
        DECODER.raw_decode('[{"a": 1, "a": 2}]', 1)


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_json(rb'"\ud83d\ude00"') == "😀"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[007, 1.10, no, 2024-02-30, 1_000]", ["007", "1.10", "no", "2024-02-30", "1_000"]),
        ("a: null\nb: ~\nc:\nd: 'null'\ne: \"\"", {"a": None, "b": None, "c": None, "d": "null", "e": ""}),
        ("- [x, 'y']\n- {a: b}", [["x", "y"], {"a": "b"}]),
        ("!!binary aGk=", "aGk="),
        ("!!python/object/apply:os.system [echo]", ["echo"]),
        ("<<: {a: 1}", {"<<": {"a": "1"}}),
        ("", None),
    ],
)  # fmt: skip
def test_scalars_in_yaml_are_read_as_text(text: str, value: Any) -> None:
    assert parse_yaml(text) == value


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(12)
)
NOT_YAML = {
    "an alias bomb": (BOMB, "aliases are refused"),
    "a merge bomb": ("a: &a {x: 1}\nb: {<<: [*a, *a, *a]}", "aliases are refused"),
    "a list that contains itself": ("&a [*a]", "aliases are refused"),
    "a repeated key": ("a: 1\nb: {c: 2, c: 3}", "'c' occurs twice"),
    "a list as a key": ("? [a]\n: 1", "unhashable"),
    "deep": ("[" * 5_000, "is nested too deeply"),
    "long": ("a" * (MAX_YAML_LENGTH + 1), "longer than"),
    "two documents": ("a\n---\nb", "single document"),
    "invalid YAML": ("a: [", "expected"),
}


@pytest.mark.parametrize("kind", NOT_YAML)
def test_invalid_yaml_is_a_value_error(kind: str) -> None:
    text, reason = NOT_YAML[kind]
    with pytest.raises(ValueError, match=reason) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        st.text("abc '\"#", max_size=6), lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner)
    )
)
def test_written_yaml_is_read(value: Any) -> None:
    assert parse_yaml(yaml.safe_dump(value)) == value


@given(st.text(max_size=60))
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    for parse in (parse_json, parse_yaml):
        with suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(("read", "most"), [(parse_json, MAX_DEPTH), (parse_yaml, MAX_YAML_DEPTH)])
def test_nesting_is_limited(read: Any, most: int) -> None:
    def nested(levels: int) -> str:
        return '[{"a": ' * (levels // 2) + "[]" * (levels % 2) + "0" * (1 - levels % 2) + "}]" * (levels // 2)

    assert read(nested(most))
    with pytest.raises(ValueError, match="is nested too deeply"):
        read(nested(most + 1))


def test_too_deep_yaml_is_refused_before_its_end() -> None:
    with pytest.raises(ValueError, match="is nested too deeply"):
        parse_yaml("- " * (MAX_YAML_DEPTH + 2) + "\n}")


@given(values, st.sampled_from([None, 1, 2]), st.booleans())
def test_written_json_is_read_back(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json_text(value, indent=indent, ascii_only=ascii_only)
    assert json.loads(text) == value
    assert text.endswith("\n")
    assert text.isascii() or not ascii_only


def test_rows_are_written_one_per_line_and_nan_is_refused() -> None:
    assert json_lines([{"a": "é"}, [1]]) == '{"a": "\\u00e9"}\n[1]\n'
    assert json_lines(["é"], ascii_only=False) == '"é"\n'
    assert json_lines([]) == ""
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text({"a": float("nan")})
