"""Publish an output from Python: the command `push`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qkedit.publishing.push import PushReport


def push(
    directory: str | Path,
    repository: str,
    *,
    branch: str | None = None,
    private: bool = False,
    message: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    license: str | None = None,
    force: bool = False,
    copy: bool = True,
    dry_run: bool = False,
) -> PushReport:
    """Publish an output in a model repository on the hub, in one commit.

    The hub itself copies shards that equal the base's, and files that the repository already holds are not sent. The
    token is that of `hf auth login` or `HF_TOKEN`.

    Args:
        directory: an output of `steer`, `apply` or `export`, in any layout.
        repository: `org/name`, created if missing.
        branch: the branch to commit to, created if missing; None for the default branch.
        private: whether a new repository is private; an existing public one is refused.
        message: the commit message.
        include: patterns of files to send that qkedit did not write.
        exclude: patterns of such files not to send.
        license: the identifier of the licence to publish under, if the base's card does not name one, or names one
            that forbids derivatives or that qkedit does not know.
        force: whether to replace a model in the repository that qkedit did not push.
        copy: whether the hub copies the base's shards instead of an upload.
        dry_run: whether to send nothing.

    Returns:
        The action for each file, and the commit, if one was needed.

    Raises:
        QkeditError: something must not be published, the directory does not match its manifest, or the hub refuses;
            then the repository is unchanged.
    """
    from qkedit.publishing.plan import PushOptions
    from qkedit.publishing.planning import plan_push
    from qkedit.publishing.push import PushReport, push_plan, refuse_without_hub

    options = PushOptions(repository, branch, private, message, tuple(include), tuple(exclude), license, force, copy)
    refuse_without_hub(to_write=not dry_run)
    plan = plan_push(directory, options)
    return PushReport(plan) if dry_run else push_plan(plan)
