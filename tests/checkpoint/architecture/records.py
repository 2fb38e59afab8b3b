"""Write records of a family that qkedit does not know to a directory."""

from __future__ import annotations

from pathlib import Path

FAMILY = "name: My-VL\nmodel_types: [my_vl]\ndecoder: my_text\n"
DECODER = "name: My text\nmodel_types: [my_text]\nlayouts: [separate]\nrope: rotary\n"


def write_records(directory: Path, **files: str) -> Path:
    """Write `families_mine="…"` as families/mine.yaml, and return the directory."""
    for name, content in files.items():
        path = directory / f"{name.replace('_', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return directory
