"""`qkedit models`: known families and aliases, and how a checkpoint is understood."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.model import ArchitecturesOption, RevisionOption, TextOnlyOption
from qkedit.cli.output import Output, aligned, command
from qkedit.cli.settings import on_command_line
from qkedit.errors import UsageError


def models(
    context: typer.Context,
    check: Annotated[
        str | None,
        flag("--check", help="Show how this model (directory, hub id, alias) is read, instead of the list."),
    ] = None,
    revision: RevisionOption = None,
    allow_text_only: TextOnlyOption = False,
    architectures: ArchitecturesOption = None,
) -> None:
    """List known families and aliases, or show how a checkpoint is understood.

    A family that is not listed is read as one with separate projections, if its tensors match.

    Example: qkedit models --check ./Qwen2-VL-7B-Instruct
    """
    with command(context, architectures) as output:
        if check is None:
            _refuse_what_only_a_check_takes(context)
            _list(output)
        else:
            _check(output, check, revision, allow_text_only)


def _refuse_what_only_a_check_takes(context: typer.Context) -> None:
    for name in ("revision", "allow_text_only"):
        if on_command_line(context, name):
            raise UsageError(
                "no model is given",
                where=f"--{name.replace('_', '-')}",
                remedy="name one with --check MODEL",
            )


def _list(output: Output) -> None:
    from rich.console import Group

    from qkedit.checkpoint.architecture.description import known_families
    from qkedit.checkpoint.architecture.sources import SHIPPED
    from qkedit.checkpoint.presets import presets
    from qkedit.report.fitting_table import FittingTable
    from qkedit.selection import middle_layers

    families = known_families()
    titles = ["family", "model type", "form", "norm", "positions"]
    if names_records := any(family["source"] != SHIPPED for family in families):
        titles.append("record")
    family_table = FittingTable(*titles, breaking=tuple(titles))
    for family in families:
        family_table.add_row(
            family["family"],
            ", ".join(family["model_types"]),
            ", ".join(family["layouts"]),
            family["norm"] or "",
            family["rope"],
            *([_record(family)] if names_records else []),
        )
    aliases: list[dict[str, Any]] = [
        {
            "aliases": list(preset.aliases),
            "hub_id": preset.hub_id,
            "layers": preset.layer_count,
            "middle_layers": [middle_layers(preset.layer_count)[0], middle_layers(preset.layer_count)[-1]],
            "scr": {"layers": list(preset.scr.layers), "diagnosis": list(preset.scr.diagnosis)}
            if preset.scr
            else None,
        }
        for preset in presets()
    ]
    alias_table = FittingTable("alias", "hub id", "layers", "mid", "SCR", right=("layers",), breaking=("alias",))
    for alias in aliases:
        alias_table.add_row(
            ", ".join(alias["aliases"]),
            alias["hub_id"],
            str(alias["layers"]),
            "-".join(map(str, alias["middle_layers"])),
            "-".join(map(str, alias["scr"]["layers"])) if alias["scr"] else "",
        )
    output.result({"families": families, "aliases": aliases}, Group(family_table, "", alias_table))


def _record(family: dict[str, Any]) -> str:
    """Return the file of a family's record, with its package."""
    source, record = family["source"], family["record"]
    return f"{record} ({source})" if source.startswith("package ") else record


def _check(output: Output, model: str, revision: str | None, allow_text_only: bool) -> None:
    from rich.console import Group
    from rich.text import Text

    from qkedit.checkpoint.architecture.description import describe_stack
    from qkedit.checkpoint.architecture.layers import attention_stack
    from qkedit.checkpoint.checkpoint import open_checkpoint
    from qkedit.checkpoint.resolve import resolve
    from qkedit.report.fitting_table import FittingTable

    files = resolve(model, revision)
    stack = attention_stack(open_checkpoint(files), allow_text_only=allow_text_only)
    described = describe_stack(stack)
    titles = ("layer", "form", "heads", "d_h", "norm", "bias", "positions", "query rows")
    table = FittingTable(*titles, right=("layer", "d_h"), breaking=("form", "norm", "positions", "query rows"))
    for layer, fields in zip(stack.layers, described["layers"], strict=True):
        biases = {"query": layer.query_bias, "key": layer.key_bias}
        table.add_row(
            str(layer.index),
            layer.form,
            f"{layer.query_heads} on {layer.key_heads}",
            str(layer.head_size),
            layer.norm_kind or "",
            ", ".join(name for name, bias in biases.items() if bias is not None),
            layer.rope,
            f"{_rows(fields['query'])} of {fields['query']['shape'][0]}",
        )
    facts = [
        ("model", files.name),
        ("family", described["family"]),
        ("decoder", described["decoder"]),
        ("layers", f"{described['layer_count']}, of which {len(described['layers'])} can be edited"),
    ]
    if described["understood_as"]:
        facts.append(("understood", described["understood_as"]))
    facts += [(name, _pattern(described["layers"], name)) for name in ("query", "key")]
    facts += [(f"layer {skipped['layer']}", skipped["reason"]) for skipped in described["skipped"]]
    fields = {"model": files.name, "revision": files.revision, **described}
    output.result(fields, Group(Text(aligned(facts)), "", table))


def _pattern(layers: list[dict[str, Any]], projection: str) -> str:
    """The tensor names of all layers, with N for the layer's number."""
    names = {layer[projection]["tensor"].replace(f".{layer['layer']}.", ".N.", 1) for layer in layers}
    return ", ".join(sorted(names))


def _rows(query: dict[str, Any]) -> str:
    (first, end), *more = query["rows"]
    return f"{first}-{end - 1}" + (f" and {len(more)} more runs" if more else "")
