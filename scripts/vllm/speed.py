#!/usr/bin/env python
"""Ask a vLLM server with plug-ins by 32 clients at once, and measure it with and without each plug-in.

    python scripts/vllm/speed.py --work /tmp/vllm-compare --out speed.json

Run by scripts/test_vllm.sh in an environment with vLLM. One server of the demo has SCR and DSCR, and binds others for
each measurement. Each of the 32 clients asks about pictures of its own, one request after the other. The answers'
log probabilities must be those of the same requests one by one. `qkedit eval --endpoint` is measured beside `qkedit
eval` in this process on the same questions.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parent))

import checkpoints
from compare import QUESTION, cases, pictures

PORT = 8124
CLIENTS, EACH = 32, 4
LIMIT = 1e-4
SCENES = 60
MEASURED = ("no plug-in", "DSCR", "SCR", "SCR and DSCR")


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """Return the JSON that the server answers, None for an empty answer."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{PORT}{path}", data, {"Content-Type": "application/json"})
    with urlopen(request, timeout=300) as answer:
        found = answer.read()
    return json.loads(found) if found else None


def url_of(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def request_of(images: list[Any]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url_of(image)}} for image in images]
    content.append({"type": "text", "text": QUESTION})
    settings = {"temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 5}
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **settings}


def answered(body: dict[str, Any]) -> tuple[float, list[list[float]]]:
    """Return the seconds of a request, and the log probabilities of each step's five most probable tokens."""
    begun = time.monotonic()
    steps = ask("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    return time.monotonic() - begun, [[one["logprob"] for one in step["top_logprobs"]] for step in steps]


def difference(one: list[list[float]], other: list[list[float]]) -> float:
    if [len(step) for step in one] != [len(step) for step in other]:
        return float("inf")
    return max(abs(a - b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))


def measured(records: list[dict[str, Any]], bodies: list[dict[str, Any]]) -> dict[str, float]:
    """Bind plug-ins, and return answers per second, latency and the largest difference to single requests."""
    document = {"schema": 1, "plugins": records}
    ready = ask("/collective_rpc", {"method": "qkedit_bind", "args": [document]})["results"]
    if not all(json.loads(one.replace("'", '"'))["ready"] if isinstance(one, str) else one["ready"] for one in ready):
        raise SystemExit(f"not ready: {ready}")
    singly = [answered(body) for body in bodies]
    requests = [(client + turn) % len(bodies) for client in range(CLIENTS) for turn in range(EACH)]
    begun = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(lambda number: (number, answered(bodies[number])), requests))
    seconds = time.monotonic() - begun
    report = ask("/qkedit")["workers"][0]
    return {
        "answers per second": len(requests) / seconds,
        "seconds of one request alone": sum(seconds for seconds, _ in singly) / len(singly),
        "seconds of one request of 32 clients": sum(one for _, (one, _) in found) / len(found),
        "difference": max(difference(steps, singly[number][1]) for number, (_, steps) in found),
        "edited": report["edited"],
        "failed": report["failed"],
        "split": report["split"],
    }


def evaluated(scenes: Path, out: Path, *where: str) -> float:
    """Return the answers per second of `qkedit eval`, with its start."""
    words = ["eval", *where, "-b", "pope", "--data", str(scenes), "--images", str(scenes / "images")]
    command = [sys.executable, "-m", "qkedit", *words, "--out", str(out), "--overwrite", "--quiet"]
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=sys.stderr)
    answers = sum(len(file.read_text("utf-8").splitlines()) for file in out.glob("**/*.jsonl"))
    return answers / (time.monotonic() - begun)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints are written")
    parser.add_argument("--out", type=Path, required=True, help="file of results")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    depth, scenes = work / "depth", work / "scenes"
    if not depth.exists():
        checkpoints.depth_model(depth)
    if not scenes.exists():
        from qkedit.demo.files import write_scenes
        from qkedit.demo.scenes import make_scenes

        write_scenes(list(make_scenes(SCENES, seed=3_000_000)), scenes)
    command = [sys.executable, "-m", "qkedit", "serve", "demo", "--engine", "vllm", "--port", str(PORT)]
    command += ["--plugin", "scr", "--plugin", f"dscr:depth={depth}", "--", "--dtype", "float32"]
    command += ["--max-model-len", "512", "--gpu-memory-utilization", "0.2", "--skip-mm-profiling", "--enforce-eager"]
    server = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"})
    try:
        until = time.monotonic() + 300
        while True:
            try:
                ask("/health")
                break
            except (URLError, OSError):
                if server.poll() is not None or time.monotonic() > until:
                    raise SystemExit("the server did not start") from None
                time.sleep(1)
        bodies = [request_of(images) for images in pictures()]
        plugins = cases(depth)
        speeds = {}
        measured(plugins["SCR and DSCR"], bodies)  # the first requests of a server are slow
        for name in MEASURED:
            speeds[name] = measured(plugins[name], bodies)
            print(name, speeds[name], file=sys.stderr, flush=True)
        measured([], bodies[:1])
        endpoint = ("--endpoint", f"http://127.0.0.1:{PORT}/v1")
        evals = {"eval --endpoint": evaluated(scenes, work / "served", *endpoint)}
    finally:
        server.terminate()
        server.wait(60)
    evals["eval"] = evaluated(scenes, work / "local", "demo", "--dtype", "float32")
    print(evals, file=sys.stderr, flush=True)
    arguments.out.write_text(json.dumps({"plug-ins": speeds, "eval": evals}, indent=2) + "\n")
    wrong = [
        name
        for name, found in speeds.items()
        if found["difference"] > LIMIT
        or found["failed"]
        or found["split"]
        or not found["edited"]  # counted without plug-ins, too: the prompts that they would have edited
    ]
    for name in wrong:
        print(f"not as single requests: {name}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
