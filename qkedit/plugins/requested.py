"""The plug-ins that Python code asks for: text in the form of `--plugin`, or plug-ins themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from qkedit.errors import UsageError
from qkedit.plugins.core.protocol import Plugin
from qkedit.plugins.paper_defaults import with_paper_defaults
from qkedit.plugins.registry import plugin_class, plugin_names
from qkedit.plugins.settings import PluginSettings, make_plugins, parse_plugins

Plugins = str | Plugin | Sequence[str | Plugin]
"""One or several plug-ins: text such as `"scr"` or `"dscr:blend=0.5"`, or plug-ins such as `qkedit.SCR()`."""


def requested_settings(plugins: Plugins, model: str, *, repeated: bool = False) -> tuple[PluginSettings, ...]:
    """Return the settings of plug-ins, for runs that record them.

    As on the command line, published settings for the model are the defaults of a plug-in that is named by text.

    Args:
        plugins: the plug-ins.
        model: the name of the model.
        repeated: whether a plug-in may occur twice.

    Raises:
        UsageError: a plug-in or an option is unknown, a plug-in occurs twice, or an option cannot be recorded.
    """
    found: list[PluginSettings] = []
    for plugin in _listed(plugins):
        found += _by_text([plugin], model) if isinstance(plugin, str) else [_settings_of(plugin)]
    names = [plugin.name for plugin in found]
    if not repeated and (twice := [name for name in names if names.count(name) > 1]):
        raise UsageError(f"{twice[0]} is named twice", where="plugins", remedy="name each plug-in once")
    return tuple(found)


def requested_plugins(plugins: Plugins, model: str) -> list[Plugin]:
    """Return plug-ins that can be attached; those named by text are made as by `requested_settings`."""
    made: list[Plugin] = []
    for plugin in _listed(plugins):
        made += make_plugins(_by_text([plugin], model)) if isinstance(plugin, str) else [plugin]
    return made


def _listed(plugins: Plugins) -> list[str | Plugin]:
    one = isinstance(plugins, str) or hasattr(plugins, "bind")
    given = cast("list[str | Plugin]", [plugins] if one else list(cast("Sequence[Any]", plugins)))
    for plugin in given:
        if not isinstance(plugin, str) and not (hasattr(plugin, "bind") and hasattr(plugin, "name")):
            raise UsageError(
                f"{plugin!r} is not a plug-in", where="plugins", remedy="give text such as 'scr', or qkedit.SCR()"
            )
    return given


def _by_text(texts: Sequence[str], model: str) -> tuple[PluginSettings, ...]:
    return with_paper_defaults(parse_plugins(texts) or (), model)


def _settings_of(plugin: Plugin) -> PluginSettings:
    """Return the options of a plug-in that are not the defaults of its class."""
    if plugin.name not in plugin_names() or plugin_class(plugin.name) is not type(plugin):
        raise UsageError(
            f"the plug-in {plugin.name!r} is not registered, so that a run cannot record it",
            where="plugins",
            remedy="register it by an entry point (docs/writing-a-plugin.md)",
        )
    options: dict[str, Any] = {}
    for option in fields(cast("Any", plugin)):
        value = getattr(plugin, option.name)
        if isinstance(value, Path):
            value = str(value)
        plain = value is None or isinstance(value, str | int | float)
        if value is option.default or (plain and value == option.default):
            continue
        if not plain:
            raise UsageError(
                f"{option.name} holds a {type(value).__name__}, which a run cannot record",
                where=f"plugins, {plugin.name}",
                remedy="give text, such as the name of a file",
            )
        options[option.name] = value
    return PluginSettings(plugin.name, options)
