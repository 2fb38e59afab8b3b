"""The registry of plug-ins: those of this package, and those that installed packages provide by an entry point.

A package adds a plug-in with an entry point of the group `qkedit.plugins` (docs/architecture.md):

    [project.entry-points."qkedit.plugins"]
    sharpen = "my_package.sharpen:Sharpen"

Classes are imported when they are used, since they import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import EntryPoint
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from qkedit.errors import QkeditError, UsageError, did_you_mean
from qkedit.other_packages import load_entry_point, package_of, points_of_other_packages

# The entry-point group for the plug-ins of other packages.
ENTRY_POINTS = "qkedit.plugins"
PLUGINS = {
    "scr": "qkedit.plugins.scr.plugin:SCR",
    "dscr": "qkedit.plugins.dscr.plugin:DSCR",
    "vcd": "qkedit.plugins.contrast.settings:VCD",
    "icd": "qkedit.plugins.contrast.settings:ICD",
    "sid": "qkedit.plugins.contrast.settings:SID",
    "crops": "qkedit.plugins.contrast.crops:CRoPS",
    "m3id": "qkedit.plugins.contrast.settings:M3ID",
    "pai-contrast": "qkedit.plugins.contrast.settings:PAIContrast",
    "image-contrast": "qkedit.plugins.contrast.image_contrast:ImageContrast",
    "image-sum": "qkedit.plugins.contrast.image_contrast:ImageSum",
    "oa-vcd": "qkedit.plugins.contrast.masked_pictures:OAVCD",
    "agla": "qkedit.plugins.contrast.masked_pictures:AGLA",
    "pai-attention": "qkedit.plugins.amplified.plugin:PAIAttention",
    "middle-layer": "qkedit.plugins.amplified.plugin:MiddleLayer",
    "vaf": "qkedit.plugins.vaf.plugin:VAF",
    "kvsmooth": "qkedit.plugins.smoothed.plugin:KVSmooth",
    "dola": "qkedit.plugins.early_exit.dola:DoLa",
    "deco": "qkedit.plugins.early_exit.deco:DeCo",
    "damo": "qkedit.plugins.early_exit.damo:DAMO",
    "opera": "qkedit.plugins.opera.plugin:OPERA",
}


@dataclass(frozen=True)
class PluginOption:
    """One option of a plug-in, for listings."""

    name: str
    choices: str
    default: Any


def plugin_names() -> tuple[str, ...]:
    """Return the names of all plug-ins: first those of this package, then those of installed packages, sorted."""
    return (*PLUGINS, *sorted(points_of_other_packages(ENTRY_POINTS).keys() - PLUGINS.keys()))


def plugin_class(name: str) -> type[Any]:
    """Return a plug-in's class by its name.

    Raises:
        UsageError: no plug-in has this name.
        QkeditError: another package's plug-in cannot be imported, or is not a plug-in.
    """
    from importlib import import_module

    if name in PLUGINS:
        module, _, attribute = PLUGINS[name].partition(":")
        plugin: type[Any] = getattr(import_module(module), attribute)
        return plugin
    if name in (others := points_of_other_packages(ENTRY_POINTS)):
        return _loaded(others[name])
    known = plugin_names()
    raise UsageError(f"there is no plug-in {name!r}", where="--plugin", remedy=did_you_mean(name.lower(), known))


def _loaded(point: EntryPoint) -> type[Any]:
    plugin = load_entry_point(point, "plug-in", "--plugin")
    if not (isinstance(plugin, type) and is_dataclass(plugin) and hasattr(plugin, "bind")):
        raise QkeditError(
            f"the plug-in {point.name} of the package {package_of(point)} is not a dataclass with a method `bind`",
            where="--plugin",
            remedy="see docs/writing-a-plugin.md",
        )
    return plugin


def plugin_options(name: str) -> tuple[PluginOption, ...]:
    """Return every option of a plug-in that can be given as text, with its default."""
    hints = get_type_hints(plugin_class(name))
    return tuple(
        PluginOption(option.name, described(hints[option.name]), option.default)
        for option in fields(plugin_class(name))
        if described(hints[option.name])
    )


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives in an option's type; each value of a `Literal` is an alternative."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_args(hint) and get_origin(hint) not in (list, tuple, dict):
        return tuple(kind for alternative in get_args(hint) for kind in kinds_of(alternative))
    return (hint,)


def described(hint: Any) -> str:
    """Describe the values of an option in words; "" if they cannot be given as text."""
    spelled = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "none"}
    return ", ".join(
        kind if isinstance(kind, str) else spelled[kind]
        for kind in kinds_of(hint)
        if isinstance(kind, str) or kind in spelled
    )
