"""The flags of the engine that answers: transformers in this process, or a server of vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from qkedit.cli.flags.flag import MODE, flag
from qkedit.errors import UsageError

EngineOption = Annotated[
    Literal["transformers", "vllm"],
    flag("--engine", panel=MODE, help="What answers: transformers, or vllm, if it is installed (docs/vllm.md)."),
]
EngineFlags = Annotated[
    list[str] | None, typer.Argument(metavar="-- FLAGS", help="With --engine vllm: flags of vLLM's own server.")
]


def refuse_flags_without_engine(flags: Sequence[str] | None) -> None:
    """Raise UsageError for flags of vLLM if another engine answers."""
    if flags:
        raise UsageError("are not known", where=" ".join(flags), remedy="give them with --engine vllm")
