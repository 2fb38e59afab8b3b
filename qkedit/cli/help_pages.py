"""Help pages in plain text: usage, description, and under the heading of each panel its options or commands.

Typer's own pages, in boxes, import rich with its Markdown and its highlighter: 0.1 s for every `--help`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from qkedit.cli.plain_values import PlainValues

# An option, an argument or a command, with its description.
_Row = tuple[str, str]
# Longer names have a line of their own.
_WIDEST_NAME = 30
_NO_BREAK = "\xa0"


class _Page:
    """The parts of a help page below the usage, for a command of Typer."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the description."""
        paragraphs = (getattr(self, "help", "") or "").split("\n\n")
        with formatter.indentation():
            for paragraph in filter(None, paragraphs):
                formatter.write_paragraph()
                _write_wrapped(formatter, paragraph, "", formatter.current_indent)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the panels, in the order of their first rows, with all descriptions in one column."""
        panels: dict[str, list[_Row]] = {}
        for panel, row in self.rows(ctx):
            panels.setdefault(panel, []).append(row)
        lengths = [len(name) for rows in panels.values() for name, _ in rows]
        width = max((length for length in lengths if length <= _WIDEST_NAME), default=_WIDEST_NAME)
        for panel, rows in panels.items():
            formatter.write_paragraph()
            formatter.write(typer.style(f"{panel}:", bold=True) + "\n")
            with formatter.indentation():
                for name, description in rows:
                    _write_wrapped(formatter, description, name, formatter.current_indent + width + 2)

    def rows(self, context: Any) -> Iterable[tuple[str, _Row]]:
        """Return the panel and the row of each argument and option; arguments come first."""
        return _parameters(self, context)


class PageCommand(_Page, PlainValues, TyperCommand):
    """A command whose help page is in plain text."""


class PageGroup(_Page, PlainValues, TyperGroup):
    """A group of commands whose help page is in plain text; of each command it has the first paragraph."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help page if nothing is named, and leave with the exit code of a usage error."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit(2)
        words: list[str] = super().parse_args(ctx, args)
        return words

    def rows(self, context: Any) -> Iterable[tuple[str, _Row]]:
        """Return the panel and the row of each option and command."""
        return [*_parameters(self, context), *_commands(self, context)]


def _parameters(command: Any, context: Any) -> Iterator[tuple[str, _Row]]:
    options = []
    for parameter in command.get_params(context):
        row = parameter.get_help_record(context)
        if row is None:
            continue
        panel = getattr(parameter, "rich_help_panel", None)
        if parameter.param_type_name == "argument":  # its name is enough, without a type
            yield panel or "Arguments", (parameter.metavar or parameter.name.upper(), row[1])
        else:
            options.append((panel or "Options", row))
    yield from options


def _commands(group: Any, context: Any) -> Iterator[tuple[str, _Row]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if not command.hidden:
            yield command.rich_help_panel or "Commands", (name, (command.help or "").split("\n\n")[0])


def _write_wrapped(formatter: Any, text: str, name: str, column: int) -> None:
    """Write a text from a column on, after a name; a default is kept on one line."""
    text, bracket, default = text.partition("  [")
    joined = f"{text} [{default.replace(' ', _NO_BREAK)}" if bracket else text
    lines = wrap(joined.strip(), max(formatter.width - column, 20), break_on_hyphens=False) or [""]
    first = f"{'':{formatter.current_indent}}{name}"
    if len(first) > max(column - 2, formatter.current_indent):
        formatter.write(f"{first}\n")
        first = ""
    for line in lines:
        formatter.write(f"{first:{column}}{line}".replace(_NO_BREAK, " ").rstrip() + "\n")
        first = ""
