"""Run the Java programs that pycocoevalcap brings; nothing of it is imported, and nothing is written beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from qkedit.errors import QkeditError

WHERE = "coco-caption"


def program(name: str) -> Path:
    """Return a file of pycocoevalcap, such as `meteor/meteor-1.5.jar`. Raises QkeditError where it is missing."""
    package = find_spec("pycocoevalcap")
    places = package.submodule_search_locations if package else None
    file = next((found for place in places or () if (found := Path(place) / name).is_file()), None)
    if file is None:
        what = "pycocoevalcap is not installed" if package is None else f"pycocoevalcap has no {name}"
        raise QkeditError(what, where=WHERE, remedy="run: pip install 'qkedit[coco-caption]'")
    return file


def run_java(arguments: Sequence[str], given: str, what: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a Java program and return what it prints.

    Args:
        arguments: of `java`.
        given: the text of its standard input.
        what: what it is for: the subject of the sentence that says that Java is missing.
        environment: variables beside those that are set.

    Raises:
        QkeditError: there is no Java, or the program failed.
    """
    java = shutil.which("java")
    if java is None:
        raise QkeditError(
            f"{what} need Java, and there is no java on PATH",
            where=WHERE,
            remedy="install one, such as openjdk-17-jre-headless; `qkedit score --variant words` does without",
        )
    # A lone half of a surrogate pair, as JSON may hold, has no bytes.
    text = given.encode("utf-8", "replace")
    try:
        done = subprocess.run(
            [java, "-Dfile.encoding=UTF-8", *arguments],
            input=text,
            capture_output=True,
            env={**os.environ, **(environment or {})},
        )
    except OSError as error:
        raise QkeditError(f"java cannot be run ({error.strerror})", where=java, remedy="mend it") from None
    if done.returncode:
        raise QkeditError(
            f"{what} could not be made: java {_said(done.stderr.decode('utf-8', 'replace'), done.returncode)}",
            where=WHERE,
            remedy="see that `java -version` works and that memory suffices",
        )
    return done.stdout.decode("utf-8", "replace")


def _said(printed: str, code: int) -> str:
    """Return the line of a Java program's complaints that names the error, to be quoted."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line or "xception" in line] or lines[-1:]
    return f"says {telling[0]!r}" if telling else f"ends with exit code {code}"
