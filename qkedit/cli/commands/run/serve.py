"""`qkedit serve`: the model behind an OpenAI-compatible endpoint, with plug-ins."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from qkedit.cli.flags.engine import EngineFlags, EngineOption, refuse_flags_without_engine
from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.loading import LOADING_FLAGS, LoadingFlags
from qkedit.cli.flags.model import ModelFlags
from qkedit.cli.flags.plugins import PluginsOption, chosen_plugins, joined
from qkedit.cli.output import Output, command
from qkedit.cli.settings import refuse_without_effect
from qkedit.errors import QkeditError, UsageError

if TYPE_CHECKING:
    from qkedit.plugins.settings import PluginSettings
    from qkedit.serving.served_model import ServedModel

SERVER = "The server"
LIMITS = "Limits of a request"
# Flags of the server on transformers that vLLM's own server does not have.
OWN_FLAGS = ("allow_image_hosts", "max_body", "max_images", "max_pixels", "max_waiting")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    context: typer.Context,
    *,
    model: ModelFlags,
    plugin: PluginsOption = None,
    plugin_config: Annotated[
        Path | None, flag("--plugin-config", help="A file with the plug-ins' options; --plugin names some of them.")
    ] = None,
    host: Annotated[str, flag("--host", panel=SERVER, help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, flag("--port", panel=SERVER, help="Port to listen on; 0 for a free one.", min=0, max=65535)
    ] = 8000,
    served_name: Annotated[
        str | None, flag("--served-name", panel=SERVER, help="Name of the model in requests.")
    ] = None,
    api_key: Annotated[
        str | None,
        flag(
            "--api-key",
            panel=SERVER,
            help="Key that clients must send. Set it as QKEDIT_API_KEY instead: a command line is visible to others.",
        ),
    ] = None,
    allow_image_hosts: Annotated[
        str | None, flag("--allow-image-hosts", panel=SERVER, help="Hosts to fetch images from: HOST[:PORT],…")
    ] = None,
    max_body: Annotated[int, flag("--max-body", panel=LIMITS, help="Largest size of a request, in MiB.", min=1)] = 32,
    max_images: Annotated[
        int, flag("--max-images", panel=LIMITS, help="Largest number of images per request.", min=1)
    ] = 16,
    max_pixels: Annotated[
        int, flag("--max-pixels", panel=LIMITS, help="Largest number of pixels per request, over all images.", min=1)
    ] = 64_000_000,
    max_waiting: Annotated[
        int, flag("--max-waiting", panel=LIMITS, help="Largest number of requests in progress.", min=1)
    ] = 64,
    engine: EngineOption = "transformers",
    engine_flags: EngineFlags = None,
    loading: LoadingFlags,
) -> None:
    """Serve a model behind an OpenAI-compatible endpoint, with attached or named plug-ins.

    The port opens when the model is loaded. SIGTERM lets running answers finish. Needs `pip install 'qkedit[serve]'`,
    or vLLM for --engine vllm.

    Example: qkedit serve ./edited --plugin scr --port 8000
    """
    with command(context, loading.architectures) as output:
        if engine == "vllm":
            refuse_without_effect(context, "with --engine vllm", *OWN_FLAGS, *LOADING_FLAGS)
            name = model.name(context)
            plugins = _plugins(plugin, plugin_config, name)
            _run_vllm(name, model.revision, plugins, host, port, served_name, api_key, engine_flags or ())
        refuse_flags_without_engine(engine_flags)
        from qkedit.serving.serving_packages import check_serving_packages

        check_serving_packages()
        name = model.name(context)
        plugins = _plugins(plugin, plugin_config, name)
        if api_key is not None and not api_key.strip():
            raise UsageError("the key is empty", where="--api-key", remedy="give one, or leave it out")
        if host not in LOOPBACK and api_key is None:
            output.warn(f"everybody who reaches {host} can use the model; set QKEDIT_API_KEY to ask for a key")

        from qkedit.plugins.core.pictures import check_files
        from qkedit.plugins.settings import make_plugins
        from qkedit.runtime.generation import load
        from qkedit.serving.http.middleware import LOCAL_NAMES
        from qkedit.serving.http.server_log import log_to
        from qkedit.serving.limits import MIB, Limits
        from qkedit.serving.openai_server import build_application, run_server
        from qkedit.serving.plugin_switch import PluginSwitch
        from qkedit.serving.requests.image_policy import ImagePolicy
        from qkedit.serving.served_model import ServedModel, try_out

        check_files(make_plugins(plugins), None)
        limits = Limits(max_body * MIB, max_images, max_pixels, max_waiting)
        policy = ImagePolicy(limits, _hosts(allow_image_hosts))
        # Before the model is loaded, so that a port in use is reported immediately.
        with _bound(host, port) as listening:
            loaded = load(name, revision=model.revision, **loading.arguments(context))
            served = ServedModel(served_name or _plain(name), loaded, PluginSwitch(loaded.model, plugins))
            if conflict := try_out(served):
                output.warn(f"requests must name plug-ins, which cannot all act together: {conflict}")
            names = LOCAL_NAMES if api_key is None and host in LOOPBACK else None
            application = build_application(served, policy, api_key=api_key, names=names)
            log_to(sys.stderr, requests=not output.quiet)
            url = _url(host, listening)
            run_server(
                application,
                listening,
                ready=lambda: _say_ready(output, url, served, plugins, loading.recorded(context)),
                log=not output.quiet,
                limits=limits,
            )


def _run_vllm(
    name: str,
    revision: str | None,
    plugins: Sequence[PluginSettings],
    host: str,
    port: int,
    served_name: str | None,
    api_key: str | None,
    flags: Sequence[str],
) -> NoReturn:
    """Replace this process by vLLM's server. Raises QkeditError if it cannot run with these plug-ins."""
    from qkedit.integrations.vllm.launch import check_vllm, read_config, server_command, server_environment
    from qkedit.runtime.loading import directory_of

    check_vllm()
    directory = directory_of(name, revision)
    arguments = server_command(
        str(directory),
        read_config(directory),
        plugins,
        host=host,
        port=port,
        served_name=served_name or _plain(name),
        flags=flags,
    )
    environment = server_environment(os.environ, plugins)
    if api_key is not None:
        environment["VLLM_API_KEY"] = api_key
    os.execve(arguments[0], arguments, environment)


