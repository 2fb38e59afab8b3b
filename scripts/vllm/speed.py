#!/usr/bin/env python
"""Measure `demo-small` on vLLM's server for 32 clients at once: with vLLM's own class, and with each plug-in.

    python scripts/vllm/speed.py --work /tmp/vllm-compare --out speed.json

scripts/test_vllm.sh runs this in an environment with vLLM. Two servers run vLLM's own class, one with vLLM's defaults
and one with the settings that plug-ins need. A third has plug-ins, which the requests switch off first.
Each client sends one request after the other; the log probabilities must be those of the same requests one by one. The
server with vLLM's defaults also answers `qkedit eval --endpoint`, to compare with `qkedit eval` on transformers.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parent))

from command_line import parser_of
from compare import LIMIT, QUESTION, cases, pictures
from inputs import checkpoint, scenes

PORT = 8124
CLIENTS, EACH = 32, 4
DEFAULTS, OWN, OFF = "vLLM's own class, its defaults", "vLLM's own class, without caching", "plug-ins, switched off"
PLUGINS = ("DSCR", "SCR", "SCR and DSCR")
# What plug-ins need, for a server without them.
SETTINGS = ("--no-enable-prefix-caching", "--no-enable-chunked-prefill", "--no-mm-device-do-normalize")


@contextmanager
def server(words: Sequence[str] = (), flags: Sequence[str] = ()) -> Iterator[None]:
    """Run `qkedit serve demo-small --engine vllm` with options and with flags of vLLM while the context is open."""
    command = [sys.executable, "-m", "qkedit", "serve", "demo-small", "--engine", "vllm", "--port", str(PORT), *words]
    command += ["--", "--dtype", "float32", "--max-model-len", "512", "--gpu-memory-utilization", "0.2"]
    command += ["--skip-mm-profiling", "--enforce-eager", *flags]
    process = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"})
    try:
        until = time.monotonic() + 900
        while True:
            try:
                ask("/health")
                break
            except (URLError, OSError):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit("the server did not start") from None
                time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """Return the JSON of a response; None if it is empty."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{PORT}{path}", data, {"Content-Type": "application/json"})
    with urlopen(request, timeout=900) as answer:
        found = answer.read()
    return json.loads(found) if found else None


def url_of(image: Any) -> str:
    """Return an image as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def request_of(images: list[Any]) -> dict[str, Any]:
    """Return the question with images as the body of a chat completion."""
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url_of(image)}} for image in images]
    content.append({"type": "text", "text": QUESTION})
    settings = {"temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 5}
    return {"model": "demo-small", "messages": [{"role": "user", "content": content}], **settings}


def answered(body: dict[str, Any]) -> tuple[float, list[list[float]]]:
    """Return the seconds of a request, and the log probabilities of the five most probable tokens of each step."""
    begun = time.monotonic()
    steps = ask("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    return time.monotonic() - begun, [[one["logprob"] for one in step["top_logprobs"]] for step in steps]


def difference(one: list[list[float]], other: list[list[float]]) -> float:
    """Return the largest difference of two answers' log probabilities; infinite if their lengths differ."""
    if [len(step) for step in one] != [len(step) for step in other]:
        return float("inf")
    return max(abs(a - b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))


def measured(bodies: list[dict[str, Any]]) -> dict[str, float]:
    """Return answers per second, latencies, and the largest difference to single requests."""
    singly = [answered(body) for body in bodies]
    requests = [(client + turn) % len(bodies) for client in range(CLIENTS) for turn in range(EACH)]
    begun = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(lambda number: (number, answered(bodies[number])), requests))
    seconds = time.monotonic() - begun
    return {
        "answers per second": len(requests) / seconds,
        "seconds of one request alone": sum(seconds for seconds, _ in singly) / len(singly),
        "seconds of one request of 32 clients": sum(one for _, (one, _) in found) / len(found),
        "difference": max(difference(steps, singly[number][1]) for number, (_, steps) in found),
    }


def measured_with(records: list[dict[str, Any]], bodies: list[dict[str, Any]]) -> dict[str, float]:
    """Bind plug-ins, and return what `measured` does with the worker's counts of prompts."""
    ready = ask("/collective_rpc", {"method": "qkedit_bind", "args": [{"schema": 1, "plugins": records}]})["results"]
    if not all(json.loads(one.replace("'", '"'))["ready"] if isinstance(one, str) else one["ready"] for one in ready):
        raise SystemExit(f"not ready: {ready}")
    found = measured(bodies)
    report = ask("/qkedit")["workers"][0]
    return found | {key: report[key] for key in ("edited", "failed", "split")}


def evaluated(questions: Path, out: Path, *where: str) -> float:
    """Return the answers per second of `qkedit eval`, with its start."""
    words = ["eval", *where, "-b", "pope", "--data", str(questions), "--images", str(questions / "images")]
    command = [sys.executable, "-m", "qkedit", *words, "--out", str(out), "--overwrite", "--quiet"]
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=sys.stderr)
    answers = sum(len(file.read_text("utf-8").splitlines()) for file in out.glob("**/*.jsonl"))
    return answers / (time.monotonic() - begun)


def failures(speeds: dict[str, dict[str, float]]) -> list[str]:
    """Return the measurements whose answers differ from single requests, or whose plug-ins did not run as asked."""
    return [
        name
        for name, found in speeds.items()
        if found["difference"] > LIMIT
        or found.get("failed")
        or found.get("split")
        or bool(found.get("edited")) != (name in PLUGINS)
    ]


def main() -> int:
    arguments = parser_of(__doc__).parse_args()
    work = arguments.work.resolve()
    depth, questions = checkpoint(work, "depth"), scenes(work)
    bodies = [request_of(images) for images in pictures()]
    speeds: dict[str, dict[str, float]] = {}
    evals: dict[str, float] = {}
    for name, flags in ((DEFAULTS, ()), (OWN, SETTINGS)):
        with server(flags=flags):
            measured(bodies)  # the first requests of a server are slow
            speeds[name] = measured(bodies)
            if name == DEFAULTS:
                endpoint = ("--endpoint", f"http://127.0.0.1:{PORT}/v1")
                evals["eval --endpoint"] = evaluated(questions, work / "served", *endpoint)
        print(name, speeds[name], file=sys.stderr, flush=True)
    with server(["--plugin", "scr", "--plugin", f"dscr:depth={depth}"]):
        plugins = cases(depth)
        measured_with(plugins["SCR and DSCR"], bodies)
        off = [body | {"vllm_xargs": {"qkedit": "off"}} for body in bodies]
        speeds[OFF] = measured_with(plugins["SCR and DSCR"], off)
        for name in PLUGINS:
            speeds[name] = measured_with(plugins[name], bodies)
        print(speeds, file=sys.stderr, flush=True)
    evals["eval"] = evaluated(questions, work / "local", "demo-small", "--dtype", "float32")
    print(evals, file=sys.stderr, flush=True)
    arguments.out.write_text(json.dumps({"plug-ins": speeds, "eval": evals}, indent=2) + "\n")
    wrong = failures(speeds)
    for name in wrong:
        print(f"not as single requests: {name}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
