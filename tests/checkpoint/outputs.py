"""Write outputs that record their generation and completeness, with the standard library only."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from qkedit.checkpoint.contents import MANIFEST_FILE
from qkedit.checkpoint.io.staging import StagedDirectory

FILES = ("qkedit.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "chat/template.txt")


def write_output(directory: Path, generation: int) -> None:
    (directory / "chat").mkdir()
    manifest = {"tool": {"name": "qkedit", "version": "0"}, "files": FILES, "generation": generation}
    for name in FILES:
        (directory / name).write_bytes(b"%d\n" % generation * 5000)
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest))


def read_generation(directory: Path) -> int | None:
    """Return the generation in a directory, None if it is absent; fail if it is incomplete."""
    if not directory.exists():
        return None
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    assert set(found) == set(FILES)
    generation = json.loads(found.pop(MANIFEST_FILE).read_text())["generation"]
    contents = {path.read_bytes() for path in found.values()}
    assert len(contents) == 1, "files of different generations"
    lines = contents.pop().split()
    assert len(lines) == 5000, "a file that was cut off"
    assert len(set(lines)) == 1
    assert int(lines[0]) == generation
    return int(generation)


def write_to(
    target: Path,
    *,
    overwrite: bool = True,
    force: bool = False,
    sources: Sequence[Path] = (),
    before_commit: Callable[[], object] = lambda: None,
) -> None:
    """Write generation 2 to the target, as a run does."""
    with StagedDirectory(target, overwrite=overwrite, force=force, sources=sources) as staged:
        write_output(staged.path, 2)
        before_commit()
        staged.commit()


def siblings(target: Path) -> list[str]:
    """Return the names in the directory that holds the target."""
    return sorted(os.listdir(target.parent))


def tree(directory: Path) -> dict[str, object]:
    """Return the content of a directory, recursively: contents of files and targets of links."""
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }
