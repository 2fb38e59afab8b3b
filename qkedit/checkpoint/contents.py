"""Sort the files next to the shards: which belong to an edited copy, and which hold the unedited weights again.

A checkpoint directory often carries its weights a second time in another format. Some engines prefer those
copies (vLLM reads `consolidated*.safetensors` of Mistral repositories, llama.cpp reads GGUF), so an edited
directory that kept them would load as the unedited model there. They are left out and named in the report.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import PurePosixPath

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# What qkedit writes into a model's directory.
MANIFEST_FILE = "qkedit.json"
DELTA_FILE = "qkedit-delta.safetensors"  # the edited tensors alone, next to the manifest
PLUGINS_FILE = "qkedit-plugins.json"
# What an edit replaced, in the safetensors format. Loaders take any `*.safetensors` for a shard, some in folders too.
ORIGINALS_FILE = "qkedit-original.bytes"
# Why that file stays with the base: an edit is measured by itself, not together with what the base was run with.
ATTACHED = "plug-ins attached to the base; --keep-plugins takes them along"

# What desktops leave in every directory that was looked into or copied: nobody's files.
LITTER_PATTERNS = ("._*", ".DS_Store", "Thumbs.db", "desktop.ini")

# Names that no loader of the shards reads, by what their files are; matched against the file's own name.
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
    "a checkpoint of a training": ("checkpoint-[0-9]*", "global_step[0-9]*"),
}
# At the top level loaders lay an adapter over the weights; in sub-directories a model names it itself.
ADAPTER = "an adapter, which loaders would lay over the edited weights"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_PATTERNS = (ADAPTER_CONFIG, "adapter_model*")
# Names the patterns above would catch, though they hold no weights of the model.
KEPT_PATTERNS = ("training_args.bin", "tokenizer*.bin", "tokenizer*.pkl", "vocab*")

PICKLED_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def is_hidden(file: str) -> bool:
    """Whether the file lies in a hidden directory (`.cache/`, `.git/`): a tool's own records, not the model's."""
    return any(part.startswith(".") for part in PurePosixPath(file).parts[:-1])


def is_hidden_file(file: str) -> bool:
    """Whether the file is a tool's own, like `.gitattributes`: no loader reads it."""
    return PurePosixPath(file).name.startswith(".")


def is_litter(file: str) -> bool:
    """Whether a desktop left the file, as macOS leaves `._model.safetensors` next to `model.safetensors`."""
    return _matches(PurePosixPath(file).name, LITTER_PATTERNS)


def reason_left_out(file: str) -> str:
    """Return what a file is by its name, if no loader of the shards reads it; "" for a file that an edit keeps."""
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
    """Whether the file's name is one that pickled weights go by."""
    name = PurePosixPath(file).name
    return _matches(name, PICKLED_PATTERNS) and not _matches(name, KEPT_PATTERNS)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
