"""Find and read the YAML files in `configs/`, which ship with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any


@cache
def configuration_directory() -> Path:
    """`qkedit/configs` in an installed wheel, `configs` beside the package in a source checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def read_configuration(*parts: str) -> Any:
    """Parse one YAML file, by its path below `configs/`."""
    import yaml

    with configuration_directory().joinpath(*parts).open(encoding="utf-8") as file:
        return yaml.safe_load(file)


def configuration_files(directory: str) -> tuple[str, ...]:
    """Names of the YAML files in one directory of `configs/`, sorted."""
    return tuple(sorted(path.name for path in (configuration_directory() / directory).glob("*.yaml")))
