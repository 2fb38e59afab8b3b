"""A push as data: its target, and the action for each file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qkedit.checkpoint.hub.repository import Content, RemoteFile, Repository
from qkedit.checkpoint.presets import HUB_ID
from qkedit.checkpoint.resolve import PATH_LIKE
from qkedit.errors import UsageError
from qkedit.publishing.bases import HubBase
from qkedit.publishing.licences import Licence

Action = Literal["upload", "copy", "unchanged", "delete"]


@dataclass(frozen=True)
class PushOptions:
    """The options of a push.

    Attributes:
        repository: "org/name".
        branch: the branch to commit to, created if missing; None for the default branch.
        private: whether a new repository is private.
        message: the commit message; None for one that names the edited model.
        include: patterns of files to send that qkedit did not write.
        exclude: patterns of such files not to send.
        license: the identifier of the licence to publish under, if the base does not name one or it is not enough.
        force: whether to replace a model that qkedit did not push.
        copy: whether the hub copies shards from the base instead of an upload.
    """

    repository: str
    branch: str | None = None
    private: bool = False
    message: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    license: str | None = None
    force: bool = False
    copy: bool = True

    def __post_init__(self) -> None:
        """Raise UsageError unless `repository` is a repository's name."""
        if not HUB_ID.fullmatch(self.repository) or PATH_LIKE.match(self.repository):
            raise UsageError(
                "is not a repository's name", where=self.repository or "REPO", remedy="give one such as org/name"
            )


@dataclass(frozen=True)
class PlannedFile:
    """One file of the repository, and the action for it."""

    name: str
    action: Action
    size: int  # bytes
    content: Content | None  # None for a file to be deleted
    copied_from: RemoteFile | None = None  # the file of the base


@dataclass(frozen=True)
class PushPlan:
    """A push that has not begun yet."""

    options: PushOptions
    files: tuple[PlannedFile, ...]
    repository: Repository | None  # None: it will be created
    base: HubBase | None
    licence: Licence
    message: str
    left_here: tuple[str, ...]  # files of the directory that are not sent
    left_there: tuple[str, ...]  # files of the repository that this push does not touch
    warnings: tuple[str, ...]

    @property
    def changes(self) -> tuple[PlannedFile, ...]:
        """The files that the commit would change."""
        return tuple(file for file in self.files if file.action != "unchanged")

    @property
    def makes_branch(self) -> bool:
        """True if the branch will be created."""
        exists = self.repository.has_revision if self.repository is not None else False
        return self.options.branch is not None and not exists

    def bytes_of(self, action: Action) -> int:
        """Return the total size of the files with this action, in bytes."""
        return sum(file.size for file in self.files if file.action == action)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as `--json` prints them."""
        return {
            "repository": self.options.repository,
            "branch": self.options.branch,
            "new_repository": self.repository is None,
            "new_branch": self.makes_branch,
            "private": self.repository.private if self.repository is not None else self.options.private,
            "license": list(self.licence.identifiers),
            "message": self.message,
            "base": {"model": self.base.name, "revision": self.base.repository.commit} if self.base else None,
            "files": [
                {"name": file.name, "action": file.action, "bytes": file.size}
                | ({"copied_from": self.base.name} if file.copied_from is not None and self.base else {})
                for file in self.files
            ],
            "bytes_to_upload": self.bytes_of("upload"),
            "bytes_to_copy": self.bytes_of("copy"),
            "left_here": list(self.left_here),
            "left_there": list(self.left_there),
        }
