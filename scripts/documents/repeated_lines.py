"""Count the places of a tree's Python that say the same as another place in six lines or more.

    python scripts/documents/repeated_lines.py                        the pairs of the working tree, the longest first
    python scripts/documents/repeated_lines.py --tree ../before       those of another tree

Two runs of lines are a pair when they are equal to the letter, apart from indentation. Blank lines, comments, lines of
punctuation alone and import statements do not count, and a run in more than eight places is an idiom, not a pair.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations, count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("qkedit", "scripts", "tests")
LENGTH = 6
# More places than these share an idiom.
MOST_PLACES = 8
WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Line:
    """A line that counts, without its indentation, and its number in the file."""

    number: int
    text: str


@dataclass(frozen=True)
class Pair:
    """Two places with the same lines: files, and the numbers of their first and last lines."""

    first: Path
    first_lines: tuple[int, int]
    second: Path
    second_lines: tuple[int, int]
    length: int

    def __str__(self) -> str:
        """Return the pair in one line."""
        (a, b), (c, d) = self.first_lines, self.second_lines
        return f"{self.length:3}  {self.first}:{a}-{b}  {self.second}:{c}-{d}"


def lines_that_count(text: str) -> list[Line]:
    """Return the lines of a module that count."""
    lines, imports = [], False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if imports or stripped.startswith(("import ", "from ")):
            imports = stripped.endswith("(") or (imports and not stripped.endswith(")"))
        elif WORD.search(stripped) and not stripped.startswith("#"):
            lines.append(Line(number, stripped))
    return lines


def pairs(tree: Path, folders: tuple[str, ...] = FOLDERS) -> list[Pair]:
    """Return every pair of a tree's folders, the longest first; of the runs that two files share, each one once."""
    files = [file for folder in folders for file in sorted((tree / folder).rglob("*.py"))]
    lines = [lines_that_count(file.read_text("utf-8")) for file in files]
    places = defaultdict(list)
    for file, own in enumerate(lines):
        for start in range(len(own) - LENGTH + 1):
            places[tuple(line.text for line in own[start : start + LENGTH])].append((file, start))
    same = {pair for found in places.values() if 1 < len(found) <= MOST_PLACES for pair in combinations(found, 2)}
    found = []
    for (a, i), (b, j) in same:
        apart = a != b or j - i >= LENGTH
        if apart and ((a, i - 1), (b, j - 1)) not in same:  # where a run begins
            more = next(step for step in count(1) if ((a, i + step), (b, j + step)) not in same) - 1
            first, second = (
                (files[file].relative_to(tree), _span(lines[file], start, LENGTH + more))
                for file, start in ((a, i), (b, j))
            )
            found.append(Pair(*first, *second, LENGTH + more))
    return sorted(found, key=lambda pair: (-pair.length, pair.first, pair.first_lines, pair.second, pair.second_lines))


def _span(lines: list[Line], start: int, length: int) -> tuple[int, int]:
    return lines[start].number, lines[start + length - 1].number


def main() -> None:
    """Print the pairs and their number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="a checkout of qkedit")
    found = pairs(parser.parse_args().tree)
    print(*found, f"{len(found)} pairs", sep="\n")


if __name__ == "__main__":
    main()
