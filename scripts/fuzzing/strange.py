"""Values that often break programs: texts, numbers, and pieces of JSON that no encoder writes."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

TEXTS = (
    "",
    " ",
    "\0",
    "\x1b[31mred\x1b[0m",
    "\r\nerror: forged",
    "\ud800",
    "\udfff tail",
    "\u202eright to left",
    "\ufeff",
    "é\u0301",
    "💥",
    "../../../../../../../../dev/null/file",  # no user, not even root, can create it
    "/dev/null/file",
    "C:\\x",
    "~",
    "nan",
    "inf",
    "-1",
    "1e999",
    "0x10",
    "null",
    "true",
    "a" * 300,
    "a" * 70_000,
    "%s%n{0}{x!r}",
    "{{ 7*7 }}{% for x in range(10) %}x{% endfor %}",
    "[bold]markup[/bold]",
    "=1+1",
    "'; --",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    10**30,
    -(2**63),
    0.5,
    -0.0,
    1e-300,
    5e-324,
    1.5,
    1e15,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
)


@dataclass(frozen=True)
class Raw:
    """Text that is inserted into a JSON document as it is."""

    text: str


RAW = (
    Raw("[" * 100_000 + "]" * 100_000),
    Raw('{"a":' * 50_000 + "1" + "}" * 50_000),
    Raw("[" * 500 + "]" * 500),
    Raw("9" * 5_000),
    Raw("-" + "9" * 400),
    Raw("1e999"),
    Raw("0." + "1" * 3_000),
    Raw("1E+2"),
    Raw('{"a": 1, "a": 2}'),
    Raw('"\\ud800"'),
    Raw('"\\u0000"'),
    Raw("NaN"),
    Raw("-Infinity"),
    Raw("tru"),
    Raw("[" + "0," * 60_000 + "0]"),
)


def strange_text(random: Random) -> str:
    """Return an unusual text."""
    return random.choice(TEXTS)


def strange_value(random: Random) -> Any:
    """Return an unusual JSON value, or `Raw` text in its place."""
    kind = random.randrange(10)
    if kind < 3:
        return random.choice(NUMBERS)
    if kind < 6:
        return strange_text(random)
    if kind < 8:
        return random.choice((None, True, False, [], {}, [[]], [None], {"": None}, [1, "a"], {"a": {"b": []}}))
    return random.choice(RAW)
