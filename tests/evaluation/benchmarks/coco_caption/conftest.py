"""Replace `java` and pycocoevalcap by programs that log calls and return a chosen output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The tokenizer returns its input; METEOR and SPICE run statements of the test.
Programs = Callable[..., Path]

_JAVA = """#!{python}
import json, sys
from pathlib import Path
arguments = sys.argv[1:]
given = sys.stdin.buffer.read().decode()
Path({log!r}).open("a").write(json.dumps([arguments, given]) + "\\n")
asked = " ".join(arguments)
if "-version" in arguments:
    print({version!r}, file=sys.stderr)
elif "PTBTokenizer" in asked:
    {tokenizer}
elif "meteor" in asked:
    {meteor}
else:
    {spice}
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Return a function that puts programs with chosen statements on the path, and returns the log of calls."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for jar in ("tokenizer/stanford-corenlp-3.4.1.jar", "meteor/meteor-1.5.jar", "spice/spice-1.0.jar"):
        file = tmp_path / "site" / "pycocoevalcap" / jar
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "site" / "pycocoevalcap" / "__init__.py").write_text("raise ImportError('nobody imports it')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")

    def put(
        tokenizer: str = "print(given, end='')",
        meteor: str = "pass",
        spice: str = "pass",
        version: str = 'openjdk version "11.0.2"',
    ) -> Path:
        java, log = tmp_path / "bin" / "java", tmp_path / "calls.jsonl"
        java.parent.mkdir(exist_ok=True)
        text = _JAVA.format(
            python=sys.executable, log=str(log), tokenizer=tokenizer, meteor=meteor, spice=spice, version=version
        )
        java.write_text(text)
        java.chmod(0o755)
        return log

    return put
