"""Write docs/api.md from the docstrings of the public names.

    python scripts/documents/api_document.py            write the file
    python scripts/documents/api_document.py --check    exit with 1 if it is stale

`CHAPTERS` says which name is in which chapter.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import qkedit  # noqa: E402

DOCUMENT = ROOT / "docs" / "api.md"
HEADER = """\
# Python API

Written by `scripts/documents/api_document.py` from the docstrings; do not edit. Everything here is imported from
`qkedit`.
"""
CHAPTERS = {
    "Edit checkpoints": ("steer", "plan", "verify", "Suppression", "SteerReport"),
    "Work with edits": ("apply", "merge", "interpolate", "revert", "diff", "extract", "export", "push"),
    "Edit and run loaded models": ("load", "edit", "ModelEdit", "generate", "attach", "SCR", "DSCR", "Plugin"),
    "Look at query-key products": (
        "inspect",
        "suggest",
        "compare_spectra",
        "QKProduct",
        "product_of",
        "sink_of",
        "copying_heads",
    ),
    "Ask endpoints": ("evaluate_endpoint", "verify_endpoint"),
    "Measure": ("score", "evaluate", "evaluate_arms", "compare", "gate", "drift", "attention", "kv_coherence"),
    "Experiment on synthetic scenes": ("demonstrate", "sweep", "tune"),
    "Records and errors": ("using_architectures", "QkeditError"),
}


def document() -> str:
    return HEADER + "".join(f"\n## {title}\n\n" + "\n".join(map(entry, names)) for title, names in CHAPTERS.items())


def entry(name: str) -> str:
    """Return the entry of one name: its signature, its docstring, and the public methods of a class."""
    found = getattr(qkedit, name)
    lines = [
        f"### `{name}`",
        "",
        "```python",
        f"{name}{signature(found)}",
        "```",
        "",
        "```text",
        doc(found),
        "```",
        "",
    ]
    if inspect.isclass(found):
        for method, text in methods(found):
            lines += [f"* `{method}`: {text}"]
        lines.append("")
    return "\n".join(lines)


def signature(found: Any) -> str:
    if inspect.isclass(found) and not dataclasses.is_dataclass(found) and getattr(found, "_is_protocol", False):
        return ""
    text = inspect.signature(found)
    parameters = [parameter for name, parameter in text.parameters.items() if name != "self"]
    one_line = unquoted(str(text.replace(parameters=parameters)))
    if len(one_line) < 90:
        return one_line
    star = next((i for i, one in enumerate(parameters) if one.kind is one.KEYWORD_ONLY), None)
    spelled = [unquoted(str(one)) for one in parameters]
    if star is not None and not any(one.kind is one.VAR_POSITIONAL for one in parameters):
        spelled.insert(star, "*")
    returned = "" if text.return_annotation is text.empty else f" -> {text.return_annotation}"
    return "(\n" + "".join(f"    {one},\n" for one in spelled) + f"){returned}"


def unquoted(text: str) -> str:
    """Remove the quotes around annotations, which are strings here, so that they look as in the code."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def doc(found: Any) -> str:
    return inspect.getdoc(found) or ""


def methods(found: type) -> Iterator[tuple[str, str]]:
    for name, member in vars(found).items():
        if name.startswith("_") or not (callable(member) or isinstance(member, property)):
            continue
        if text := inspect.getdoc(member):
            call = "" if isinstance(member, property) else "()"
            yield f"{name}{call}", " ".join(text.split("\n\n")[0].split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if it is stale")
    if parser.parse_args().check:
        if DOCUMENT.read_text("utf-8") != document():
            sys.exit("docs/api.md is stale: run python scripts/documents/api_document.py")
    else:
        DOCUMENT.write_text(document(), "utf-8")


if __name__ == "__main__":
    main()
