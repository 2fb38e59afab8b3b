"""Download the files of a hub model that loading needs, into the cache that all programs share."""

from __future__ import annotations

from pathlib import Path

from qkedit.checkpoint.hub.errors import explained
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.other_kinds import refuse_other_kind, refuse_pointers
from qkedit.errors import UsageError

# Weights as safetensors, configs, tokenizers and templates; neither pickles nor code.
LOADED_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
# The same weights in another format, under other names.
REPEATED_PATTERNS = ["consolidated*", "original/*", "onnx/*"]
# Files that are also downloaded if the checkpoint's own code may run.
CODE_PATTERNS = ["*.py"]


def model_directory(model: str, revision: str | None = None, *, with_code: bool = False) -> Path:
    """Return a model's directory: the named one, or its snapshot in the hub's cache, downloaded if necessary.

    Args:
        model: a directory or a hub id.
        revision: branch, tag or commit of a model on the hub.
        with_code: whether to download its Python code too.

    Raises:
        UsageError: the loading libraries cannot open the directory's name.
        CheckpointError: the directory holds an adapter, a delta, GGUF or git-lfs pointers; or it does not exist, and
            the hub does not have the model or is unreachable.
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
    """Refuse a name that is not UTF-8: the Rust readers of weights and tokenizers cannot open it."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UsageError(
            "holds bytes that are not UTF-8, and tokenizers and safetensors cannot open such a path",
            where=str(path),
            remedy="rename the directory, or give a link to it with another name",
        ) from None
