"""Evaluate a model behind servers of vLLM, each of which runs as long as its evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from qkedit.errors import UsageError

if TYPE_CHECKING:
    from qkedit.evaluation.runs.arms import Arm
    from qkedit.evaluation.runs.backend import Backend

_SERVED_NAME = "model"


def vllm_servers(
    name: str,
    revision: str | None,
    flags: Sequence[str],
    concurrency: int | None = None,
    tell: Callable[[str], object] = lambda sentence: None,
) -> Callable[[Arm], Backend]:
    """Return a function from an arm to a model behind a server of vLLM, which raises QkeditError as this one does.

    Args:
        name: the directory, hub id or alias of the model.
        revision: the revision of a model on the hub.
        flags: vLLM's own flags.
        concurrency: the largest number of requests in progress; None to measure which is fastest.
        tell: called with a sentence before the server starts.

    Raises:
        QkeditError: vLLM is not installed, or cannot run with an arm's plug-ins or the flags, or an arm has edits.
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

    check_vllm()
    check_flags_of_eval(flags)
    directory = directory_of(name, revision)
    config = read_config(directory)
    known: dict[str, Any] = {}  # the hash of the weights, which all servers share

    def server(arm: Arm) -> Backend:
        if arm.edits:
            raise UsageError(
                "vLLM reads weights from files alone",
                where="--edit",
                remedy="write the edited model with qkedit apply, evaluate its directory, and compare the runs with "
                "qkedit compare",
            )
        plugins = arm.plugins
        command = partial(
            server_command,
            str(directory),
            config,
            plugins,
            host="127.0.0.1",
            served_name=_SERVED_NAME,
            flags=flags,
        )
        command(port=0)  # so that what it refuses is reported before the weights are read
        known.update(known or fingerprint(directory, with_code="--trust-remote-code" in flags))
        facts = {
            **known,
            "engine": {"name": "vllm", "version": vllm_version(), "flags": list(flags)},
            "libraries": versions("openai"),
        }
        environment = server_environment(os.environ, plugins)
        environment.pop("VLLM_API_KEY", None)
        return StartedServer(
            name, "vllm", _SERVED_NAME, lambda port: command(port=port), environment, plugins, facts, concurrency, tell
        )

    return server
