"""Test the metadata block of a model card: any content is read, and changes keep the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.checkpoint.card_fields import card_fields, texts, with_fields

LINES = st.sampled_from(
    [
        "license: mit",
        "license:",
        "- mit",
        "  - x",
        "foo: 'a",
        "  b'",
        "tags: [a, b]",
        "'license': x",
        "---",
        "# c",
        "",
        "body",
        "\ufeff---",
        "? license",
        ": mit",
        "x: |",
        "  license: q",
        "license : gpl",
        "{license: a}",
        "a: !!x 3",
        "\tlicense: t",
        "license_name: n",
    ]
)
CARDS = st.lists(LINES).map("\n".join) | st.lists(LINES).map(lambda lines: "\n".join(["---", *lines, "---", "body"]))


@given(CARDS | st.text(), st.sampled_from(["mit", "no", "7", "a: b", ["mit", "gpl"]]))
def test_changed_fields_are_read_back_and_the_rest_is_kept(card: str, licence: str | list[str]) -> None:
    before = card_fields(card)
    changed = with_fields(card, {"license": licence, "license_name": None})
    rest = {name: value for name, value in before.items() if name not in ("license", "license_name")}
    assert card_fields(changed) == rest | {"license": licence}
    if not before:
        assert changed.endswith(card.removeprefix("\ufeff"))


@pytest.mark.parametrize(
    ("card", "changed"),
    [
        ("# Model\n", "---\nlicense: gpl\n---\n# Model\n"),
        ("---\nlicense:\n- mit\nn: 7 # seven\n---\n\nA", "---\nlicense: gpl\nn: 7 # seven\n---\n\nA"),
        ("---\r\nn: 007\r\n---\r\nA", "---\nlicense: gpl\nn: 007\n---\nA"),
    ],
)
def test_other_lines_are_kept_verbatim(card: str, changed: str) -> None:
    assert with_fields(card, {"license": "gpl"}) == changed


def test_texts_of_a_field_come_from_a_string_or_a_list() -> None:
    assert texts("a") == ("a",)
    assert texts(["a", None, {"b": "c"}, "", "d"]) == ("a", "d")
    assert texts(None) == texts({"a": "b"}) == ()
