"""What commands that run or attach plug-ins have in common: their flags, and which plug-ins a request gets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkedit.cli import completion
from qkedit.cli.options import flag, utf8
from qkedit.cli.settings import on_command_line
from qkedit.errors import UsageError

if TYPE_CHECKING:
    from qkedit.plugins.settings import PluginSettings

_logger = logging.getLogger(__name__)
DirectoryOption = Annotated[str | None, flag("--model", "-m", help="The model's directory.")]
PluginsOption = Annotated[
    list[str] | None,
    flag(
        "--plugin",
        autocompletion=completion.plugins,
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
ImagesOption = Annotated[
    list[Path] | None,
    flag("--image", help="An image file; may be repeated."),
]
PromptOption = Annotated[str, flag("--prompt", help="The question about the image.", callback=utf8)]
TrustOption = Annotated[
    bool,
    flag("--trust-remote-code", help="Run the checkpoint's own Python code; for a hub model give its commit too."),
]
ChatTemplateOption = Annotated[
    str | None,
    flag("--chat-template", help="A Jinja file that replaces the model's chat template, or none for the bare prompt."),
]
DtypeOption = Annotated[
    str,
    flag(
        "--dtype",
        help="Data type of the weights: auto (as stored), float32, bfloat16 or float16.",
        autocompletion=completion.dtypes,
    ),
]

LOADING = "How to load the model"
DeviceMapOption = Annotated[
    str | None,
    flag(
        "--device-map",
        panel=LOADING,
        autocompletion=completion.device_maps,
        help="Spread the model over devices: auto, balanced, balanced_low_0, sequential or a JSON file.",
    ),
]
AttentionOption = Annotated[
    str | None,
    flag(
        "--attn-implementation",
        panel=LOADING,
        autocompletion=completion.attention,
        help="Attention: eager, sdpa, flex_attention, flash_attention_2 or flash_attention_3.",
    ),
]
QuantizationOption = Annotated[
    str | None,
    flag(
        "--quantization",
        panel=LOADING,
        autocompletion=completion.quantizations,
        help="Quantise the weights in memory: bnb-4bit, bnb-8bit, torchao-int8 or a JSON file of settings.",
    ),
]


def chosen_placement(
    context: typer.Context, device_map: str | None, attn_implementation: str | None, quantization: str | None
) -> dict[str, Any]:
    """Return these arguments of `load`. Raises UsageError where a device and a map of devices are given."""
    if device_map is not None and on_command_line(context, "device") and on_command_line(context, "device_map"):
        raise UsageError("both say where the model runs", where="--device and --device-map", remedy="give one of them")
    return {"device_map": device_map, "attn_implementation": attn_implementation, "quantization": quantization}


def chosen_plugins(texts: Sequence[str] | None, model: str) -> tuple[PluginSettings, ...]:
    """Return the plug-ins of a request: those that are named, else those attached to the model.

    What is published for the model fills in what they leave open.

    Raises:
        QkeditError: one is wrong, on the command line or in the file next to the weights.
    """
    from qkedit.plugins.config_file import attached_to
    from qkedit.plugins.paper_defaults import with_paper_defaults
    from qkedit.plugins.settings import parse_plugins

    named = parse_plugins(texts or ())
    if named is not None:
        return with_paper_defaults(named, model)
    plugins = with_paper_defaults(attached_to(Path(model).expanduser()), model)
    if plugins:
        _logger.warning("%s acts as attached to the model; --plugin none leaves it out", joined(plugins))
    return plugins


def spelled(plugin: PluginSettings) -> str:
    """Return a plug-in with its options as `--plugin` takes it."""
    options = ",".join(f"{key}={_text(value)}" for key, value in plugin.options.items())
    return f"{plugin.name}:{options}" if options else plugin.name


def joined(plugins: Sequence[PluginSettings]) -> str:
    """Return the plug-ins in one line."""
    return " + ".join(spelled(plugin) for plugin in plugins) or "none"


def _text(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
