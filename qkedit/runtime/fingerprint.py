"""Identify a model by its content: a SHA-256 of its weights, and one of its settings files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from qkedit.checkpoint.contents import MANIFEST_FILE, PLUGINS_FILE
from qkedit.checkpoint.hub.snapshot import CODE_PATTERNS, LOADED_PATTERNS, REPEATED_PATTERNS
from qkedit.checkpoint.io.file_errors import explained
from qkedit.errors import QkeditError
from qkedit.plugins.core.pictures import check_files, files_for
from qkedit.plugins.settings import PluginSettings, make_plugins

# Neither affects the answers of the weights: one records their origin, and the run itself records its plug-ins.
_OURS = (MANIFEST_FILE, PLUGINS_FILE)


def fingerprint(directory: Path, *, with_code: bool = False) -> dict[str, str]:
    """Return `weights_sha256` and `settings_sha256` of a model, and `code_sha256` if its own code runs.

    Each is the SHA-256 of the output of `sha256sum` for the files in the order of their names, so that a shell can
    check it: `sha256sum *.safetensors | sha256sum`. Settings are configs, tokenizer and chat template; code is the
    Python files.

    Raises:
        QkeditError: there are no weights as safetensors, or a file cannot be read.
    """
    loaded = [
        path
        for path in directory.iterdir()
        if any(fnmatch(path.name, pattern) for pattern in LOADED_PATTERNS)
        and not any(fnmatch(path.name, pattern) for pattern in REPEATED_PATTERNS)
        and path.name not in _OURS
        and path.is_file()
    ]
    weights = [path for path in loaded if path.suffix == ".safetensors"]
    if not weights:
        raise QkeditError(
            "holds no weights as safetensors", where=str(directory), remedy="name the directory of a model"
        )
    code = [path for pattern in CODE_PATTERNS for path in directory.glob(pattern)] if with_code else []
    return {
        "weights_sha256": _sha256_of_all(weights),
        "settings_sha256": _sha256_of_all(path for path in loaded if path not in weights),
        **({"code_sha256": _sha256_of_all(code)} if with_code else {}),
    }


def plugin_files_sha256(plugins: Sequence[PluginSettings], images: Iterable[Path]) -> dict[str, str]:
    """Return the hash of the files that plug-ins read for these images, such as second images; empty without any.

    Raises:
        UsageError: a file is missing.
    """
    if not plugins:
        return {}
    made, pictures = make_plugins(plugins), list(dict.fromkeys(images))
    check_files(made, pictures)
    files = files_for(made, pictures)
    return {"plugin_files_sha256": sha256_in_order(files)} if files else {}


def sha256_in_order(files: Iterable[Path]) -> str:
    """Return one hash of the contents of files, in this order. Raises QkeditError for a file that cannot be read."""
    ordered = list(files)
    digests = {file: _sha256(file) for file in dict.fromkeys(ordered)}
    return hashlib.sha256("\n".join(digests[file] for file in ordered).encode()).hexdigest()


def _sha256_of_all(files: Iterable[Path]) -> str:
    ordered = sorted(files, key=lambda path: path.name.encode())
    # Hashing releases the interpreter's lock, so shards are hashed concurrently.
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_sha256, ordered)
        lines = [f"{digest}  {path.name}\n" for path, digest in zip(ordered, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with explained("read the file", file), file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
