"""Test the layout of `--json`, that of `json.dumps(…, indent=2)` except for long lists, and text in a pipe."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qkedit.cli.output import Output
from qkedit.report.terminal_text import Visible

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(values)
def test_short_values_are_indented(value: Any) -> None:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        Output("score", as_json=True).result({"value": value}, "")
    envelope = {"schema": 1, "command": "score", "status": "done", "warnings": [], "value": value}
    assert stream.getvalue() == json.dumps(envelope, indent=2) + "\n"


def test_long_lists_have_one_entry_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": str(number), "found": ["a", "b"]} for number in range(101)]
    Output("score", as_json=True).result({"results": [{"items": rows}]}, "")
    printed = capsys.readouterr().out
    assert json.loads(printed)["results"][0]["items"] == rows
    lines = [line.strip().rstrip(",") for line in printed.splitlines() if '"id"' in line]
    assert [json.loads(line) for line in lines] == rows


@given(
    st.text(st.sampled_from("a Z1\n\r\t\x1b\x7f\u0301\u200d\u2028\ud800é漢😀[/]:\"'"), max_size=8),
    st.integers(1, 2000),
)
def test_text_in_a_pipe_is_what_rich_would_write(text: str, times: int) -> None:
    """Rich is not imported for it: it wraps, colours and crops nothing there."""
    stream, expected = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stream):
        Output("verify").result({}, text * times)
    Console(file=expected, width=4096, soft_wrap=True, markup=False, highlight=False, emoji=False).print(
        Visible(text * times)
    )
    assert stream.getvalue() == expected.getvalue()
