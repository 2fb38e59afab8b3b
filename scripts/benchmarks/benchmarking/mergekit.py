"""Copy the same tensors with another tool: mergekit's `passthrough`, which rewrites every tensor of its input.

mergekit cannot read a vision-language configuration, so its input is the language model alone: the same shards under
the configuration of the text model (Qwen2 for Qwen2-VL), whose tensors have the same names. It writes the bytes of the
checkpoint without those of the vision tower.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarking.commands import Request, run_function
from benchmarking.disk import settle
from benchmarking.results import CommandRun
from qkedit.errors import UsageError

_COMMAND = "mergekit.scripts.run_yaml:main"
_INDEX = "model.safetensors.index.json"
_VISION_PREFIX = "visual."
_NOT_OF_THE_TEXT_MODEL = ("vision_config", "rope_scaling", "image_token_id", "video_token_id")


def passthrough(request: Request, interpreter: str) -> Callable[[], CommandRun]:
    """Return the measurement; `interpreter` is a Python that has mergekit.

    Raises:
        UsageError: the language model's tensors do not have the names of a text model.
        CommandFailedError: the interpreter does not have mergekit.
    """
    run_function(_COMMAND, ["--help"], request.threads, interpreter)
    text_model = present_as_text_model(request)
    recipe = request.work / "mergekit.yml"
    recipe.write_text(json.dumps(_recipe(text_model)))  # JSON is YAML
    shard_values = max(file.stat().st_size for file in text_model.glob("*.safetensors")) // 2
    arguments = [
        str(recipe),
        str(request.output),
        "--no-copy-tokenizer",
        "--out-shard-size",
        str(shard_values),
    ]

    def measure() -> CommandRun:
        settle(request.model, request.cache)
        run, _ = run_function(_COMMAND, arguments, request.threads, interpreter)
        written = sum(file.stat().st_size for file in request.output.glob("*.safetensors"))
        shutil.rmtree(request.output)
        return replace(run, bytes_written=written)

    return measure


def present_as_text_model(request: Request) -> Path:
    """Return a directory with symlinks to the shards that presents the language model as a text model."""
    config = json.loads((request.model / "config.json").read_text())
    if config["model_type"] != "qwen2_vl" or not (request.model / _INDEX).exists():
        raise UsageError(
            "mergekit is compared on sharded checkpoints with Qwen2-VL's names only",
            where=str(request.model),
            remedy="leave out --mergekit, or measure a checkpoint that scripts/make_checkpoint.py wrote",
        )
    directory = request.work / "text-model"
    directory.mkdir()
    text = {name: value for name, value in config.items() if name not in _NOT_OF_THE_TEXT_MODEL}
    text |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (directory / "config.json").write_text(json.dumps(text))
    index = json.loads((request.model / _INDEX).read_text())
    places = {name: file for name, file in index["weight_map"].items() if not name.startswith(_VISION_PREFIX)}
    (directory / _INDEX).write_text(json.dumps(index | {"weight_map": places}))
    for file in set(places.values()):
        (directory / file).symlink_to((request.model / file).resolve())
    return directory


def _recipe(model: Path) -> dict[str, Any]:
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    source = {"model": str(model), "layer_range": [0, layers]}
    return {"merge_method": "passthrough", "dtype": "bfloat16", "slices": [{"sources": [source]}]}
