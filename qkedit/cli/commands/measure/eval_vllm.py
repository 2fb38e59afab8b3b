"""`qkedit eval --engine vllm`: the model behind a server of vLLM that runs as long as the evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.errors import UsageError

if TYPE_CHECKING:
    from qkedit.evaluation.runs.backend import Backend
    from qkedit.plugins.settings import PluginSettings

_SERVED_NAME = "model"


def on_vllm(
    name: str,
    revision: str | None,
    plugins: Sequence[PluginSettings],
    flags: Sequence[str],
    *,
    concurrency: int | None,
    edits: Sequence[Path],
    each: bool,
    tell: Callable[[str], object],
) -> Backend:
    """Return a model behind a server of vLLM.

    Args:
        name: the directory, hub id or alias of the model.
        revision: the revision of a model on the hub.
        plugins: the plug-ins.
        flags: vLLM's own flags.
        concurrency: the largest number of requests in progress; None to measure which is fastest.
        edits: the values of --edit, of which none is possible.
        each: whether --each is given, which is not possible.
        tell: called with a sentence before the server starts.

    Raises:
        QkeditError: vLLM is not installed, or cannot run with these plug-ins or flags.
    """
    from qkedit.evaluation.runs.backend import versions
    from qkedit.evaluation.runs.started_server import StartedServer
    from qkedit.integrations.vllm.launch import (
        check_flags_of_eval,
        check_vllm,
        read_config,
        server_command,
        server_environment,
        vllm_version,
    )
    from qkedit.runtime.fingerprint import fingerprint
    from qkedit.runtime.loading import directory_of

    if each:
        raise UsageError(
            "a server of vLLM is one arm", where="--each", remedy="evaluate each edit and plug-in by itself"
        )
    if edits:
        raise UsageError(
            "vLLM reads weights from files alone",
            where="--edit",
            remedy="write the edited model with qkedit apply and name its directory",
        )
    check_vllm()
    check_flags_of_eval(flags)
    directory = directory_of(name, revision)
    command = partial(
        server_command,
        str(directory),
        read_config(directory),
        plugins,
        host="127.0.0.1",
        served_name=_SERVED_NAME,
        flags=flags,
    )
    command(port=0)  # so that what it refuses is reported before the weights are read
    facts = {
        **fingerprint(directory, with_code="--trust-remote-code" in flags),
        "engine": {"name": "vllm", "version": vllm_version(), "flags": list(flags)},
        "libraries": versions("openai"),
    }
    environment = server_environment(os.environ, plugins)
    environment.pop("VLLM_API_KEY", None)
    return StartedServer(
        name, "vllm", _SERVED_NAME, lambda port: command(port=port), environment, plugins, facts, concurrency, tell
    )
