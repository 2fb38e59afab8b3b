"""The packages that `qkedit serve` needs, and the versions of transformers that its adapter supports.

The classes behind `transformers serve` are not documented as an interface, so their version is checked before they
are imported, and `tests/serving/test_transformers_classes.py` checks the parts that the adapter uses.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

from qkedit.errors import QkeditError

# The oldest and the latest minor version of transformers with which the tests of the server classes have passed.
OLDEST, LATEST = (5, 20), (5, 23)
PACKAGES = ("fastapi", "uvicorn", "pydantic", "openai", "prometheus_client", "h11")
INSTALL = "install it with `pip install 'qkedit[serve]'`"


def check_serving_packages() -> None:
    """Raise QkeditError unless all packages for serving are installed in supported versions."""
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError as error:
            raise QkeditError(
                f"the package {package} is not installed", where="qkedit serve", remedy=INSTALL
            ) from error
    check_transformers_version(version("transformers"))


def check_transformers_version(installed: str) -> None:
    """Raise QkeditError for a version of transformers whose server classes are not supported."""
    minor = tuple(int(part) for part in installed.split(".")[:2])
    if not OLDEST <= minor <= LATEST:
        raise QkeditError(
            f"it runs on the server of transformers {_spelled(OLDEST)} to {_spelled(LATEST)}, and {installed} is "
            "installed",
            where="qkedit serve",
            remedy=INSTALL,
        )


def _spelled(minor: tuple[int, ...]) -> str:
    return ".".join(map(str, minor))
