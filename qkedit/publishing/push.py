"""Send what a plan says to the hub: all of it becomes one commit, or none of it is seen."""

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
    """What a push did; `commit` and `url` are None where the repository held everything already, or in a dry run."""

    plan: PushPlan
    commit: str | None = None
    url: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as `--json` prints them."""
        return self.plan.as_dict() | {"commit": self.commit, "url": self.url}


def refuse_without_hub(*, to_write: bool) -> None:
    """Refuse a push before anything is read, where it cannot succeed.

    Args:
        to_write: whether something will be sent, for which a token is needed.

    Raises:
        UsageError: HF_HUB_OFFLINE is set, or nobody is logged in.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            "HF_HUB_OFFLINE is set, and a push needs the hub, even for a dry run", remedy="unset HF_HUB_OFFLINE"
        )
    if to_write and not get_token():
        raise UsageError(
            "nobody is logged in to the hub", remedy="run `hf auth login` or set HF_TOKEN, with a token that may write"
        )


def push_plan(plan: PushPlan, *, endpoint: str | None = None) -> PushReport:
    """Send what a plan says, as one commit on top of the one that the plan was made for.

    Contents are uploaded first and the commit comes last, so a push that fails changes nothing that a reader sees. The
    hub keeps what was uploaded, so the next run sends the rest.

    Raises:
        PushFailed: the hub refuses, or the connection broke.
        CheckpointError: a file was written to since the plan was made.
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
            "was written to meanwhile", where=str(source), remedy="run again when nothing writes there"
        )
    return CommitOperationAdd(file.name, source)
