"""`qkedit push`: publish an output in a model repository on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkedit.cli.flags.flag import flag
from qkedit.cli.output import Output, aligned, command
from qkedit.errors import counted

if TYPE_CHECKING:
    from qkedit.publishing.plan import PlannedFile, PushPlan
    from qkedit.publishing.push import PushReport

_PANEL = "What to publish"


def push(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="A directory that qkedit wrote.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="A repository on the hub, org/name.")],
    branch: Annotated[str | None, flag("--branch", help="The branch to commit to; created if missing.")] = None,
    private: Annotated[bool, flag("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, flag("--message", help="The commit message.")] = None,
    dry_run: Annotated[bool, flag("--dry-run", help="Show the action for each file; nothing is sent.")] = False,
    license: Annotated[
        str | None,
        flag(
            "--license",
            panel=_PANEL,
            help="Identifier of the licence to publish under; needed if the base's licence is missing or unknown.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        flag("--include", panel=_PANEL, help="Also send these files that qkedit did not write; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        flag("--exclude", panel=_PANEL, help="Do not send these files that qkedit did not write; may be repeated."),
    ] = None,
    force: Annotated[
        bool, flag("--force", panel=_PANEL, help="Replace a model in the repository that qkedit did not push.")
    ] = False,
    copy: Annotated[
        bool,
        flag(
            "--copy/--no-copy",
            panel=_PANEL,
            help="Have the hub copy unchanged shards from the base, or upload them.",
        ),
    ] = True,
) -> None:
    """Publish an output in a model repository on the hub, in one commit.

    The hub itself copies unchanged shards from the base; only new bytes are uploaded. Log in with `hf auth login`.

    Example: qkedit push ./edited org/Qwen2-VL-7B-steered --dry-run
    """
    with command(context) as output:
        from qkedit.cli.progress import reading_bar
        from qkedit.publishing.plan import PushOptions
        from qkedit.publishing.planning import plan_push
        from qkedit.publishing.push import PushReport, push_plan, refuse_without_hub

        request = PushOptions(
            repository,
            branch,
            private,
            message,
            tuple(include or ()),
            tuple(exclude or ()),
            license,
            force,
            copy,
        )
        output.after_interruption = "run the same command to go on: what the hub has already is not sent twice"
        refuse_without_hub(to_write=not dry_run)
        with reading_bar(output) as on_bytes:
            plan = plan_push(directory, request, on_bytes=on_bytes)
        for sentence in plan.warnings:
            output.warn(sentence)
        _print(output, PushReport(plan) if dry_run else push_plan(plan), dry_run=dry_run)


def _print(output: Output, report: PushReport, *, dry_run: bool) -> None:
    from rich.console import Group
    from rich.text import Text

    from qkedit.cli.commands.edit.steer import size
    from qkedit.report.fitting_table import FittingTable
    from qkedit.report.terminal_text import on_one_line

    plan = report.plan
    table = FittingTable("file", "size", "what", right=("size",), breaking=("file",))
    for file in plan.files:
        table.add_row(file.name, size(file.size), _action(file, plan))
    facts = [
        ("to", _place(plan)),
        ("licence", str(plan.licence)),
        ("uploaded", size(plan.bytes_of("upload"))),
        ("copied", f"{size(plan.bytes_of('copy'))}, by the hub itself"),
        ("unchanged", size(plan.bytes_of("unchanged"))),
    ]
    facts += [
        (name, ", ".join(files))
        for name, files in (("stays here", plan.left_here), ("stays there", plan.left_there))
        if files
    ]
    if dry_run:
        closing = "Nothing was sent."
    elif report.commit is None:
        closing = f"{plan.options.repository} holds all of this already; there was nothing to commit."
    else:
        closing = f"Pushed {counted(len(plan.changes), 'file')} in commit {report.commit}: {report.url}"
    human = Group(table, "", Text(aligned(facts)), "", Text(on_one_line(closing)))
    output.result(report.as_dict() | {"dry_run": dry_run}, human, summary=not dry_run)


def _place(plan: PushPlan) -> str:
    branch = plan.options.branch
    where = plan.options.repository + (f", branch {branch}" if branch else "")
    if plan.repository is None:
        return f"{where} (new, {'private' if plan.options.private else 'public unless its owner says otherwise'})"
    visibility = "private" if plan.repository.private else "public"
    return f"{where} ({visibility}{', new branch' if plan.makes_branch else ''})"


def _action(file: PlannedFile, plan: PushPlan) -> str:
    if file.copied_from is not None and plan.base is not None:
        return f"copied from {plan.base.name}"
    return {"upload": "uploaded", "unchanged": "unchanged", "delete": "deleted", "copy": "copied"}[file.action]
