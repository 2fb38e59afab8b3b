"""Load a config, a processor or a model with transformers: the one place that calls `from_pretrained`.

A checkpoint may bring Python code of its own (`auto_map` in its JSON files). Left to itself, transformers asks on the
terminal whether to run it, so that a piped `y` runs a stranger's code, and a job without a terminal waits. Here nobody
is asked: the code runs if the caller says so, and otherwise one sentence says what is missing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qkedit.errors import QkeditError, UsageError

TRUST_REMEDY = (
    "read that code and pass --trust-remote-code if you trust it (for a model on the hub together with "
    "--revision COMMIT)"
)
# How many missing weights an error lists.
_NAMES_SHOWN = 3
_COMMIT = re.compile(r"[0-9a-f]{40}")
# How torchvision says that its compiled operators were built for another torch: where it is imported, where that
# import is tried once more, and where an operator is called.
_TORCHVISION_MISMATCH = re.compile(
    r"operator torchvision::\w+ does not exist"
    r"|module 'torchvision' has no attribute 'extension'"
    r"|torchvision\S*_C\.so"
    r"|Couldn't load custom C\+\+ ops"
)


def from_pretrained(
    kind: Any, directory: Path | str, *, where: str = "", trust_remote_code: bool | None = None, **settings: Any
) -> Any:
    """Return what `kind.from_pretrained` loads, without a question on the terminal or a byte on standard output.

    Args:
        kind: one of transformers' `Auto…` classes.
        directory: the checkpoint.
        where: what the user calls the checkpoint; by default the directory.
        trust_remote_code: whether the checkpoint's own code may run; None where users cannot allow it.
        settings: further arguments.

    Raises:
        QkeditError: it needs code of its own and may not run it, or torchvision was built for another torch.
        Exception: whatever else transformers raises.
    """
    try:
        with redirect_stdout(sys.stderr):
            return kind.from_pretrained(directory, trust_remote_code=bool(trust_remote_code), **settings)
    except (ImportError, ValueError, RuntimeError, AttributeError, OSError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise QkeditError(
                "it can be loaded only with Python code of its own, which is not run unasked",
                where=where or str(directory),
                remedy="name a model that transformers knows" if trust_remote_code is None else TRUST_REMEDY,
            ) from error
        check_torchvision(error, where or str(directory))
        raise


def pretrained_weights(
    kind: Any, directory: Path | str, *, where: str = "", trust_remote_code: bool | None = None, **settings: Any
) -> Any:
    """Return the model that `from_pretrained` loads, if the checkpoint holds all of its weights.

    transformers fills a missing weight with random numbers and only logs it: the answers would mean nothing.

    Args:
        kind: one of transformers' `AutoModel…` classes.
        directory: the checkpoint.
        where: what the user calls the checkpoint; by default the directory.
        trust_remote_code: whether the checkpoint's own code may run; None where users cannot allow it.
        settings: further arguments.

    Raises:
        QkeditError: weights are missing, or what `from_pretrained` raises.
        Exception: whatever else transformers raises.
    """
    with _only_errors_logged():  # its table of missing weights becomes our sentence
        model, report = from_pretrained(
            kind,
            directory,
            where=where,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        raise QkeditError(
            f"the checkpoint lacks weights of the model ({', '.join(missing[:_NAMES_SHOWN])}{more})",
            where=where or str(directory),
            remedy="download it again, or save the model with all of its weights",
        )
    return model


@contextmanager
def _only_errors_logged() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def check_torchvision(error: BaseException, where: str) -> None:
    """Raise QkeditError if a failure says that torchvision's compiled part does not fit torch."""
    seen: BaseException | None = error
    while seen is not None:
        if found := _TORCHVISION_MISMATCH.search(str(seen)):
            raise QkeditError(
                f"the installed torchvision {_version('torchvision')} was built for another torch than "
                f"{_version('torch')} ({found[0]})",
                where=where,
                remedy=f"install its own from the index that torch came from (`pip install 'torchvision=="
                f"{torchvision_for(_version('torch'))}'`)",
            ) from error
        seen = seen.__cause__ or seen.__context__


def torchvision_for(torch: str) -> str:
    """Return which torchvision was built for a version of torch: 0.28.* for 2.13, as counted since 0.15 for 2.0."""
    found = re.match(r"2\.(\d+)", torch)
    return f"0.{int(found[1]) + 15}.*" if found else "…"


def check_trusted_code(model: str, revision: str | None) -> None:
    """Check that code which shall run is pinned: a directory's is at hand, a hub model's needs a commit.

    Args:
        model: a directory or a hub id.
        revision: of a model on the hub.

    Raises:
        UsageError: the revision is a branch or a tag, whose code may change between reading and running it.
    """
    if not Path(model).is_dir() and not _COMMIT.fullmatch(revision or ""):
        raise UsageError(
            "the code of a model on the hub runs from one commit alone",
            where="--trust-remote-code",
            remedy="give --revision with the 40 digits of the commit whose code you have read",
        )


def check_own_code(directory: Path) -> None:
    """Check that a checkpoint names no code in another repository, which no revision of its own pins.

    Raises:
        QkeditError: it does.
    """
    for file, reference in _code_references(directory):
        if "--" in reference:
            raise QkeditError(
                f"its code stands in another repository ({reference})",
                where=str(file),
                remedy="download that code into a copy of the checkpoint and name it there without the repository",
            )


def _code_references(directory: Path) -> Iterator[tuple[Path, str]]:
    for file in sorted(directory.glob("*.json")):
        document: Any = None
        with suppress(OSError, ValueError, RecursionError):
            document = json.loads(file.read_bytes())
        code = document.get("auto_map") if isinstance(document, dict) else None
        for value in code.values() if isinstance(code, dict) else ():
            for reference in value if isinstance(value, list) else [value]:
                if isinstance(reference, str):
                    yield file, reference


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