def _plugins(texts: Sequence[str] | None, file: Path | None, model: str) -> tuple[PluginSettings, ...]:
    """Return the plug-ins to serve with: those named, else those in the file, else those attached to the model."""
    from qkedit.plugins.paper_defaults import with_paper_defaults
    from qkedit.plugins.settings import PluginSettings, parse_plugins, read_plugins

    if file is None:
        return chosen_plugins(texts, model)
    options_of = {plugin.name: plugin for plugin in read_plugins(file)}
    named = parse_plugins(texts or ())
    if named is None:
        return with_paper_defaults(tuple(options_of.values()), model)
    for plugin in named:
        if plugin.name not in options_of:
            raise UsageError(f"{plugin.name} is not in the file", where=str(file), remedy="add it, or leave one out")
    merged = [PluginSettings(plugin.name, {**options_of[plugin.name].options, **plugin.options}) for plugin in named]
    return with_paper_defaults(merged, model)


def _hosts(text: str | None) -> frozenset[str]:
    hosts = [host.strip().lower() for host in (text or "").split(",") if host.strip()]
    for host in hosts:
        if "/" in host or "*" in host or "@" in host:
            raise UsageError(
                f"{host!r} is not a host",
                where="--allow-image-hosts",
                remedy="write images.example.org,cdn.example.org:8443",
            )
    return frozenset(hosts)


def _plain(model: str) -> str:
    """Return the default name of a model: a directory's own name, else the name it was given."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address but not listening, so that clients notice when the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise QkeditError(
            f"the server cannot listen there ({error.strerror})",
            where=f"{host}:{port}",
            remedy="choose another --host or --port",
        ) from error
    return listening


def _url(host: str, listening: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}/v1"


def _say_ready(
    output: Output, url: str, served: ServedModel, plugins: Sequence[PluginSettings], loading: Mapping[str, Any]
) -> None:
    from qkedit.report.terminal_text import lines

    output.result(
        {
            "url": url,
            "model": served.name,
            "plugins": [plugin.as_dict() for plugin in plugins],
            "loading": loading,
            "chat_template": served.loaded.template_record,
        },
        lines(f"serving {served.name} at {url}, plug-ins: {joined(plugins)}"),
        summary=True,
    )
