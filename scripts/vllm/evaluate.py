#!/usr/bin/env python
"""Compare `qkedit eval --engine vllm` with `qkedit eval` on the same questions about scenes of the small world.

    python scripts/vllm/evaluate.py --work /tmp/vllm-compare --out evaluation.json

Run by scripts/test_vllm.sh in an environment with vLLM. With and without SCR, both evaluations must give the same
scores, and no process of the server may be left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from command_line import parser_of
from inputs import scenes

EACH = 34  # questions per split, of which there are three
ENGINE_FLAGS = (
    *("--dtype", "float32", "--max-model-len", "512", "--gpu-memory-utilization", "0.2"),
    *("--skip-mm-profiling", "--enforce-eager"),
)
ARMS = {"no plug-in": (), "SCR": ("--plugin", "scr:sources=4,factor=1.5")}
MARK = f"EVALUATION_OF={os.getpid()}"


def evaluated(questions: Path, out: Path, *words: str, flags: tuple[str, ...] = ()) -> float:
    """Return the seconds of `qkedit eval demo-small`, with the start."""
    command = [sys.executable, "-m", "qkedit", "eval", "demo-small", *words, "-b", "pope", "--limit", str(EACH)]
    command += ["--data", str(questions), "--images", str(questions / "images")]
    command += ["--out", str(out), "--overwrite", "--quiet"]
    name, _, value = MARK.partition("=")
    begun = time.monotonic()
    subprocess.run([*command, *flags], check=True, stdout=sys.stderr, env={**os.environ, name: value})
    return time.monotonic() - begun


def answers(out: Path) -> dict[tuple[str, str], str]:
    """Return the answers of a run, without the blanks around them, which vLLM keeps."""
    rows = {file.stem: map(json.loads, file.read_text("utf-8").splitlines()) for file in out.glob("answers/*.jsonl")}
    return {(split, row["id"]): row["answer"].strip() for split, found in rows.items() for row in found}


def scores(out: Path) -> list[Any]:
    return [row["metrics"] for row in json.loads((out / "result.json").read_text("utf-8"))["results"]]


def left_over() -> int:
    """Return the number of processes that one of the evaluations started."""
    found = 0
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += MARK.encode() in environment.read_bytes().split(b"\0")
        except OSError:  # ended, or of another user
            continue
    return found


def main() -> int:
    arguments = parser_of(__doc__).parse_args()
    work = arguments.work.resolve()
    questions = scenes(work)
    found: dict[str, dict[str, Any]] = {}
    for name, plugins in ARMS.items():
        local, served = work / f"eval-{name}", work / f"eval-vllm-{name}"
        seconds = evaluated(questions, local, "--dtype", "float32", *plugins)
        there = evaluated(questions, served, "--engine", "vllm", *plugins, flags=("--", *ENGINE_FLAGS))
        here, other = answers(local), answers(served)
        found[name] = {
            "answers": len(here),
            "same answers": sum(other.get(key) == text for key, text in here.items()),
            "same scores": scores(local) == scores(served),
            "seconds": seconds,
            "seconds on vLLM": there,
            "processes left": left_over(),
        }
        print(name, found[name], file=sys.stderr, flush=True)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(arm["same scores"] and not arm["processes left"] for arm in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
