"""Load a config, a processor or a model with transformers: the only module that calls `from_pretrained`.

A checkpoint may contain its own Python code (`auto_map` in its JSON files). By default, transformers asks on the
terminal whether to run it, so a piped `y` runs untrusted code, and a job without a terminal waits. Here there is no
question: the code runs if the caller permits it, and otherwise the error explains what is missing.
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
# The number of missing weights that an error lists.
_NAMES_SHOWN = 3
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The messages of torchvision if its compiled operators were built for another torch: at its import, at a second
# attempt of the import, and at the call of an operator.
_TORCHVISION_MISMATCH = re.compile(
    r"operator torchvision::\w+ does not exist"
    r"|module 'torchvision' has no attribute 'extension'"
    r"|torchvision\S*_C\.so"
    r"|Couldn't load custom C\+\+ ops"
)


def from_pretrained(
    kind: Any, directory: Path | str, *, where: str = "", trust_remote_code: bool | None = None, **settings: Any
) -> Any:
    """Call `kind.from_pretrained` without questions on the terminal or output on stdout.

    Args:
        kind: one of transformers' `Auto…` classes.
        directory: the checkpoint.
        where: the user's name for the checkpoint; by default the directory.
        trust_remote_code: whether the checkpoint's own code may run; None if users cannot permit it.
        settings: further arguments.

    Raises:
        QkeditError: the checkpoint needs its own code and may not run it, or torchvision was built for another torch.
        Exception: other errors of transformers.
    """
    try:
        with redirect_stdout(sys.stderr):
            return kind.from_pretrained(directory, trust_remote_code=bool(trust_remote_code), **settings)
    except (ImportError, ValueError, RuntimeError, AttributeError, OSError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise QkeditError(
                "it can be loaded only with its own Python code, which does not run without permission",
                where=where or str(directory),
                remedy="name a model that transformers supports" if trust_remote_code is None else TRUST_REMEDY,
            ) from error
        check_torchvision(error, where or str(directory))
        raise


def pretrained_weights(
    kind: Any,
    directory: Path | str,
    *,
    where: str = "",
    trust_remote_code: bool | None = None,
    spare: str = "",
    **settings: Any,
) -> Any:
    """Load a model with `from_pretrained`, and refuse it if the checkpoint lacks some of its weights.

    transformers fills a missing weight with random numbers and only logs it; the answers would be meaningless.

    Args:
        kind: one of transformers' `AutoModel…` classes.
        directory: the checkpoint.
        where: the user's name for the checkpoint; by default the directory.
        trust_remote_code: whether the checkpoint's own code may run; None if users cannot permit it.
        spare: the beginning of the names of weights that the caller does not use, and the checkpoint may lack.
        settings: further arguments.

    Raises:
        QkeditError: weights are missing, or for the reasons of `from_pretrained`.
        Exception: other errors of transformers.
    """
    with _only_errors_logged():  # our error replaces its table of missing weights
        model, report = from_pretrained(
            kind,
            directory,
            where=where,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    missing = sorted(name for name in report["missing_keys"] if not spare or not name.startswith(spare))
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
    """Raise QkeditError if a failure shows that torchvision's compiled part does not match torch."""
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
    """Return the version of torchvision for a version of torch: 0.28.* for 2.13, counting from 0.15 for 2.0."""
    found = re.match(r"2\.(\d+)", torch)
    return f"0.{int(found[1]) + 15}.*" if found else "…"


def check_trusted_code(model: str, revision: str | None) -> None:
    """Check that code to be run is pinned: a directory's code is local, a hub model's code needs a commit.

    Args:
        model: a directory or a hub id.
        revision: the revision of a model on the hub.

    Raises:
        UsageError: the revision is a branch or a tag, whose code may change after the user has read it.
    """
    if not Path(model).is_dir() and not _COMMIT.fullmatch(revision or ""):
        raise UsageError(
            "the code of a model on the hub runs only from a fixed commit",
            where="--trust-remote-code",
            remedy="give --revision with the 40 digits of the commit whose code you have read",
        )


def check_own_code(directory: Path) -> None:
    """Check that a checkpoint does not use code from another repository, which its revision does not pin.

    Raises:
        QkeditError: the checkpoint uses such code.
    """
    for file, reference in _code_references(directory):
        if "--" in reference:
            raise QkeditError(
                f"its code is in another repository ({reference})",
                where=str(file),
                remedy="download that code into a copy of the checkpoint and refer to it there without the repository",
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
