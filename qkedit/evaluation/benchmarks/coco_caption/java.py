"""Run the Java programs of pycocoevalcap; the package is not imported, and nothing is written into it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from qkedit.errors import QkeditError

WHERE = "coco-caption"


def program(name: str) -> Path:
    """Return a file of pycocoevalcap, such as `meteor/meteor-1.5.jar`. Raises QkeditError if it is missing."""
    package = find_spec("pycocoevalcap")
    places = package.submodule_search_locations if package else None
    file = next((found for place in places or () if (found := Path(place) / name).is_file()), None)
    if file is None:
        what = "pycocoevalcap is not installed" if package is None else f"pycocoevalcap has no {name}"
        raise QkeditError(what, where=WHERE, remedy="run: pip install 'qkedit[coco-caption]'")
    return file


def run_java(arguments: Sequence[str], given: str, what: str) -> str:
    """Run a Java program and return what it prints.

    Args:
        arguments: the arguments of `java`.
        given: the text of its standard input.
        what: the purpose of the program, as the subject of the error message.

    Raises:
        QkeditError: there is no Java, or the program failed.
    """
    done = _called(["-Dfile.encoding=UTF-8", *arguments], given, what)
    if done.returncode:
        raise QkeditError(
            f"{what} could not be computed: java {_said(done.stderr.decode('utf-8', 'replace'), done.returncode)}",
            where=WHERE,
            remedy="check that `java -version` works and that there is enough memory",
        )
    return done.stdout.decode("utf-8", "replace")


def java_release(what: str) -> int | None:
    """Return the release of Java, such as 8 or 17; None if it is unknown. Raises QkeditError if Java is missing."""
    found = re.search(r'version "(?:1\.)?(\d+)', _called(["-version"], "", what).stderr.decode("utf-8", "replace"))
    return int(found[1]) if found else None


def _called(arguments: Sequence[str], given: str, what: str) -> subprocess.CompletedProcess[bytes]:
    java = shutil.which("java")
    if java is None:
        raise QkeditError(
            f"{what} need Java, and there is no java on PATH",
            where=WHERE,
            remedy="install one, such as openjdk-17-jre-headless; `qkedit score --variant words` does not need it",
        )
    try:
        # A lone half of a surrogate pair, which JSON may hold, has no encoding.
        return subprocess.run([java, *arguments], input=given.encode("utf-8", "replace"), capture_output=True)
    except OSError as error:
        raise QkeditError(f"java cannot be run ({error.strerror})", where=java, remedy="repair it") from None


def _said(printed: str, code: int) -> str:
    """Return the line of a Java program's error output that names the error, for a message."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line or "xception" in line] or lines[-1:]
    return f"says {telling[0]!r}" if telling else f"ends with exit code {code}"
