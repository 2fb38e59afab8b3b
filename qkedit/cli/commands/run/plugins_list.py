"""`qkedit plugins list`: list all plug-ins, or those attached to a model."""

from __future__ import annotations

import typer

from qkedit.cli.flags.model import NamedModel
from qkedit.cli.flags.plugins import spelled
from qkedit.cli.output import aligned, command


def plugins_list(
    context: typer.Context,
    *,
    model: NamedModel,
) -> None:
    """List the plug-ins and their options, or those attached to a model.

    Example: qkedit plugins list ./llava-1.5-7b-hf
    """
    with command(context) as output:
        from pathlib import Path

        from qkedit.errors import UsageError
        from qkedit.plugins.config_file import attached_to
        from qkedit.plugins.registry import plugin_names, plugin_options
        from qkedit.report.fitting_table import FittingTable

        if model.is_named:
            directory = Path(model.name(context)).expanduser()
            if not directory.is_dir():
                raise UsageError(
                    "is not a directory, and plug-ins can be attached only to directories",
                    where=str(directory),
                    remedy="name a model's directory",
                )
            attached = attached_to(directory)
            output.result(
                {"directory": str(directory), "attached": [plugin.as_dict() for plugin in attached]},
                aligned(("attached", spelled(plugin)) for plugin in attached) if attached else "Nothing is attached.",
            )
            return
        known = {name: plugin_options(name) for name in plugin_names()}
        table = FittingTable("plug-in", "option", "values", "default", breaking=("values",))
        for name, listed in known.items():
            for option in listed:
                default = "by the model" if option.default is None else str(option.default)
                table.add_row(name, option.name, option.choices, default)
        output.result(
            {
                "plugins": [
                    {
                        "name": name,
                        "options": [
                            {"name": option.name, "values": option.choices, "default": option.default}
                            for option in listed
                        ],
                    }
                    for name, listed in known.items()
                ]
            },
            table,
        )
