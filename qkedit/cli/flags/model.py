"""The model of a command: a directory, a hub id, an alias or `demo`, and its revision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli import completion
from qkedit.cli.flags.flag import MODE, flag
from qkedit.cli.flags.groups import FlagGroup
from qkedit.cli.settings import on_command_line, unless_of_environment
from qkedit.errors import UsageError

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A directory, a hub id (org/name), an alias (qwen2-vl) or 'demo'.",
        autocompletion=completion.models,
    ),
]
ModelOption = Annotated[str | None, flag("--model", "-m", help="The same as MODEL, as an option.")]
RevisionOption = Annotated[str | None, flag("--revision", help="Branch, tag or commit of a hub model.")]
BaseOption = Annotated[str | None, flag("--base", help="The model that was edited.")]
ArchitecturesOption = Annotated[
    list[Path] | None,
    flag(
        "--architectures",
        panel=MODE,
        metavar="DIR",
        callback=unless_of_environment,
        help="A directory of architecture records for models that qkedit does not know; may be repeated.",
    ),
]
TextOnlyOption = Annotated[bool, flag("--allow-text-only", help="Also accept a checkpoint without vision.")]
DeviceOption = Annotated[
    str, flag("--device", panel=MODE, help="Device: auto, cpu, cuda (for steer every GPU), cuda:N or mps.")
]


@dataclass(frozen=True)
class NamedModel(FlagGroup):
    """The model, as the argument or as `--model`."""

    argument: ModelArgument = None
    model: ModelOption = None

    @property
    def is_named(self) -> bool:
        """Return whether a model is named."""
        return self.argument is not None or self.model is not None

    def name(self, context: typer.Context) -> str:
        """Return the named model.

        Raises:
            UsageError: the model is named twice on the command line, or not at all.
        """
        if self.argument is not None and self.model is not None and on_command_line(context, "model"):
            raise UsageError("the model is named twice", where="--model", remedy="give it once")
        model = self.argument if self.argument is not None else self.model
        if model is None:
            raise UsageError(
                "no model is named", remedy="give a directory, a hub id, an alias or demo, first or as --model"
            )
        return model


@dataclass(frozen=True)
class ModelFlags(NamedModel):
    """The model and its revision on the hub."""

    revision: RevisionOption = None
