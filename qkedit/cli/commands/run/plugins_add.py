"""`qkedit plugins add`: attach plug-ins to a model by a file next to its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkedit.cli import completion
from qkedit.cli.flags.plugins import DirectoryOption, spelled
from qkedit.cli.output import aligned, command
from qkedit.errors import UsageError, first_sentence

if TYPE_CHECKING:
    from pathlib import Path

    from qkedit.plugins.settings import PluginSettings


def plugins_add(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PLUGIN [--OPTION VALUE]",
            help="scr, dscr, another name, NAME:key=value,… or FILE.json.",
            autocompletion=completion.plugins,
        ),
    ] = None,
    model: DirectoryOption = None,
) -> None:
    """Attach plug-ins to a model by a file next to its weights.

    The weights are not changed, and other tools ignore the file, qkedit-plugins.json. A plug-in that is already
    attached gets the new options. `qkedit plugins list` lists all options.

    Example: qkedit plugins add scr --layers 0-11 --model ./llava-1.5-7b-hf
    """
    with command(context) as output:
        from qkedit.plugins.config_file import PLUGINS_FILE, attach_to, users_directory
        from qkedit.plugins.paper_defaults import with_paper_defaults
        from qkedit.plugins.settings import parse_words, with_absolute_paths

        if not words:
            raise UsageError("no plug-in is named", remedy="name one; `qkedit plugins list` lists them")
        if model is None:
            raise UsageError("no model is named", where="--model", remedy="give its directory")
        named = parse_words(words)
        directory = users_directory(model)
        plugins = tuple(map(with_absolute_paths, with_paper_defaults(named, model)))
        _check_against_model(plugins, directory)
        attached = attach_to(directory, plugins)
        facts = [("attached", spelled(plugin)) for plugin in attached]
        output.result(
            {"directory": str(directory), "plugins": [plugin.as_dict() for plugin in attached]},
            aligned([*facts, ("written", str(directory / PLUGINS_FILE))]),
            summary=True,
        )


def _check_against_model(plugins: tuple[PluginSettings, ...], directory: Path) -> None:
    """Raise QkeditError for settings that the plug-ins would refuse on this model."""
    from pathlib import Path

    from qkedit.plugins.core.grid_layouts import layout_of
    from qkedit.plugins.dscr.depth import DEPTH_FILE_ENDINGS, read_depth
    from qkedit.plugins.settings import make_plugins
    from qkedit.selection import select_layers

    config = _config(directory)
    layout_of(config)
    layers = config.get_text_config().num_hidden_layers
    for plugin in make_plugins(plugins):
        depth = getattr(plugin, "depth", None)
        if isinstance(depth, str | Path) and Path(depth).suffix.lower() in DEPTH_FILE_ENDINGS:
            read_depth(depth)
        for option in ("layers", "diagnosis"):
            if isinstance(text := getattr(plugin, option, None), str):
                select_layers(text, layers, where=f"{plugin.name} {option}")


def _config(directory: Path) -> Any:
    from transformers import AutoConfig

    from qkedit.checkpoint.pretrained import from_pretrained

    try:
        return from_pretrained(AutoConfig, directory)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"transformers does not know this model ({first_sentence(error)})",
            where=str(directory),
            remedy="name the directory of a vision-language model that transformers loads by itself",
        ) from error
