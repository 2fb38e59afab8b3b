"""Install a package like an installer: modules, metadata and entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from qkedit.checkpoint.architecture import library
from qkedit.evaluation.benchmarks.registry import benchmark_named
from qkedit.other_packages import points_of_other_packages
from qkedit.plugins import registry


@contextmanager
def installed(
    directory: Path,
    name: str,
    files: Mapping[str, str],
    entry_points: Mapping[str, str],
    group: str = registry.ENTRY_POINTS,
) -> Iterator[None]:
    """Install a package while the context is open.

    Args:
        directory: an empty directory for the package.
        name: the name of the distribution.
        files: the texts of its modules by path.
        entry_points: the objects of its entry points by name.
        group: the group of the entry points.
    """
    for path, text in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)
    metadata = directory / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    points = "".join(f"{point} = {target}\n" for point, target in entry_points.items())
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{points}")
    tops = {Path(path).parts[0].removesuffix(".py") for path in files}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        _forget()
        try:
            yield
        finally:
            _forget()
            for module in [module for module in sys.modules if module.partition(".")[0] in tops]:
                del sys.modules[module]


def _forget() -> None:
    points_of_other_packages.cache_clear()
    benchmark_named.cache_clear()
    library._known.cache_clear()
