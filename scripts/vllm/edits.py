#!/usr/bin/env python
"""Compare edited directories on vLLM with transformers, and load an edit as an adapter into a running server.

    python scripts/vllm/edits.py --work /tmp/vllm-compare --out edits.json

scripts/test_vllm.sh runs this in an environment with vLLM. The log probabilities of an edited directory are compared
as in compare.py. The adapter is loaded into a running server of its base, then a copy of it with wrong names of
tensors, and the first is unloaded; `qkedit verify --endpoint` must distinguish these states by its exit code.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parent))

from command_line import parser_of
from compare import (
    ENGINE,
    LIMIT,
    SHOWN,
    TOKENS,
    compared,
    inspect_in_this_process,
    on_transformers,
    pictures,
    prompt_of,
)
from inputs import checkpoint

PORT = 8123
EDIT = ("--layers", "2-5", "--k", "4")


def qkedit(*words: str) -> int:
    """Run a command of qkedit, and return its exit code."""
    return subprocess.run([sys.executable, "-m", "qkedit", *words, "--quiet"], stdout=sys.stderr).returncode


def of_directory(base: str, directory: Path) -> dict[str, float]:
    """Return the largest difference of an edited directory, and the largest change by the edit on transformers."""
    from vllm import LLM, SamplingParams

    from qkedit.runtime.generation import load

    edited, unedited = load(str(directory), dtype="float32"), load(base, dtype="float32")
    engine = LLM(str(directory), **ENGINE)
    prompts = [prompt_of(edited, images) for images in pictures()]
    settings = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=SHOWN)
    wanted = [on_transformers(edited, images, []) for images in pictures()]
    before = [on_transformers(unedited, images, []) for images in pictures()]
    found = compared(engine.generate(prompts, settings, use_tqdm=False), wanted)
    effect = max(abs(one[1][0] - other[1][0]).max() for one, other in zip(wanted, before, strict=True))
    return {"difference": float(max(found)), "effect": float(effect)}


def ask(path: str, body: dict[str, Any] | None = None) -> int:
    """Return the HTTP status of a request to the server; 0 if it does not answer."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{PORT}{path}", data, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=600) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except (URLError, OSError):
        return 0


def with_wrong_names(adapter: Path, to: Path) -> None:
    """Copy an adapter with names of tensors that match no module: vLLM loads it without an error or an effect."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, to, dirs_exist_ok=True)
    file = to / "adapter_model.safetensors"
    save_file(
        {name.replace("language_model", "another_model"): tensor for name, tensor in load_file(file).items()}, file
    )


def of_adapter(base: Path, adapter: Path, wrong: Path) -> dict[str, int]:
    """Return the exit codes of `verify --endpoint` for an adapter in a running server."""
    command = [sys.executable, "-m", "qkedit", "serve", str(base), "--engine", "vllm", "--port", str(PORT), "--"]
    command += ["--dtype", "float32", "--max-model-len", "512", "--gpu-memory-utilization", "0.2", "--enforce-eager"]
    command += ["--skip-mm-profiling", "--enable-lora", "--max-lora-rank", "16"]
    server = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"})

    def verified(name: str) -> int:
        where = ("--endpoint", f"http://127.0.0.1:{PORT}", "--endpoint-model", name)
        return qkedit("verify", str(adapter), "--base", str(base), *where, "--dtype", "float32")

    try:
        until = time.monotonic() + 900
        while ask("/health") != 200:
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit("the server did not start")
            time.sleep(1)
        found = {"base": verified(base.name)}
        for name, directory in (("edited", adapter), ("wrong", wrong)):
            body = {"lora_name": name, "lora_path": str(directory)}
            found[f"{name}: load"] = ask("/v1/load_lora_adapter", body)
            found[name] = verified(name)
        found["unload"] = ask("/v1/unload_lora_adapter", {"lora_name": "edited"})
        found["unloaded"] = verified("edited")
        return found
    finally:
        server.terminate()
        server.wait(60)


def main() -> int:
    arguments = parser_of(__doc__).parse_args()
    work = arguments.work.resolve()
    qwen = checkpoint(work, "qwen2_vl")
    directories = {}
    inspect_in_this_process()
    for name, base in (("demo-small", "demo-small"), ("qwen2_vl", str(qwen))):
        edited = work / f"{name}-edited"
        if qkedit("steer", base, *EDIT, "--out", str(edited), "--force"):
            return 1
        directories[name] = of_directory(base, edited)
        print(name, directories[name], file=sys.stderr, flush=True)
    adapter, wrong = work / "adapter", work / "adapter-wrong"
    if qkedit("steer", str(qwen), *EDIT, "--layout", "lora", "--out", str(adapter), "--force"):
        return 1
    with_wrong_names(adapter, wrong)
    served = of_adapter(qwen, adapter, wrong)
    print(served, file=sys.stderr, flush=True)
    arguments.out.write_text(json.dumps({"directories": directories, "adapter": served}, indent=2) + "\n")
    right = {"base": 3, "edited: load": 200, "edited": 0, "wrong": 3, "unload": 200}
    is_right = all(served[key] == value for key, value in right.items()) and served["unloaded"] != 0
    return 0 if is_right and all(found["difference"] < LIMIT for found in directories.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
