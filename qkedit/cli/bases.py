"""What an edited model was made from, as its manifest says."""

from __future__ import annotations

from pathlib import Path

from qkedit.checkpoint.contents import MANIFEST_FILE


def is_edited(model: str) -> bool:
    """Whether a model is a directory that qkedit wrote."""
    return (Path(model).expanduser() / MANIFEST_FILE).is_file()


def base_of(model: str) -> tuple[str | None, str | None]:
    """Return the base that a manifest names, and its revision; None for a directory, whose path it does not know."""
    from qkedit.steering.manifest import read_manifest

    recorded = read_manifest(Path(model).expanduser())["base"]
    known = recorded["revision"] is not None or recorded["model"] == "demo"
    return (recorded["model"], recorded["revision"]) if known else (None, None)
