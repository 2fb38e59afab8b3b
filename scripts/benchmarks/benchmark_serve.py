#!/usr/bin/env python
"""Measure the cost of `qkedit serve` compared with plain `transformers serve`, and its robustness.

    python scripts/benchmarks/benchmark_serve.py
    python scripts/benchmarks/benchmark_serve.py --model ./llava-1.5-7b-hf --image street.jpg --device cuda --tokens 64

In one run, on one machine:

* cost: seconds and CPU time of one request about an image, with a short and a long answer, for `transformers serve`
  and for `qkedit serve` with each selection of plug-ins; requests take turns, so that a drift of the machine affects
  all;
* hang-ups: clients that disconnect as soon as the first text arrives;
* kill: the server is killed while it answers, and started again at the same port;
* bomb: a PNG of 100 megapixels in less than a megabyte;
* malformed: a thousand different invalid requests.

Memory is the server's resident set before and after each trial. Each trial runs twice, since memory that is allocated
once and kept is not a leak. DSCR gets a depth map, so that the time includes no depth model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarking.machine import describe_machine
from benchmarking.malformed import malformed
from benchmarking.servers import OURS, PLAIN, Server, png, question, serving
from benchmarking.timing import Timing, in_turns, seconds_of
from PIL import Image

from qkedit.demo import SMALL_DEMO
from qkedit.demo.worlds import SMALL

SELECTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "scr": ("scr",),
    "dscr": ("dscr",),
    "scr and dscr": ("scr", "dscr"),
}


@dataclass(frozen=True)
class Cost:
    """The cost of one request: seconds at the client, CPU seconds of the server, and the number of answer tokens."""

    waited: float
    processor: float
    tokens: int


@dataclass(frozen=True)
class Trial:
    """The outcome of one robustness trial.

    Attributes:
        count: the number of requests.
        seconds: the seconds until the server was idle again.
        outcome: the number of requests by the way they ended.
        before, after: bytes of resident memory.
    """

    count: int
    seconds: float
    outcome: Mapping[str, int]
    before: int
    after: int


def cost(plain: Server, ours: Server, body: Mapping[str, Any], tokens: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return the cost of a request by length of answer, server and plug-ins, and whether the answers are the same."""
    found: dict[str, Any] = {}
    for longest in tokens:
        asked = {**body, "max_tokens": longest}

        def timed(server: Server, extra: Mapping[str, Any], asked: Mapping[str, Any] = asked) -> Cost:
            answers: list[dict[str, Any]] = []
            before = server.cpu_seconds()
            waited = seconds_of(lambda: answers.append(server.ask({**asked, **extra})))
            return Cost(waited, server.cpu_seconds() - before, answers[0]["usage"]["completion_tokens"])

        measurements: dict[str, Callable[[], Cost]] = {"transformers serve": lambda: timed(plain, {})}
        for name, plugins in SELECTIONS.items():
            extra = {"qkedit": {"plugins": list(plugins)}}
            measurements[f"qkedit serve, {name}"] = lambda extra=extra: timed(ours, extra)
        for measurement in measurements.values():
            measurement()  # the first request of a kind is not counted
        costs = in_turns(repeats, measurements)
        answers = [plain.ask(asked), ours.ask({**asked, "qkedit": {"plugins": []}})]
        found[str(longest)] = {
            "same_answer": len({answer["choices"][0]["message"]["content"].strip() for answer in answers}) == 1,
            "timings": {
                name: {
                    "tokens": of[0].tokens,
                    "waited": Timing(tuple(one.waited for one in of)).as_dict(),
                    "processor": Timing(tuple(one.processor for one in of)).as_dict(),
                }
                for name, of in costs.items()
            },
        }
    return found


def tried(server: Server, count: int, attempt: Callable[[], Counter[str]]) -> Trial:
    """Run one robustness trial, and measure the server's memory before and after it."""
    server.settle()
    before, start = server.memory(), time.perf_counter()
    outcome = attempt()
    server.settle()
    return Trial(count, time.perf_counter() - start, dict(outcome), before, server.memory())


def hang_ups(server: Server, body: Mapping[str, Any], count: int) -> Counter[str]:
    """Abandon streams of up to 1,000 tokens, eight at a time, and count the tokens generated for them."""
    before = server.counter("qkedit_answer_tokens_total")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: server.hang_up({**body, "max_tokens": 1000}), range(count)))
    server.settle()
    return Counter({"tokens made": int(server.counter("qkedit_answer_tokens_total") - before)})


def statuses(server: Server, bodies: Sequence[bytes]) -> Counter[str]:
    """Send bodies, and count the status codes of the answers."""
    return Counter(f"status {server.post(body)[0]}" for body in bodies)


def bomb() -> bytes:
    """Return a PNG of 10 000 × 10 000 black RGB pixels."""
    return png(Image.new("RGB", (10_000, 10_000)))


def killed(model: str, arguments: Sequence[str], body: Mapping[str, Any], log: Path, threads: int) -> dict[str, Any]:
    """Kill a server in the middle of an answer, start it again at the same port, and compare its answers."""
    with serving(OURS, model, arguments, log, threads=threads) as first:
        expected = first.ask(body)["choices"][0]["message"]["content"]
        connection = first.connection()
        content = json.dumps({"model": model, **body, "stream": True})
        connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
        connection.getresponse().readline()
        first.process.kill()
        first.process.wait()
        connection.close()
        with serving(OURS, model, arguments, log, threads=threads, port=first.port) as second:
            said = second.ask(body)["choices"][0]["message"]["content"]
            return {"seconds_to_start_again": second.seconds_to_start, "same_answer": said == expected}


