"""Mutate YAML documents of one mapping: fields of other types, exponential aliases, text that is not YAML."""

from __future__ import annotations

from random import Random

from fuzzing.byte_strings import mutated_text
from fuzzing.strange import NUMBERS, strange_text

VALUES = (
    "2024-02-30",
    "2024-02-03",
    "12:30:45",
    "0o17",
    "1_000",
    ".nan",
    "-.inf",
    "~",
    "yes",
    "!!binary aGk=",
    "!!python/object/apply:os.system ['true']",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp x",
    "!!int abc",
    "!!float {}",
    "&a [*a]",
    "*missing",
    "{a: {b: {c: d}}}",
    "[[[[]]]]",
    "? [1]\n  : x",
    "{[1, 2]: 3}",
    "{{a: 1}: 2}",
    "|\n  several\n  lines",
    '"\\ud800"',
    '"\\0"',
    "[" * 3000,
    "{a: " * 3000,
    "- - - - 1",
    "'",
    "%",
    "\t",
    "\x07",
    "9" * 5000,
)


def yaml_text(seed: str, random: Random) -> str:
    """Return the seed with one to three changes."""
    text = seed
    for _ in range(random.choice((1, 1, 2, 3))):
        text = _changed(text, random)
    return text


def _changed(text: str, random: Random) -> str:
    kind = random.randrange(8)
    lines = text.splitlines() or [""]
    at = random.randrange(len(lines))
    if kind < 3:
        name = lines[at].partition(":")[0]
        value = random.choice((*VALUES, *map(str, NUMBERS), strange_text(random)))
        lines[at] = f"{name}: {value}"
    elif kind == 3:
        lines.insert(at, f"{random.choice(('<<', 'x', '? a', '1', '[1]', '', 'null'))}: {random.choice(VALUES)}")
    elif kind == 4:
        return _bomb(text, random)
    elif kind == 5:
        lines.insert(at, lines[random.randrange(len(lines))])
    else:
        return mutated_text(text, random)
    return "\n".join(lines) + "\n"


def _bomb(text: str, random: Random) -> str:
    """Add aliases of aliases: each line multiplies the previous one, by reference or by merging."""
    levels, width = random.choice((3, 6, 9, 25)), random.choice((2, 9))
    name = text.partition(":")[0].strip() or "a"
    if random.random() < 0.5:
        lines = ["x0: &x0 [1, 2]"]
        lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * width)}]" for n in range(1, levels)]
    else:
        lines = ["x0: &x0 {a: 1, b: 2}"]
        lines += [f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * width)}], c{n}: 1}}" for n in range(1, levels)]
    return "\n".join([*lines, f"{name}: *x{levels - 1}", text])
