"""The embedded default: a miniature grouped-query vision-language model that needs no network and no GPU."""

from __future__ import annotations

from pathlib import Path


def demo_checkpoint() -> Path:
    """Return the directory of the checkpoint that ships with the package; it is read-only."""
    return Path(__file__).resolve().parent / "checkpoint"
