"""The embedded miniature grouped-query vision-language models, which need no network and no GPU, and their worlds."""

from __future__ import annotations

from pathlib import Path

DEMO = "demo"
SMALL_DEMO = "demo-small"
DEMOS = (DEMO, SMALL_DEMO)
# The directory of each model, in this one.
_DIRECTORIES = {DEMO: "checkpoint", SMALL_DEMO: "small_checkpoint"}


def demo_checkpoint(name: str = DEMO) -> Path:
    """Return the directory of a checkpoint that ships with the package; it is read-only.

    Args:
        name: `demo` or `demo-small`.
    """
    return Path(__file__).resolve().parent / _DIRECTORIES[name]
