"""Write numbers that come from the code into marked places in the documents.

    python scripts/documents/document_numbers.py            write them
    python scripts/documents/document_numbers.py --check    exit with 1 if one is stale

A marked place is `<!--families-->40<!--/-->`; the marks are not shown on the page.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from repeated_lines import pairs  # noqa: E402

import qkedit  # noqa: E402
from qkedit.checkpoint.architecture.description import known_families  # noqa: E402
from qkedit.checkpoint.presets import presets  # noqa: E402
from qkedit.evaluation.benchmarks.registry import benchmark_names  # noqa: E402
from qkedit.plugins.core.grid_layouts import LAYOUTS  # noqa: E402

MARKED = re.compile(r"<!--([a-z-]+)-->([^<]*)<!--/-->")
# Numbers in formats that do not allow marks: the file, and the text before the number.
UNMARKED = {"CITATION.cff": re.compile(r"(?m)^(version: )(.*)$")}


@cache
def numbers() -> Mapping[str, str]:
    """Return every number by the name of its mark."""
    families = known_families()
    family_of = {name: family["family"] for family in families for name in family["model_types"]}
    return {
        "families": str(len(families)),
        "model-types": str(sum(len(family["model_types"]) for family in families)),
        "grid-families": str(len({family_of.get(name, name) for name in LAYOUTS})),
        "presets": str(len(presets())),
        "benchmarks": str(len(benchmark_names())),
        **_sizes(Path(qkedit.__file__).parent),
    }


def _sizes(package: Path) -> dict[str, str]:
    """Return the modules of the largest folder, and rounded up to tens the lines of the longest and repeated lines."""
    files = [file for file in package.rglob("*.py") if file.name != "__init__.py"]
    folders = Counter(file.parent for file in files)
    return {
        "largest-folder": str(max(folders.values())),
        "longest-file": _in_tens(max(len(file.read_text("utf-8").splitlines()) for file in files)),
        "repeated-lines": _in_tens(len(pairs(ROOT))),
    }


def _in_tens(number: int) -> str:
    return str(-(-number // 10) * 10)


def documents() -> list[Path]:
    """Return every document that may hold a marked place."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in UNMARKED)]


def written(file: Path, text: str) -> str:
    """Return a document's text with current numbers. Raises KeyError for a mark of an unknown name."""
    known = numbers()
    if file.name in UNMARKED:
        return UNMARKED[file.name].sub(lambda match: f"{match[1]}{qkedit.__version__}", text)
    return MARKED.sub(lambda match: f"<!--{match[1]}-->{known[match[1]]}<!--/-->", text)


def main() -> int:
    """Write the documents, or with `--check` print those that are stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if one is stale")
    arguments = parser.parse_args()
    stale = [file for file in documents() if written(file, text := file.read_text("utf-8")) != text]
    if arguments.check:
        for file in stale:
            print(f"{file.relative_to(ROOT)} is stale: run python scripts/documents/document_numbers.py")
        return 1 if stale else 0
    for file in stale:
        file.write_text(written(file, file.read_text("utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
