#!/usr/bin/env python
"""Check that vLLM refuses the settings that plug-ins do not support, and does not start without its plug-ins.

    python scripts/vllm/refusals.py --work /tmp/vllm-compare --out refusals.json

scripts/test_vllm.sh runs this in an environment with vLLM. Every refused setting is given to vLLM's own configuration,
to notice a version of vLLM that renames one. Then a server is started whose depth model cannot be loaded; it must end
with one sentence instead of becoming ready.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from command_line import parser_of
from inputs import checkpoint

PORT = 8125
# Settings of vLLM's `EngineArgs` by the flag that the refusal names.
REFUSED: dict[str, dict[str, Any]] = {
    "--pipeline-parallel-size": {"pipeline_parallel_size": 2},
    "--data-parallel-size": {"data_parallel_size": 2},
    "--decode-context-parallel-size": {"tensor_parallel_size": 2, "decode_context_parallel_size": 2},
    "--prefill-context-parallel-size": {"prefill_context_parallel_size": 2},
    "--enable-dbo": {"ubatch_size": 2},
    "--kv-cache-dtype": {"kv_cache_dtype": "fp8"},
    "--speculative-config": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    "--kv-transfer-config": {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
    "--ec-transfer-config": {
        "ec_transfer_config": {"ec_connector": "ECExampleConnector", "ec_role": "ec_consumer"},
    },
    "vLLM": {"additional_config": {}},
}


def refusal(**settings: Any) -> str | None:
    """Return the message by which settings of `demo-small` with plug-ins are refused; None if vLLM accepts them."""
    from vllm.engine.arg_utils import EngineArgs

    from qkedit.errors import UsageError
    from qkedit.integrations.vllm.families import our_architecture
    from qkedit.integrations.vllm.launch import SECTION, read_config
    from qkedit.runtime.loading import directory_of

    directory = directory_of("demo-small")
    usual: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 512,
        "hf_overrides": {"architectures": [our_architecture(read_config(directory), "demo-small")]},
        "additional_config": {SECTION: {"schema": 1, "plugins": []}},
    }
    try:
        config = EngineArgs(str(directory), **{**usual, **settings}).create_engine_config()
    except UsageError as error:
        return str(error)
    if config.cache_config.enable_prefix_caching or config.scheduler_config.enable_chunked_prefill:
        raise SystemExit("prefix caching or chunked prefill was not switched off")
    return None


def failed_start(not_a_depth_model: Path) -> str:
    """Start a server whose depth model is of another kind, and return its output; empty if its exit code is 0."""
    command = [sys.executable, "-m", "qkedit", "serve", "demo-small", "--engine", "vllm", "--port", str(PORT)]
    command += ["--plugin", f"dscr:depth={not_a_depth_model}", "--", "--dtype", "float32", "--max-model-len", "512"]
    command += ["--gpu-memory-utilization", "0.2", "--skip-mm-profiling", "--enforce-eager"]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    return found.stdout if found.returncode else ""


def main() -> int:
    arguments = parser_of(__doc__).parse_args()
    os.environ["VLLM_PLUGINS"] = "qkedit"
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    found = {flag: refusal(**settings) for flag, settings in REFUSED.items()}
    wrong = [flag for flag, message in found.items() if not (message or "").startswith(flag)]
    if refusal(enable_prefix_caching=True, enable_chunked_prefill=True) is not None:
        wrong.append("caching")
    output = failed_start(checkpoint(arguments.work.resolve(), "qwen2_vl"))
    if "error: vLLM: worker 0 runs without plug-ins" not in output or "Traceback" in output:
        print(output, file=sys.stderr)
        wrong.append("a depth model that cannot be loaded")
    arguments.out.write_text(json.dumps({"refused": found, "wrong": wrong}, indent=2) + "\n")
    for name in wrong:
        print(f"not refused: {name}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
