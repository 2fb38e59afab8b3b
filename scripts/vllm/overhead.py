#!/usr/bin/env python
"""Measure the CPU time per answer of vLLM's own class, and of the class with plug-ins: switched off, and with each.

    python scripts/vllm/overhead.py --work /tmp/vllm-compare --out overhead.json

scripts/test_vllm.sh runs this in an environment with vLLM. The engine runs in this process on one thread, so its CPU
time hardly depends on other programs. Each number is the least of several runs of 36 prompts at once, the six of
compare.py six times.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from command_line import parser_of
from compare import ENGINE, MANY, TOKENS, cases, pictures, prompt_of
from inputs import checkpoint

RUNS = 4
# What plug-ins need, for an engine without them.
SETTINGS = {"enable_prefix_caching": False, "enable_chunked_prefill": False, "mm_device_do_normalize": False}
OWN, OFF = "vLLM's own class", "plug-ins, switched off"


def cpu_per_answer(engine: Any, prompts: list[Any], settings: Any) -> float:
    """Return the least CPU milliseconds per answer of several runs."""
    found = []
    for _ in range(RUNS):
        begun = time.process_time()
        engine.generate(prompts, settings, use_tqdm=False)
        found.append(time.process_time() - begun)
    return 1000 * min(found) / len(prompts)


def main() -> int:
    arguments = parser_of(__doc__).parse_args()
    os.environ["VLLM_PLUGINS"] = "qkedit"
    from vllm import LLM, SamplingParams

    from qkedit.integrations.vllm.families import our_architecture
    from qkedit.integrations.vllm.launch import SECTION, read_config
    from qkedit.integrations.vllm.plugin import check_ready
    from qkedit.runtime.generation import load
    from qkedit.runtime.loading import directory_of

    depth = checkpoint(arguments.work.resolve(), "depth")
    directory = directory_of("demo-small")
    loaded = load("demo-small", dtype="float32")
    prompts = [prompt_of(loaded, images) for images in pictures()] * MANY
    settings = SamplingParams(temperature=0, max_tokens=TOKENS)
    off = SamplingParams(temperature=0, max_tokens=TOKENS, extra_args={SECTION: "off"})
    found = {OWN: cpu_per_answer(LLM(str(directory), **ENGINE, **SETTINGS), prompts, settings)}
    engine = LLM(
        str(directory),
        **ENGINE,
        **SETTINGS,
        hf_overrides={"architectures": [our_architecture(read_config(directory), "demo-small")]},
        additional_config={SECTION: {"schema": 1, "plugins": []}},
    )
    plugins = cases(depth)
    for name in (OFF, "DSCR", "SCR", "SCR and DSCR"):
        document = {"schema": 1, "plugins": plugins["SCR and DSCR" if name == OFF else name]}
        check_ready(engine.collective_rpc("qkedit_bind", args=(document,)))
        found[name] = cpu_per_answer(engine, prompts, off if name == OFF else settings)
        report = engine.collective_rpc("qkedit_report")[0]
        wanted = 0 if name == OFF else RUNS * MANY * sum(bool(images) for images in pictures())
        if (report["edited"], report["failed"], report["split"]) != (wanted, 0, 0):
            raise SystemExit(f"{name}: {report}")
    print(found, file=sys.stderr, flush=True)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
