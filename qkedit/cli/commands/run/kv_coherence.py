"""`qkedit kv-coherence`: measure how well a model's keys form a picture, before and after plug-ins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkedit.cli.delivery import deliver
from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.loading import LoadingFlags
from qkedit.cli.flags.model import ModelFlags
from qkedit.cli.flags.plugins import ImagesOption, PluginsOption, PromptOption, chosen_plugins, joined
from qkedit.cli.output import Output, command
from qkedit.errors import UsageError
from qkedit.images import read_image
from qkedit.prompts import CAPTION_PROMPT

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from qkedit.plugins.measures.kv_coherence import LayerCoherence
    from qkedit.plugins.settings import PluginSettings
    from qkedit.runtime.generation import LoadedModel


@dataclass(frozen=True)
class _Measured:
    layers: tuple[LayerCoherence, ...]
    keys: dict[int, Tensor]
    cells: int
    chat_template: Mapping[str, Any] | None


def kv_coherence(
    context: typer.Context,
    *,
    model: ModelFlags,
    image: ImagesOption = None,
    prompt: PromptOption = CAPTION_PROMPT,
    plugin: PluginsOption = None,
    plot: Annotated[Path | None, flag("--plot", help="Write keys over the image to this .png, .svg or .pdf.")] = None,
    picture: Annotated[
        Path | None, flag("--picture", help="The same as --plot, by its old name.", hidden=True)
    ] = None,
    layer: Annotated[int | None, flag("--layer", help="Layer to draw; by default the middle one.", min=0)] = None,
    loading: LoadingFlags,
) -> None:
    """Measure how well a model's keys form a picture of the image, before and after plug-ins.

    KV-coherence is the mean cosine of adjacent keys minus that of all pairs; entropy is the entropy of the norms of
    image tokens, in nats.

    Example: qkedit kv-coherence ./llava-1.5-7b-hf --image street.jpg --plugin dscr --plot keys.png
    """
    with command(context, loading.architectures) as output:
        from qkedit.report.plots import check_plot
        from qkedit.runtime.generation import load

        name = model.name(context)
        plugins = chosen_plugins(plugin, name)
        if not image:
            raise UsageError("no image is given", where="--image", remedy="give a picture")
        if picture is not None:
            output.warn("--picture is now --plot; the old name works until version 1.0")
            plot = plot or picture
        if plot is not None:
            check_plot(plot, "--plot")
        pictures = [read_image(file) for file in image]
        loaded = load(name, revision=model.revision, **loading.arguments(context))
        before = _measured(loaded, pictures, prompt, ())
        after = _measured(loaded, pictures, prompt, plugins) if plugins else None
        files = {} if plot is None else {plot: _keys_plot(plot, layer, before, after, pictures[0], name, plugins)}
        run = {"model": name, "plugins": [one.as_dict() for one in plugins], "loading": loading.recorded(context)}
        _print(output, run, plugins, before, after, files)


def _measured(
    loaded: LoadedModel, pictures: list[Image], prompt: str, plugins: tuple[PluginSettings, ...]
) -> _Measured:
    """Run the prompt once, with the plug-ins and then the measurement."""
    from qkedit.plugins.measures.kv_coherence import CoherenceReport, KeyCoherence
    from qkedit.plugins.settings import make_plugins
    from qkedit.runtime.generation import respond

    answer = respond(loaded, pictures, prompt, [*make_plugins(plugins), KeyCoherence()], max_new_tokens=1)
    assert answer.report is not None
    assert answer.report.cells is not None  # counted for every plug-in on the prefill
    found = answer.report.plugins[KeyCoherence.name]
    assert isinstance(found, CoherenceReport)
    return _Measured(found.layers, dict(found.keys), answer.report.cells, answer.chat_template)


def _print(
    output: Output,
    run: Mapping[str, Any],
    plugins: tuple[PluginSettings, ...],
    before: _Measured,
    after: _Measured | None,
    files: Mapping[Path, Callable[[], object]],
) -> None:
    from rich.console import Group

    from qkedit.report.fitting_table import FittingTable
    from qkedit.report.terminal_text import on_one_line

    titles = ["layer", "coherence", "entropy", *([] if after is None else ["coherence after", "entropy after"])]
    table = FittingTable(*titles, right=titles)
    rows: list[dict[str, Any]] = []
    for index, measured in enumerate(before.layers):
        row: dict[str, Any] = {"layer": measured.layer, "before": _fields(measured)}
        cells = [str(measured.layer), _figure(measured.coherence), _figure(measured.entropy)]
        if after is not None:
            row["after"] = _fields(after.layers[index])
            cells += [_figure(after.layers[index].coherence), _figure(after.layers[index].entropy)]
        rows.append(row)
        table.add_row(*cells)
    lines = [f"{before.cells} image tokens; with equal norms their entropy would be {math.log(before.cells):.3f}."]
    if after is not None:
        lines.append(f"After: {joined(plugins)}.")
    deliver(
        output,
        {
            **run,
            "image_tokens": before.cells,
            "chat_template": before.chat_template,
            "layers": rows,
            "plot": next(map(str, files), None),
            "picture": next(map(str, files), None),  # its old name
        },
        Group(table, "", *map(on_one_line, lines)),
        files,
    )


def _fields(measured: LayerCoherence) -> dict[str, Any]:
    return {
        "coherence": measured.coherence,
        "coherence_by_head": None if measured.by_head is None else list(measured.by_head),
        "entropy": measured.entropy,
    }


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _keys_plot(
    plot: Path,
    layer: int | None,
    before: _Measured,
    after: _Measured | None,
    image: Image,
    model: str,
    plugins: tuple[PluginSettings, ...],
) -> Callable[[], object]:
    """Return a writer of the plot of the first grid's keys in one layer. Raises UsageError for one without keys."""
    from qkedit.plugins.measures.key_colours import principal_colours
    from qkedit.report.files import write_file
    from qkedit.report.keys_plot import keys_plot
    from qkedit.report.plots import plot_format

    chosen = sorted(before.keys)[len(before.keys) // 2] if layer is None and before.keys else layer
    if chosen not in before.keys:
        raise UsageError(
            f"layer {chosen} has no keys of a whole image",
            where="--layer",
            remedy=f"choose among {', '.join(map(str, sorted(before.keys))) or 'the layers of another model'}",
        )
    colours = principal_colours(before.keys[chosen], (after or before).keys[chosen])
    panels = [("keys", colours[0])]
    if after is not None:
        panels.append((f"keys with {' + '.join(plugin.name for plugin in plugins)}", colours[1]))
    return lambda: write_file(plot, keys_plot(panels, image, f"{model}, layer {chosen}", plot_format(plot)))
