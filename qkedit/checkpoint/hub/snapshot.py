"""Bring a model from the hub onto the disk as far as loading it needs, in the cache that every program shares."""

from __future__ import annotations

from pathlib import Path

from qkedit.checkpoint.hub.errors import explained
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.other_kinds import refuse_other_kind, refuse_pointers
from qkedit.errors import UsageError

# Weights as safetensors, configs, tokenizers and templates: no pickle and no code comes along.
LOADED_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
# The same weights in another format, under names of their own.
REPEATED_PATTERNS = ["consolidated*", "original/*", "onnx/*"]
# What comes along where a checkpoint's own code may run.
CODE_PATTERNS = ["*.py"]


def model_directory(model: str, revision: str | None = None, *, with_code: bool = False) -> Path:
    """Return a model's directory: the one of that name, or its snapshot in the hub's cache, downloaded if need be.

    Args:
        model: a directory or a hub id.
        revision: branch, tag or commit of a model on the hub.
        with_code: download its Python code too.

    Raises:
        UsageError: the directory's name cannot be opened by the libraries that load it.
        CheckpointError: the directory holds an adapter, a delta, GGUF or pointers of git-lfs; or there is no such
            directory, and the hub has no such model or cannot be reached.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        _refuse_other_bytes(path)
        files = LocalFiles(path)
        sizes = files.sizes()
        refuse_other_kind(files, sizes)
        refuse_pointers(files, sizes, [name for name in sizes if "/" not in name])
        return path
    from huggingface_hub import constants, snapshot_download

    requested = revision or constants.DEFAULT_REVISION
    with explained(model, requested):
        patterns = LOADED_PATTERNS + (CODE_PATTERNS if with_code else [])
        return Path(
            snapshot_download(model, revision=requested, allow_patterns=patterns, ignore_patterns=REPEATED_PATTERNS)
        )


def _refuse_other_bytes(path: Path) -> None:
    """Refuse a name that is not UTF-8: the readers of weights and tokenizers, written in Rust, open no such file."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UsageError(
            "holds bytes that are not UTF-8, and tokenizers and safetensors open no such path",
            where=str(path),
            remedy="rename the directory, or give a link to it with another name",
        ) from None
