"""Test lines of progress: none in the first seconds, then at intervals, with an estimate of the remaining time."""

from __future__ import annotations

import pytest

from qkedit.cli.output import Output
from qkedit.cli.progress import ProgressLines, counting_bar, in_words


def printed_lines(*calls: tuple[float, int], total: int) -> list[str]:
    """Return the printed lines for numbers of finished items at given seconds."""
    times = iter([seconds for seconds, _ in calls])
    lines: list[str] = []
    tell = ProgressLines("answers", lines.append, lambda: next(times))
    for _, done in calls:
        tell(done, total)
    return lines


def test_a_short_run_prints_no_progress() -> None:
    assert printed_lines((0, 0), (3, 50), (9.9, 99), (9.95, 100), total=100) == []
    assert printed_lines((0, 0), (30, 1), total=1) == []  # a finished run needs no estimate


def test_lines_come_at_intervals() -> None:
    seconds = [(float(second), second) for second in range(0, 301, 5)]
    assert printed_lines(*seconds, total=1000) == [
        "answers: 10 of 1000 (1%), about 16 min left",
        "answers: 70 of 1000 (7%), about 16 min left",
        "answers: 130 of 1000 (13%), about 14 min left",
        "answers: 190 of 1000 (19%), about 14 min left",
        "answers: 250 of 1000 (25%), about 12 min left",
    ]


def test_answers_of_an_earlier_run_do_not_count_for_the_estimate() -> None:
    assert printed_lines((0, 900), (20, 910), total=1000) == ["answers: 910 of 1000 (91%), about 3 min left"]
    assert printed_lines((0, 900), (20, 900), total=1000) == ["answers: 900 of 1000 (90%)"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (12000, "3 h 20 min")],
)
def test_durations_are_rounded_to_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(("options", "said"), [({}, True), ({"quiet": True}, False), ({"as_json": True}, False)])
def test_quiet_and_json_print_no_progress(
    options: dict[str, bool], said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patched, counting_bar(Output("eval", **options), "answers") as watch:
        patched.setattr("qkedit.cli.progress.FIRST", 0.0)
        watch(0, 3)
        watch(1, 3)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("answers: 1 of 3 (33%)") == said
    assert bool(shown.err) == said
