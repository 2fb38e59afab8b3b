"""Ordinary values of flags are converted as Typer would convert them, and without its converters."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer

from qkedit.cli.application import application
from qkedit.cli.command_table import COMMANDS
from qkedit.cli.help_pages import PageCommand

coercion = pytest.importorskip("typer._coercion", reason="this version of Typer has no pydantic")


class Word(StrEnum):
    NONE = "none"
    COLD = "cold"


def _command(
    text: Annotated[str | None, typer.Option()] = None,
    count: Annotated[int, typer.Option(min=1, max=9)] = 3,
    free: Annotated[int | None, typer.Option()] = None,
    share: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    clamped: Annotated[int, typer.Option(min=0, max=5, clamp=True)] = 1,
    on: Annotated[bool, typer.Option()] = False,
    word: Annotated[Word, typer.Option()] = Word.NONE,
    words: Annotated[list[Word] | None, typer.Option()] = None,
    texts: Annotated[list[str] | None, typer.Option()] = None,
    numbers: Annotated[list[int] | None, typer.Option(min=1)] = None,
    file: Annotated[Path | None, typer.Option()] = None,
    there: Annotated[Path | None, typer.Option(exists=True)] = None,
    folder: Annotated[Path | None, typer.Option(file_okay=False)] = None,
    engine: Annotated[Literal["cold", "a"], typer.Option()] = "a",
    parsed: Annotated[int, typer.Option(parser=lambda value: int(value, 16))] = 1,
) -> None:
    pass


NUMBERS = ["3", "0", "-0", "10", "-1", "03", "1_0", " 4", "4 ", "+4", "٤", "4.0", "0.25", "1.", ".5"]
NUMBERS += ["1e0", "nan", "inf"]
VALUES: list[Any] = [None, "", "none", "NONE", "cold", "a", Word.COLD, Word.NONE, *NUMBERS, "9" * 40, "-" + "9" * 18]
VALUES += [3, 0, 3.5, 0.25, 7.0, True, False, "true", "no", b"x", [], ["3"], [3], ("cold", "none"), ["a", 2], {}, "\0"]
VALUES += [".", "/nowhere/x", Path("."), Path("/nowhere"), __file__, Path(__file__), 2**70, float("nan"), -0.0]


@pytest.fixture
def command() -> Any:
    app = typer.Typer(add_completion=False)
    app.command(cls=PageCommand)(_command)
    return typer.main.get_command(app)


def outcome(convert: Any, value: Any, parameter: Any, context: Any) -> tuple[str, str]:
    """Return the type and the text of a converted value, or of the error."""
    try:
        converted = convert.coerce(value, param=parameter, ctx=context)
    except Exception as error:
        return type(error).__name__, str(error)
    return str([type(one) for one in converted] if isinstance(converted, list) else type(converted)), repr(converted)


def test_every_value_is_converted_or_refused_as_typer_does(command: Any) -> None:
    context = typer.Context(command)
    compared = 0
    for parameter in command.get_params(context):
        own = parameter.get_runtime_param()
        assert type(own).__module__ == "qkedit.cli.plain_values"
        typers = coercion.build_runtime_param(parameter.type_descriptor)
        for value in VALUES:
            parameter._runtime_param = own
            found = outcome(own, value, parameter, context)
            assert found == outcome(typers, value, parameter, context), (parameter.name, value)
            compared += 1
    assert compared == 16 * len(VALUES)  # with --help


def test_ordinary_values_need_no_converter_of_typer(command: Any) -> None:
    ordinary = {
        "text": ["a", ""],
        "count": ["3", 3],
        "free": ["-12", 0],
        "share": ["0.25", "1", 0.5],
        "on": [True],
        "word": ["cold", Word.NONE],
        "engine": ["cold"],
        "words": [["cold", "none"], None],
        "texts": [("a", "b")],
        "numbers": [["1", "22"]],
        "file": [".", "/nowhere/x", Path("x")],
    }
    context = typer.Context(command)
    for parameter in command.get_params(context):
        own = parameter.get_runtime_param()
        for value in ordinary.get(parameter.name, []):
            own.coerce(value, param=parameter, ctx=context)
            assert parameter.get_runtime_param() is own, (parameter.name, value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_cannot_be_read_is_refused(command: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(mode=0)
    with pytest.raises(Exception, match="not readable"):
        command.main(["--file", str(file)], standalone_mode=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_of_every_command_need_no_converter_of_typer(name: str) -> None:
    group, words = application(), name.split()
    for word in words:
        group = group.get_command(typer.Context(group), word)
    context = typer.Context(group)
    for parameter in group.get_params(context):
        own = parameter.get_runtime_param()
        default = parameter.get_default(context)
        own.coerce(default, param=parameter, ctx=context)
        assert parameter.get_runtime_param() is own, (parameter.name, default)
