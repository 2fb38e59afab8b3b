"""Publish an output from Python: what `push` does."""

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

    Shards that are the base's are copied there by the hub itself, and what the repository holds already is not sent.
    The token is that of `hf auth login` or `HF_TOKEN`.

    Args:
        directory: an output of `steer`, `apply` or `export`, in any layout.
        repository: `org/name`; it is made if it is not there.
        branch: the branch to commit to, made if it is not there; the default branch where None.
        private: make a new repository private; one that is public is refused.
        message: of the commit.
        include: patterns of files to send that qkedit did not write.
        exclude: patterns of such files that stay behind.
        license: identifier of the licence to publish under, where the base's card names none, one that forbids
            derivatives, or one that qkedit does not know.
        force: replace a model in the repository that qkedit did not push.
        copy: have the hub copy the base's shards; else they are uploaded.
        dry_run: send nothing.

    Returns:
        What became of each file, and the commit, if one was needed.

    Raises:
        QkeditError: something must not be published, the directory is not what its manifest says, or the hub refuses;
            the repository is then as it was.
    """
    from qkedit.publishing.plan import PushOptions
    from qkedit.publishing.planning import plan_push
    from qkedit.publishing.push import PushReport, push_plan, refuse_without_hub

    options = PushOptions(repository, branch, private, message, tuple(include), tuple(exclude), license, force, copy)
    refuse_without_hub(to_write=not dry_run)
    plan = plan_push(directory, options)
    return PushReport(plan) if dry_run else push_plan(plan)
