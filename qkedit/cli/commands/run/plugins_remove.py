"""`qkedit plugins remove`: run a model without a plug-in again."""

from __future__ import annotations

from typing import Annotated

import typer

from qkedit.cli.flags.plugins import DirectoryOption
from qkedit.cli.output import command
from qkedit.errors import UsageError


def plugins_remove(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="PLUGIN", help="Plug-ins to remove; all of them if none is named.")
    ] = None,
    model: DirectoryOption = None,
) -> None:
    """Remove plug-ins from the file next to a model's weights.

    Example: qkedit plugins remove scr --model ./llava-1.5-7b-hf
    """
    with command(context) as output:
        from qkedit.plugins.config_file import attached_to, detach_from, users_directory

        if model is None:
            raise UsageError("no model is named", where="--model", remedy="give its directory")
        directory = users_directory(model)
        removed = detach_from(directory, names or ())
        rest = attached_to(directory)
        said = f"Detached {', '.join(removed)}." if removed else "Nothing was attached."
        output.result(
            {
                "directory": str(directory),
                "detached": list(removed),
                "plugins": [plugin.as_dict() for plugin in rest],
            },
            said,
            summary=True,
        )