def markdown(found: Mapping[str, Any]) -> str:
    """Return all results as Markdown tables."""
    lines = []
    for longest, of in found["cost"].items():
        base = of["timings"]["transformers serve"]["processor"]["median"]
        same = "the same answer" if of["same_answer"] else "different answers"
        lines += [
            f"Up to {longest} tokens, {same} by both servers without plug-ins",
            "",
            "| server, plug-ins | tokens | waited, ms | processor time, ms | added, ms | ratio |",
            "|---|---|---|---|---|---|",
        ]
        for name, timing in of["timings"].items():
            waited, used = timing["waited"]["median"], timing["processor"]["median"]
            times = f"{1e3 * waited:.1f} | {1e3 * used:.1f} | {1e3 * (used - base):+.1f} | {used / base:.3f}"
            lines.append(f"| {name} | {timing['tokens']} | {times} |")
        lines.append("")
    lines += ["| what | requests | outcome | seconds | memory before → after, MB |", "|---|---|---|---|---|"]
    for name, trials in found["trials"].items():
        for trial in trials:
            outcome = ", ".join(f"{kind}: {count}" for kind, count in sorted(trial["outcome"].items()))
            memory = f"{trial['before'] / 1e6:.1f} → {trial['after'] / 1e6:.1f}"
            lines.append(f"| {name} | {trial['count']} | {outcome} | {trial['seconds']:.1f} | {memory} |")
    again = found["killed"]
    lines += [
        "",
        f"Memory at its highest: {found['peak_bytes'] / 1e6:.1f} MB. The bomb: {found['bomb_bytes']} bytes.",
        f"Killed and started again at the same port: ready after {again['seconds_to_start_again']:.1f} s, "
        f"{'the same answer' if again['same_answer'] else 'another answer'}. "
        f"After all of it the server says {'the same' if found['same_answer_at_the_end'] else 'something else'}.",
    ]
    return "\n".join(lines)


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the whole benchmark."""
    file = options.image.read_bytes() if options.image else demo_picture()
    with Image.open(options.image) if options.image else Image.new("L", (112, 112)) as image:
        depth = np.add.outer(np.arange(image.height), np.arange(image.width)).astype(np.float32)
    np.save(work / "depth.npy", depth)
    settings = ["--device", options.device, "--dtype", options.dtype]
    model = options.model
    if model == SMALL_DEMO:
        from qkedit.demo import demo_checkpoint

        model = str(demo_checkpoint(SMALL_DEMO))
    plugins = ["--plugin", "scr", "--plugin", f"dscr:depth={work / 'depth.npy'}"]
    arguments = [model, *plugins, *settings, "--served-name", "served", "--quiet"]
    body: dict[str, Any] = {"messages": question(options.prompt, file), "temperature": 0}
    large = json.dumps({"model": "served", "messages": question(options.prompt, bomb())}).encode()
    wrong = list(malformed(options.malformed, "served", file))
    threads = options.threads
    with serving(OURS, "served", arguments, work / "ours.log", threads=threads) as ours:
        with serving(PLAIN, model, [model, *settings], work / "plain.log", threads=threads) as plain:
            costs = cost(plain, ours, body, options.tokens, options.repeats)
        at_first = ours.ask(body)["choices"][0]["message"]["content"]
        attempts: dict[str, tuple[int, Callable[[], Counter[str]]]] = {
            "hang-ups": (options.hang_ups, lambda: hang_ups(ours, body, options.hang_ups)),
            "bomb": (options.bombs, lambda: statuses(ours, [large] * options.bombs)),
            "malformed": (len(wrong), lambda: statuses(ours, wrong)),
        }
        trials = {
            name: [asdict(tried(ours, count, attempt)) for _ in range(2)]
            for name, (count, attempt) in attempts.items()
        }
        found = {
            "cost": costs,
            "trials": trials,
            "bomb_bytes": len(bomb()),
            "peak_bytes": ours.memory("VmHWM"),
            "same_answer_at_the_end": ours.ask(body)["choices"][0]["message"]["content"] == at_first,
        }
    return {**found, "killed": killed("served", arguments, body, work / "killed.log", threads)}


def demo_picture() -> bytes:
    from qkedit.demo.scenes import make_scenes

    return png(Image.fromarray(next(iter(make_scenes(1, seed=1, world=SMALL))).image))


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMALL_DEMO, help="a directory, or demo")
    parser.add_argument("--image", type=Path, help="image to ask about (default: a scene of the demo)")
    parser.add_argument("--prompt", default="Please describe this image in detail.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 32], help="longest answers")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--hang-ups", type=int, default=200)
    parser.add_argument("--bombs", type=int, default=50)
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each server")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="also write the results as JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    machine = describe_machine(Path.cwd(), options.device)
    print(f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, {machine['device']}")
    print(
        f"{options.model}, {options.dtype}, {options.threads} threads, {options.repeats} rounds, medians\n", flush=True
    )
    with tempfile.TemporaryDirectory() as work:
        found = measure(options, Path(work))
    print(markdown(found))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **found}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
