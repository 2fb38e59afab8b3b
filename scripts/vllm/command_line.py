"""The options that every script here takes."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser_of(document: str | None) -> argparse.ArgumentParser:
    """Return a parser of `--work` and `--out`, with the script's docstring as its help."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints are written")
    parser.add_argument("--out", type=Path, required=True, help="file of results")
    return parser
