#!/usr/bin/env python
"""Feed broken inputs to every part of qkedit that reads input, for a given time.

    python scripts/fuzz.py --minutes 60 --findings ./findings --json fuzz.json
    python scripts/fuzz.py --only header --minutes 1
    python scripts/fuzz.py --replay header:1234
    python scripts/fuzz.py --render fuzz.json docs/reliability.md

A target generates inputs of one format, that of a file or a field, mostly by changing valid ones. qkedit may accept an
input or refuse it in one sentence. Anything else is a finding: another exception, a second line, a hang, memory above
a bound, a file outside the output, an incomplete output, a status of 500. An input depends only on its target and its
seed, so that `--replay` generates it again.

Linux only. qkedit must be installed with its test packages in the interpreter that runs this. CHAIR and AMBER read
captions with nltk's data if NLTK_DATA names them, else with simple rules for words. The exit code is 1 if there are
findings.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# For the helpers of the tests, and for the description of the machine in the benchmarks.
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "benchmarks")]

from fuzzing.loop import generator, try_seed  # noqa: E402
from fuzzing.registry import TARGETS  # noqa: E402
from fuzzing.summary import put_into, render, summary  # noqa: E402
from fuzzing.target import as_bytes  # noqa: E402
from fuzzing.workers import Order, run_all, run_order  # noqa: E402


def main() -> int:
    """Run the command line, and return the exit code."""
    options = _options()
    if options.order:
        run_order(Order(**json.loads(options.order)))
        return 0
    if options.list:
        print("\n".join(f"{name:<16} {target.subject}" for name, target in TARGETS.items()))
        return 0
    if options.replay:
        return replay(*options.replay)
    if options.render:
        result, page = options.render
        part = render(json.loads(result.read_text("utf-8")))
        page.write_text(put_into(page.read_text("utf-8"), part), encoding="utf-8")
        return 0
    names = options.only or list(TARGETS)
    seed = int(time.time()) if options.seed is None else options.seed
    each = options.minutes * 60 * min(options.jobs, len(names)) / len(names)
    print(f"{len(names)} targets, {each:.0f} s each, first seed {seed}", file=sys.stderr, flush=True)
    begin = time.monotonic()
    results = run_all(names, jobs=options.jobs, start=seed, seconds=each, findings=options.findings)
    document = summary(
        results, start=seed, seconds=time.monotonic() - begin, jobs=options.jobs, work=Path(tempfile.gettempdir())
    )
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(render(document), end="")
    return 1 if any(result["findings"] for result in results) else 0


def replay(name: str, seed: int) -> int:
    """Try one input again, and print it with its finding."""
    with tempfile.TemporaryDirectory(prefix="qkedit-fuzz-") as work:
        target = TARGETS[name](Path(work, "target"))
        target.work.mkdir()
        target.prepare()
        try:
            given = as_bytes(target.generate(generator(target, seed)))
            print(ascii(given[:2000]))
            found = try_seed(target, seed)
        finally:
            target.close()
    if isinstance(found, str):
        print(found)
        return 0
    print(f"{found['kind']} in {found['place']}: {found['what']}\n{found['traceback']}")
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Feed broken inputs to everything in qkedit that reads one.")
    parser.add_argument("--minutes", type=float, default=5.0, help="length of the whole run (default: %(default)s)")
    parser.add_argument(
        "--only",
        action="append",
        choices=TARGETS,
        metavar="TARGET",
        help="a target to run; may be repeated (default: all)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of targets at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="the first seed (default: the time)")
    parser.add_argument(
        "--findings", type=Path, default=Path("findings"), help="directory of findings (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the result as JSON")
    parser.add_argument("--list", action="store_true", help="print the targets")
    parser.add_argument("--replay", type=_seeded, metavar="TARGET:SEED", help="try one input again")
    parser.add_argument(
        "--render", type=Path, nargs=2, metavar=("RESULT", "DOCUMENT"), help="write a result into the document"
    )
    parser.add_argument("--order", help=argparse.SUPPRESS)
    return parser.parse_args()


def _seeded(text: str) -> tuple[str, int]:
    name, _, seed = text.partition(":")
    if name not in TARGETS or not seed.isdigit():
        raise argparse.ArgumentTypeError("write a target's name, a colon and a seed")
    return name, int(seed)


if __name__ == "__main__":
    sys.exit(main())
