"""Test lines of progress: none in the first seconds, then at intervals, with an estimate of the rest."""

from __future__ import annotations

import pytest

from qkedit.cli.output import Output
from qkedit.cli.progress import ProgressLines, counting_bar, in_words


def told(*calls: tuple[float, int], total: int) -> list[str]:
    """Return the printed lines for numbers of finished items at given seconds."""
    times = iter([seconds for seconds, _ in calls])
    lines: list[str] = []
    tell = ProgressLines("answers", lines.append, lambda: next(times))
    for _, done in calls:
        tell(done, total)
    return lines


def test_a_short_run_says_nothing() -> None:
    assert told((0, 0), (3, 50), (9.9, 99), (9.95, 100), total=100) == []
    assert told((0, 0), (30, 1), total=1) == []  # what is done needs no estimate


def test_a_line_now_and_then() -> None:
    seconds = [(float(second), second) for second in range(0, 301, 5)]
    assert told(*seconds, total=1000) == [
        "answers: 10 of 1000 (1%), about 16 min left",
        "answers: 70 of 1000 (7%), about 16 min left",
        "answers: 130 of 1000 (13%), about 14 min left",
        "answers: 190 of 1000 (19%), about 14 min left",
        "answers: 250 of 1000 (25%), about 12 min left",
    ]


def test_what_an_earlier_run_did_says_nothing_about_the_pace() -> None:
    assert told((0, 900), (20, 910), total=1000) == ["answers: 910 of 1000 (91%), about 3 min left"]
    assert told((0, 900), (20, 900), total=1000) == ["answers: 900 of 1000 (90%)"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (12000, "3 h 20 min")],
)
def test_time_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(("options", "said"), [({}, True), ({"quiet": True}, False), ({"as_json": True}, False)])
def test_who_hears_of_it(options: dict[str, bool], said: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patched, counting_bar(Output("eval", **options), "answers") as watch:
        patched.setattr("qkedit.cli.progress.FIRST", 0.0)
        watch(0, 3)
        watch(1, 3)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("answers: 1 of 3 (33%)") == said
    assert bool(shown.err) == said
