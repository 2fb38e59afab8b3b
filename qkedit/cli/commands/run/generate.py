"""`qkedit generate`: run one request, with attached or named plug-ins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.loading import LoadingFlags
from qkedit.cli.flags.model import BaseOption, ModelFlags
from qkedit.cli.flags.plugins import EditsOption, ImagesOption, PluginsOption, PromptOption, chosen_plugins, joined
from qkedit.cli.output import Output, command
from qkedit.errors import UsageError
from qkedit.images import read_image
from qkedit.prompts import CAPTION_PROMPT

if TYPE_CHECKING:
    from PIL.Image import Image

    from qkedit.plugins.settings import PluginSettings
    from qkedit.runtime.generation import Answer


def generate(
    context: typer.Context,
    *,
    model: ModelFlags,
    image: ImagesOption = None,
    prompt: PromptOption = CAPTION_PROMPT,
    plugin: PluginsOption = None,
    edit: EditsOption = None,
    compare: Annotated[
        bool, flag("--compare", help="Show the answers of base, edited model and plug-ins side by side.")
    ] = False,
    base: BaseOption = None,
    max_new_tokens: Annotated[int, flag("--max-new-tokens", help="Largest number of tokens per answer.", min=1)] = 128,
    loading: LoadingFlags,
) -> None:
    """Run one request, with the plug-ins that are attached to the model or named.

    Answers are made by greedy search.

    Example: qkedit generate ./llava-1.5-7b-hf --image street.jpg --prompt "What is on the table?" --plugin scr
    """
    with command(context, loading.architectures) as output:
        name = model.name(context)
        plugins = chosen_plugins(plugin, name)
        pictures = [read_image(file) for file in image or ()]
        if not pictures:
            if prompt == CAPTION_PROMPT:
                raise UsageError("there is no image to describe", where="--image", remedy="give one, or a --prompt")
            output.warn("no image is given, so the model answers from the text alone")
        edits = tuple(str(place) for place in edit or ())
        arguments, recorded = loading.arguments(context), loading.recorded(context)
        run = _Runs(pictures, prompt, max_new_tokens, arguments, recorded, edits, image or ())
        if compare:
            _compare(output, run, name, model.revision, base, plugins)
            return
        answer = run(name, model.revision, [_Variant(plugins, bool(run.edits))])[0]
        _warn(output, answer)
        fields = {"model": name, "edits": list(run.edits), "loading": run.recorded, "prompt": prompt}
        output.result(fields | _fields(answer, plugins), answer.text)


@dataclass(frozen=True)
class _Variant:
    """The additions to a loaded model for one answer: plug-ins, and the edits if wanted."""

    plugins: Sequence[PluginSettings] = ()
    edited: bool = False


@dataclass(frozen=True)
class _Runs:
    """Answers one request with several models in turn, so that only one of them is in memory at a time."""

    pictures: Sequence[Image]
    prompt: str
    max_new_tokens: int
    loading: Mapping[str, Any]  # arguments of `load`
    recorded: Mapping[str, Any]  # what the result says of them
    edits: tuple[str, ...] = ()  # directories of edits, put into the loaded weights
    files: Sequence[Path] = ()  # of the pictures

    def __call__(self, model: str, revision: str | None, variants: Sequence[_Variant]) -> list[Answer]:
        """Return a model's answers, one per variant."""
        from qkedit.plugins.core.pictures import check_files
        from qkedit.plugins.settings import make_plugins
        from qkedit.runtime.editing import edit
        from qkedit.runtime.generation import load, respond

        made = [make_plugins(variant.plugins) for variant in variants]
        for plugins in made:  # before the model is loaded, since that may take minutes
            check_files(plugins, self.files)
        loaded = load(model, revision=revision, **self.loading)
        answers = []
        for variant, plugins in zip(variants, made, strict=True):
            with edit(loaded.model, self.edits) if variant.edited else nullcontext():
                answers.append(
                    respond(loaded, self.pictures, self.prompt, plugins, max_new_tokens=self.max_new_tokens)
                )
        return answers


def _compare(
    output: Output,
    run: _Runs,
    model: str,
    revision: str | None,
    base: str | None,
    plugins: tuple[PluginSettings, ...],
) -> None:
    """Print the answers of the base (if the model was edited), the model, and the model with edits and plug-ins."""
    from rich.text import Text

    from qkedit.report.fitting_table import FittingTable
    from qkedit.steering.base import base_for, is_edited

    edited = is_edited(model)
    columns: list[tuple[str, str, Answer, _Variant]] = []
    found = base_for(model, base, revision)
    if found is not None:
        columns.append(("base", found.model, run(found.model, found.revision, [_Variant()])[0], _Variant()))
    elif edited:
        output.warn("the model was made from a directory that is not recorded; name it with --base to compare")
    variants = {"edited" if edited else "model": _Variant()}
    if run.edits:
        variants[" + ".join(run.edits)] = _Variant(edited=True)
    if plugins:
        title = " + ".join([*run.edits, joined(plugins)]) if run.edits else "with plug-ins"
        variants[title] = _Variant(plugins, bool(run.edits))
    if len(columns) + len(variants) == 1:
        raise UsageError(
            "there is nothing to compare with", where="--compare", remedy="name an --edit, a --plugin or a --base"
        )
    answers = run(model, revision, list(variants.values()))
    for (title, variant), answer in zip(variants.items(), answers, strict=True):
        columns.append((title, model, answer, variant))
    for _, _, answer, _ in columns:
        _warn(output, answer)
    titles = [joined(used.plugins) if used.plugins and not used.edited else title for title, _, _, used in columns]
    table = FittingTable(*titles, breaking=titles)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*(Text(answer.text) for _, _, answer, _ in columns))
    output.result(
        {
            "loading": run.recorded,
            "answers": [
                {
                    "column": title,
                    "model": name,
                    "edits": list(run.edits) if used.edited else [],
                    **_fields(answer, used.plugins),
                }
                for title, name, answer, used in columns
            ],
        },
        table,
    )


def _fields(answer: Answer, plugins: Sequence[PluginSettings]) -> dict[str, Any]:
    return {
        "text": answer.text,
        "tokens": answer.tokens,
        "seconds": answer.seconds,
        "plugins": [plugin.as_dict() for plugin in plugins],
        "report": None if answer.report is None else answer.report.as_dict(),
        "chat_template": answer.chat_template,
    }


def _warn(output: Output, answer: Answer) -> None:
    for sentence in answer.report.warnings if answer.report else ():
        output.warn(sentence)
