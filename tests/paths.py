"""The root of the repository, for tests that run its scripts or read its documents."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
