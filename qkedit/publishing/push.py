"""Send a planned push to the hub as one commit: readers see all of it or none of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.checkpoint.hub.repository import hub_api
from qkedit.checkpoint.hub.write_errors import write_explained
from qkedit.errors import CheckpointError, UsageError
from qkedit.publishing.plan import PlannedFile, PushPlan

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete


@dataclass(frozen=True)
class PushReport:
    """The result of a push; `commit` and `url` are None in a dry run, or if the repository held everything already."""

    plan: PushPlan
    commit: str | None = None
    url: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as `--json` prints them."""
        return self.plan.as_dict() | {"commit": self.commit, "url": self.url}


def refuse_without_hub(*, to_write: bool) -> None:
    """Refuse a push that cannot succeed, before anything is read.

    Args:
        to_write: whether the push will send something, which needs a token.

    Raises:
        UsageError: HF_HUB_OFFLINE is set, or there is no token.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            "HF_HUB_OFFLINE is set, and a push needs the hub, even for a dry run", remedy="unset HF_HUB_OFFLINE"
        )
    if to_write and not get_token():
        raise UsageError(
            "you are not logged in to the hub", remedy="run `hf auth login` or set HF_TOKEN, with a write token"
        )


def push_plan(plan: PushPlan, *, endpoint: str | None = None) -> PushReport:
    """Send the files of a plan as one commit on top of the commit that the plan was made for.

    The contents are uploaded first and the commit comes last, so a failed push changes nothing that a reader sees. The
    hub keeps uploaded contents, so the next run sends only the rest.

    Raises:
        PushFailed: the hub refused the push, or the connection failed.
        CheckpointError: a file was changed after the plan was made.
    """
    if not plan.changes:
        return PushReport(plan)
    api = hub_api(endpoint)
    options, name = plan.options, plan.options.repository
    parent = plan.repository.commit if plan.repository is not None else None
    operations = [_operation(file, plan) for file in plan.changes]
    if plan.repository is None:
        with write_explained(name, "create the repository"):
            api.create_repo(name, private=options.private or None)
    if plan.makes_branch and options.branch is not None:
        with write_explained(name, f"create the branch {options.branch}"):
            api.create_branch(name, branch=options.branch, revision=parent)
    with write_explained(name, "take the commit"):
        commit = api.create_commit(
            name, operations, commit_message=plan.message, revision=options.branch, parent_commit=parent
        )
    return PushReport(plan, commit.oid, str(commit.commit_url))


def _operation(file: PlannedFile, plan: PushPlan) -> CommitOperationAdd | CommitOperationCopy | CommitOperationDelete:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    if file.content is None:
        return CommitOperationDelete(file.name, is_folder=False)
    if file.copied_from is not None and plan.base is not None:
        return CommitOperationCopy(
            file.copied_from.name,
            file.name,
            src_revision=plan.base.repository.commit,
            src_repo_id=plan.base.name,
            src_repo_type="model",
        )
    source = file.content.source
    if isinstance(source, Path) and (not source.is_file() or source.stat().st_size != file.size):
        raise CheckpointError(
            "was changed during the push", where=str(source), remedy="run again when nothing writes to it"
        )
    return CommitOperationAdd(file.name, source)
