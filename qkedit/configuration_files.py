"""Find and read the YAML files in `configs/`, which ship with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from qkedit.errors import QkeditError


@cache
def configuration_directory() -> Path:
    """`qkedit/configs` in an installed wheel, `configs` beside the package in a source checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def read_configuration(*parts: str) -> Any:
    """Parse one YAML file, by its path below `configs/`. Raises QkeditError if it is missing or no YAML."""
    import yaml

    path = configuration_directory().joinpath(*parts)
    try:
        # libyaml, where PyYAML was built with it, takes a tenth of the time.
        return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise QkeditError(
            f"cannot be read ({reason})", where=str(path), remedy="correct the file or install qkedit again"
        ) from error


def configuration_files(directory: str) -> tuple[str, ...]:
    """Names of the YAML files in one directory of `configs/`, sorted."""
    return tuple(sorted(path.name for path in (configuration_directory() / directory).glob("*.yaml")))
