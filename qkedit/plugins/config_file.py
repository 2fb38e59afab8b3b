"""`qkedit-plugins.json`: the plug-ins to run a model with, in a file next to its weights.

The weights are not changed, and other tools ignore the file. It is written only into directories that belong to the
user, never into a hub cache, whose files are shared by all programs that load the model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from qkedit.checkpoint.contents import PLUGINS_FILE
from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.whole_file import write_whole
from qkedit.demo import DEMOS, demo_checkpoint
from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.settings import PluginSettings, dump_plugins, read_plugins

CONFIG_FILE = "config.json"


def attached_to(directory: Path) -> tuple[PluginSettings, ...]:
    """Return the plug-ins attached to a model; empty if there is no file.

    Raises:
        QkeditError: the file exists, but is invalid.
    """
    file = directory / PLUGINS_FILE
    if not os.path.lexists(file):
        return ()
    try:
        return read_plugins(file)
    except UsageError as error:
        raise QkeditError(
            error.what, where=error.where, remedy=f"correct or remove the file: {error.remedy}"
        ) from error


def attach_to(directory: Path, plugins: Sequence[PluginSettings]) -> tuple[PluginSettings, ...]:
    """Attach plug-ins to a model: each replaces an earlier one of its name, or is appended.

    Returns:
        All attached plug-ins, in order.
    """
    named = {plugin.name: plugin for plugin in attached_to(directory)} | {plugin.name: plugin for plugin in plugins}
    write_whole(directory / PLUGINS_FILE, dump_plugins(tuple(named.values())))
    return tuple(named.values())


def detach_from(directory: Path, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Detach plug-ins by name, or all of them by default; if none is left, the file is removed.

    An invalid file can be removed this way too, as a whole.

    Returns:
        The names that are no longer attached.

    Raises:
        UsageError: one of `names` is not attached.
    """
    file = directory / PLUGINS_FILE
    if not names:
        there = os.path.lexists(file)
        removed = _names(directory) if there else ()
        with explained("remove the file", file):
            file.unlink(missing_ok=True)
        return removed
    attached = attached_to(directory)
    for name in names:
        if name not in [plugin.name for plugin in attached]:
            raise UsageError(f"{name} is not attached", where=str(directory), remedy="see `qkedit plugins list`")
    rest = [plugin for plugin in attached if plugin.name not in names]
    if rest:
        write_whole(file, dump_plugins(rest))
    else:
        with explained("remove the file", file):
            file.unlink()
    return tuple(names)


def users_directory(model: str) -> Path:
    """Return the directory of a model if a file may be written into it.

    Raises:
        UsageError: the name means a model on the hub or in a cache, the demo, a symbolic link, or a directory that
            does not hold a model.
    """
    path = Path(os.path.expanduser(model))
    # A trailing slash would make the system follow the link.
    if path.is_symlink():
        raise UsageError(
            "is a symbolic link", where=model, remedy=f"name the directory itself, {os.path.realpath(path)}"
        )
    if not path.is_dir():
        raise UsageError(
            "is not a directory, and plug-ins can be attached only to directories",
            where=model,
            remedy="download the model with `hf download ORG/NAME --local-dir DIR` and name that directory",
        )
    real = Path(os.path.realpath(path))
    if any(real.is_relative_to(os.path.realpath(demo_checkpoint(demo))) for demo in DEMOS):
        raise UsageError("is a demo model, which is part of qkedit", where=model, remedy="copy it and name the copy")
    config = path / CONFIG_FILE
    if any(part.startswith("models--") for part in real.parts) or config.is_symlink():
        raise UsageError(
            "is in a cache, which other programs read too",
            where=model,
            remedy="download the model with `hf download ORG/NAME --local-dir DIR` and name that directory",
        )
    if not config.is_file():
        raise UsageError(f"does not hold {CONFIG_FILE}", where=model, remedy="name the directory of a model")
    return path


def _names(directory: Path) -> tuple[str, ...]:
    try:
        return tuple(plugin.name for plugin in attached_to(directory))
    except QkeditError:
        return (PLUGINS_FILE,)
