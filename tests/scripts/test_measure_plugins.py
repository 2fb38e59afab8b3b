"""Test that the script prints the tables of docs/plugins.md."""

from __future__ import annotations

import pytest

from tests.scripts.loading import load_script


def test_every_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    load_script("measure_plugins").main(["--scenes", "1"])
    tables = capsys.readouterr().out.strip().split("\n\n")[1:]
    rows = [[line.strip("| ").split(" | ") for line in table.splitlines()] for table in tables]
    assert all(len({len(cells) for cells in table[:1] + table[2:]}) == 1 for table in rows)
    norms, kernel, mixes, coherence = rows
    assert [line[0] for line in norms[2:]] == ["attention", "uniform"]
    # The values of a synthetic scene on which the choice of z-scores is based.
    assert [line[1] for line in kernel[2:]] == ["556", "246", "344"]
    assert mixes[2][0] == "demo-small, true depth"
    assert [line[0] for line in coherence[2:]] == ["without", "with dscr"]
    assert coherence[2][1:3] == coherence[3][1:3]  # layers before the first refined one
