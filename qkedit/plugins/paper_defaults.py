"""Settings published for one model, from `configs/presets`, as defaults for options that are not set.

The order of precedence is: the request, flags, the file next to the weights, the preset, the plug-in's own defaults.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from qkedit.checkpoint.contents import MANIFEST_FILE
from qkedit.checkpoint.manifest_file import Lineage, part_of
from qkedit.checkpoint.presets import Preset, preset_by_alias, presets
from qkedit.plugins.settings import PluginSettings


def with_paper_defaults(plugins: Sequence[PluginSettings], model: str) -> tuple[PluginSettings, ...]:
    """Fill in the published settings of this model for the options that are not set.

    Args:
        plugins: the plug-ins with the options that were set.
        model: an alias, a hub id, or a directory that has the model's name or was made from it by qkedit.
    """
    preset = preset_of(model)
    return tuple(_filled(plugin, preset) for plugin in plugins) if preset else tuple(plugins)


def preset_of(model: str) -> Preset | None:
    """Return the preset of a model by its name, or None."""
    if preset := preset_by_alias(model):
        return preset
    names = {model, os.path.basename(os.path.abspath(model)), *_made_from(Path(model))}
    plain = {name.split("/")[-1].lower() for name in names}
    return next((preset for preset in presets() if preset.hub_id.split("/")[-1].lower() in plain), None)


def _made_from(directory: Path) -> tuple[str, ...]:
    """Return the names of the models that an edited directory was made from; empty without a readable manifest."""
    try:
        lineage = part_of((directory / MANIFEST_FILE).read_bytes(), Lineage)
    except (OSError, ValueError):  # the name cannot be that of a file
        return ()
    if lineage is None:
        return ()
    return lineage.base.model, *(step.base.model for step in lineage.history)


def _filled(plugin: PluginSettings, preset: Preset) -> PluginSettings:
    if plugin.name != "scr" or preset.scr is None:
        return plugin
    published = {
        "layers": "{}-{}".format(*preset.scr.layers),
        "diagnosis": "{}-{}".format(*preset.scr.diagnosis),
    }
    return PluginSettings(plugin.name, published | dict(plugin.options))
