"""Sort the files beside the shards: which belong to an edited copy, and which hold the unedited weights again.

A checkpoint directory often carries its weights a second time in another format. Some engines prefer those
copies (vLLM reads `consolidated*.safetensors` of Mistral repositories, llama.cpp reads GGUF), so an edited
directory that kept them would load as the unedited model there. They are left out and named in the report.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import PurePosixPath

CONFIG_FILE = "config.json"
# What qkedit writes into a model's directory.
MANIFEST_FILE = "qkedit.json"
DELTA_FILE = "qkedit-delta.safetensors"  # the edited tensors alone, beside the manifest
PLUGINS_FILE = "qkedit-plugins.json"

# What desktops leave in every directory that was looked into or copied: nobody's files.
LITTER_PATTERNS = ("._*", ".DS_Store", "Thumbs.db", "desktop.ini")

# Weights in other formats, and the indices that would point at them. Matched against the file's own name.
STALE_PATTERNS = (
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.h5.index.json",
    "*.msgpack",
    "*.msgpack.index.json",
    "*.gguf",
    "*.ggml",
    "*.onnx",
    "*.onnx_data*",
    "*.tflite",
    "*.npz",
    "consolidated*",
)
# Whole directories of them, at the top level: `original/` holds Llama's release format with its own params.json.
STALE_DIRECTORIES = ("original", "onnx", "openvino")
# Names the patterns above would catch, though they hold no weights of the model.
KEPT_PATTERNS = ("training_args.bin", "tokenizer*", "vocab*")

PICKLED_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def is_hidden(file: str) -> bool:
    """Whether the file lies in a hidden directory (`.cache/`, `.git/`): a tool's own records, not the model's."""
    return any(part.startswith(".") for part in PurePosixPath(file).parts[:-1])


def is_litter(file: str) -> bool:
    """Whether a desktop left the file, as macOS leaves `._model.safetensors` beside `model.safetensors`."""
    return _matches(PurePosixPath(file).name, LITTER_PATTERNS)


def is_stale(file: str) -> bool:
    """Whether the file's name says that it holds weights in another format than the shards."""
    path = PurePosixPath(file)
    if len(path.parts) > 1 and path.parts[0] in STALE_DIRECTORIES:
        return True
    return _matches(path.name, STALE_PATTERNS) and not _matches(path.name, KEPT_PATTERNS)


def is_pickled_weights(file: str) -> bool:
    """Whether the file's name is one that pickled weights go by."""
    name = PurePosixPath(file).name
    return _matches(name, PICKLED_PATTERNS) and not _matches(name, KEPT_PATTERNS)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
