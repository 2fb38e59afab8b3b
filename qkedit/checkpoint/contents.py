"""Classify the files next to the shards: those that belong in an edited copy, and copies of the unedited weights.

A checkpoint directory often holds its weights a second time in another format. Some engines prefer those copies (vLLM
reads `consolidated*.safetensors` of Mistral repositories, llama.cpp reads GGUF), so an edited directory that kept
them would load there as the unedited model. They are left out and listed in the report.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import PurePosixPath

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Files that qkedit writes into a model's directory.
MANIFEST_FILE = "qkedit.json"
DELTA_FILE = "qkedit-delta.safetensors"  # only the edited tensors, next to the manifest
PLUGINS_FILE = "qkedit-plugins.json"
# The tensors that an edit replaced, in safetensors format under another suffix: loaders read every `*.safetensors`.
ORIGINALS_FILE = "qkedit-original.bytes"
# The file stays with the base because an edit is measured by itself, without the plug-ins of the base.
ATTACHED = "plug-ins attached to the base; --keep-plugins copies them too"

# Files that desktops leave in every directory that was opened or copied.
LITTER_PATTERNS = ("._*", ".DS_Store", "Thumbs.db", "desktop.ini")

# Names that no loader of the shards reads, by their kind; matched against the file's own name.
LEFT_OUT = {
    "the original bytes of an earlier edit": (ORIGINALS_FILE,),
    "weights in another format": (
        "*.bin",
        "*.pt",
        "*.pth",
        "*.ckpt",
        "*.ckpt-*",
        "*.ckpt.*",
        "*.pkl",
        "*.h5",
        "*.msgpack",
        "*.gguf",
        "*.ggml",
        "*.llamafile",
        "*.pte",
        "*.engine",
        "*.onnx",
        "*.onnx_data*",
        "*.tflite",
        "*.npz",
        "*.ot",
        "*.distcp",
        "*.pdparams",
        "*.nemo",
        "consolidated*",
    ),
    "an index of other weights": (
        "*.bin.index*.json",
        "*.h5.index*.json",
        "*.msgpack.index*.json",
        "*.safetensors.index*.json",
    ),
    "an unfinished download": ("*.incomplete", "*.part", "*.crdownload", "*.aria2"),
    "a backup": ("*.bak", "*.old", "*.orig", "*~"),
}
# Whole directories at the top level: `original/` holds Llama's release format with its own params.json.
LEFT_OUT_DIRECTORIES = {
    "weights in another format": ("original", "onnx", "openvino"),
    "a training checkpoint": ("checkpoint-[0-9]*", "global_step[0-9]*"),
}
# At the top level loaders apply an adapter to the weights; in sub-directories the model itself names it.
ADAPTER = "an adapter, which loaders would apply to the edited weights"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_PATTERNS = (ADAPTER_CONFIG, "adapter_model*")
# Names that the patterns above match although they do not hold weights of the model.
KEPT_PATTERNS = ("training_args.bin", "tokenizer*.bin", "tokenizer*.pkl", "vocab*")

PICKLED_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def is_hidden(file: str) -> bool:
    """Return whether the file is in a hidden directory (`.cache/`, `.git/`), which belongs to a tool."""
    return any(part.startswith(".") for part in PurePosixPath(file).parts[:-1])


def is_hidden_file(file: str) -> bool:
    """Return whether the file belongs to a tool, like `.gitattributes`: no loader reads it."""
    return PurePosixPath(file).name.startswith(".")


def is_litter(file: str) -> bool:
    """Return whether a desktop left the file, as macOS leaves `._model.safetensors` next to `model.safetensors`."""
    return _matches(PurePosixPath(file).name, LITTER_PATTERNS)


def reason_left_out(file: str) -> str:
    """Return the kind of a file, by its name, if no loader of the shards reads it; "" if an edit keeps the file."""
    path = PurePosixPath(file)
    if len(path.parts) > 1:
        for reason, directories in LEFT_OUT_DIRECTORIES.items():
            if _matches(path.parts[0], directories):
                return reason
    elif _matches(path.name, ADAPTER_PATTERNS):
        return ADAPTER
    if _matches(path.name, KEPT_PATTERNS):
        return ""
    return next((reason for reason, patterns in LEFT_OUT.items() if _matches(path.name, patterns)), "")


def is_pickled_weights(file: str) -> bool:
    """Return whether the file has a usual name of pickled weights."""
    name = PurePosixPath(file).name
    return _matches(name, PICKLED_PATTERNS) and not _matches(name, KEPT_PATTERNS)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
