"""The common flags of commands that run or attach plug-ins, and the plug-ins of a request."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qkedit.cli.flags.flag import flag, utf8

if TYPE_CHECKING:
    from qkedit.plugins.settings import PluginSettings

_logger = logging.getLogger(__name__)
DirectoryOption = Annotated[str | None, flag("--model", "-m", help="The model's directory.")]
PluginsOption = Annotated[
    list[str] | None,
    flag(
        "--plugin",
        help="NAME[:key=value,…], FILE.json or none; may be repeated. By default the plug-ins attached to the model.",
    ),
]
EditsOption = Annotated[
    list[Path] | None,
    flag(
        "--edit",
        help="An edit of the model that qkedit wrote (a delta, an adapter or a full output), put into the loaded "
        "weights; may be repeated.",
    ),
]
ImagesOption = Annotated[list[Path] | None, flag("--image", help="An image file; may be repeated.")]
PromptOption = Annotated[str, flag("--prompt", help="The question about the image.", callback=utf8)]


def chosen_plugins(texts: Sequence[str] | None, model: str, *, repeated: bool = False) -> tuple[PluginSettings, ...]:
    """Return the plug-ins of a request: those that are named, else those attached to the model.

    Published settings for the model are the defaults of their options. `repeated` allows a plug-in to be named twice.

    Raises:
        QkeditError: a plug-in is invalid, on the command line or in the file next to the weights.
    """
    from qkedit.plugins.config_file import attached_to
    from qkedit.plugins.paper_defaults import with_paper_defaults
    from qkedit.plugins.settings import parse_plugins

    named = parse_plugins(texts or (), repeated=repeated)
    if named is not None:
        return with_paper_defaults(named, model)
    plugins = with_paper_defaults(attached_to(Path(model).expanduser()), model)
    if plugins:
        _logger.warning("%s is attached to the model and acts; --plugin none leaves it out", joined(plugins))
    return plugins


def spelled(plugin: PluginSettings) -> str:
    """Return a plug-in with its options in the form of `--plugin`."""
    options = ",".join(f"{key}={_text(value)}" for key, value in plugin.options.items())
    return f"{plugin.name}:{options}" if options else plugin.name


def joined(plugins: Sequence[PluginSettings]) -> str:
    """Return the plug-ins in one line."""
    return " + ".join(spelled(plugin) for plugin in plugins) or "none"


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"  # as most people type it
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
