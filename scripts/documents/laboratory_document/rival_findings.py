"""Write what the tables of docs/rivals.md show as sentences, by rules that do not depend on the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from textwrap import fill

from qkedit.laboratory.measures import MEASURES, Row, improves

WIDTH = 120
CONTROL = ", random"
COSTS = ("recall", "cider", "f1_adversarial")


def rival_finding_lines(rows: Sequence[Row], scenes: int) -> Iterator[str]:
    """Yield a list in Markdown: which methods change captions and questions, at which cost, and their controls.

    A change is one whose 95 % interval excludes zero.

    Args:
        rows: the rows of the comparison, the base first.
        scenes: the number of scenes.
    """
    effects = {
        row.name: {
            name: improves(MEASURES[name], row.figures[name].difference)
            for name in ("chair_s", "hr_adversarial", *COSTS)
        }
        for row in rows[1:]
    }
    methods = [name for name in effects if not name.endswith(CONTROL)]

    def those(holds: Callable[[dict[str, bool | None]], bool]) -> str:
        return ", ".join(f"`{name}`" for name in methods if holds(effects[name])) or "none"

    def costs(effect: dict[str, bool | None]) -> bool:
        return any(effect[name] is False for name in COSTS)

    controls = [
        name
        for name in methods
        if effects[name]["chair_s"] is not None
        and (control := effects.get(f"{name}{CONTROL}")) is not None
        and control["chair_s"] == effects[name]["chair_s"]
    ]
    lists = {
        f"Lower CHAIR_s without a loss in recall, CIDEr or F1 that {scenes} scenes can show": those(
            lambda effect: effect["chair_s"] is True and not costs(effect)
        ),
        "Lower CHAIR_s at the cost of at least one of them": those(
            lambda effect: effect["chair_s"] is True and costs(effect)
        ),
        "Raise CHAIR_s": those(lambda effect: effect["chair_s"] is False),
        "Show no difference in CHAIR_s": those(lambda effect: effect["chair_s"] is None),
        "Their random control changes CHAIR_s in the same direction, so the method need not be the cause": ", ".join(
            f"`{name}`" for name in controls
        )
        or "none",
        "Lower the adversarial HR at no loss of F1": those(
            lambda effect: effect["hr_adversarial"] is True and effect["f1_adversarial"] is not False
        ),
    }
    for title, names in lists.items():
        yield fill(
            f"* {title}: {names}.", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    differences = 9 * len(effects)  # of captions with CIDEr and of adversarial questions with the share of "yes"
    yield ""
    yield fill(
        f"These tables have about {round(differences, -1)} differences. If all true differences were zero, about "
        f"{differences / 20:.0f} would be marked by chance.",
        WIDTH,
    )
