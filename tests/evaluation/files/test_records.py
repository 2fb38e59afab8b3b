"""Test that a score survives JSON, and that invalid files are explained."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.errors import QkeditError
from qkedit.evaluation.files.records import CaptionItem, Score, YesNoItem
from qkedit.evaluation.files.score_json import item_as_dict, score_as_dict, score_from_dict

words = st.lists(st.text(max_size=5), max_size=3).map(tuple)
items = st.one_of(
    st.builds(
        YesNoItem, st.text(), st.one_of(st.none(), st.text()), st.text(), st.booleans(), st.text(), st.booleans()
    ),
    st.builds(CaptionItem, st.text(), words, words, words, words, st.integers(0, 9), st.text()),
)
scores = st.builds(
    Score,
    benchmark=st.text(),
    split=st.one_of(st.none(), st.text()),
    rule=st.text(),
    n=st.integers(0),
    counts=st.dictionaries(st.text(), st.integers(0), max_size=3),
    metrics=st.dictionaries(
        st.from_regex(r"\S+", fullmatch=True), st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))
    ),
    printed=st.dictionaries(st.text(), st.text(), max_size=3),
    items=st.lists(items, max_size=3).map(tuple),
    warnings=words,
    rule_kind=st.sampled_from(["parser", "variant"]),
).map(lambda score: replace(score, n=min(score.n, len(score.items))))


@given(scores)
def test_a_score_survives_json(score: Score) -> None:
    assert score_from_dict(json.loads(json.dumps(score_as_dict(score), allow_nan=False))) == score


@given(items)
def test_an_item_is_one_json_object_of_its_fields(item: YesNoItem | CaptionItem) -> None:
    assert list(item_as_dict(item)) == [field.name for field in fields(item)]


def valid_row() -> dict[str, Any]:
    yes_no = YesNoItem("1", "yes", "no", False)
    caption = CaptionItem("2", ("cat",), (), ("cat",), ("cat",), 3)
    return score_as_dict(Score("pope", "random", "official", 2, {"tp": 1}, {"f1": 0.5}, {}, (yes_no, caption)))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("benchmark", 3, "r.json: benchmark: is not text"),
        ("split", [], "r.json: split: is not text"),
        ("n", True, "r.json: n: is not a whole number from 0 on"),
        ("n", -1, "r.json: n: is not a whole number from 0 on"),
        ("n", 3, "r.json: n: is 3, and there are 2 items"),
        ("counts", [1], "r.json: counts: is not a JSON object"),
        ("counts.tp", 1.5, "r.json: counts: tp: is not a whole number from 0 on"),
        ("metrics", {"": 0.5}, "r.json: metrics: '': is not the name of a metric"),
        ("metrics.f1", "0.5", "r.json: metrics: f1: is neither a number nor null"),
        ("metrics.f1", float("nan"), "r.json: metrics: f1: is neither a number nor null"),
        ("warnings", "none", "r.json: warnings: is not a list"),
        ("items", {}, "r.json: items: is not a list"),
        ("items.0", 7, "r.json: items: 0: is not a JSON object"),
        ("items.0.right", 1, "r.json: items: 0: right: is neither true nor false"),
        ("items.0.more", 1, "r.json: items: 0: has an unknown key 'more'"),
        ("items.1.found", ["cat", 1], "r.json: items: 1: found: is not text"),
        ("variant", "pattern", "r.json: has both of the keys parser and variant"),
        ("more", 1, "r.json: has an unknown key 'more'"),
    ],
)
def test_an_invalid_value_is_named(path: str, value: object, sentence: str) -> None:
    row = valid_row()
    *parents, last = path.split(".")
    place: Any = row
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[int(last) if isinstance(place, list) else last] = value
    with pytest.raises(QkeditError) as caught:
        score_from_dict(row, "r.json")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("key", sorted(valid_row()))
def test_a_missing_key_is_named(key: str) -> None:
    row = valid_row()
    del row[key]
    with pytest.raises(QkeditError, match="neither of the keys" if key == "parser" else f"lacks the key '{key}'"):
        score_from_dict(row)


@pytest.mark.parametrize("row", [None, [], "score", 1])
def test_other_json_is_not_a_score(row: object) -> None:
    with pytest.raises(QkeditError, match="is not a JSON object"):
        score_from_dict(row)
