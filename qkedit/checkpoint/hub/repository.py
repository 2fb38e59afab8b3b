"""The files of a model repository on the hub: names, sizes and hashes, without contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha1, sha256
from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.checkpoint.hub.errors import explained
from qkedit.checkpoint.io.file_errors import explained as disk_explained
from qkedit.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_PIECE = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository."""

    name: str
    size: int  # bytes
    git_sha1: str  # hash of the blob, or for a large file of its pointer
    sha256: str | None  # hash of the contents of a large file, which is stored outside the git repository; else None
    xet_hash: str | None  # hash by which the hub can copy a large file to another repository


@dataclass(frozen=True)
class Repository:
    """One commit of a model repository."""

    name: str  # "org/name"
    commit: str
    private: bool
    has_revision: bool  # False: the requested revision does not exist, and this is the default branch
    files: dict[str, RemoteFile]


class Content:
    """A file to send, on disk or in memory, with the hashes that a hub uses."""

    def __init__(self, source: Path | bytes) -> None:
        self.source = source
        self._sha256: str | None = None
        with disk_explained("look at", source if isinstance(source, Path) else ""):
            self.size = len(source) if isinstance(source, bytes) else source.stat().st_size

    def equals(self, remote: RemoteFile) -> bool:
        """Return whether a file of a repository holds the same bytes; if the sizes are equal, this one is read."""
        if self.size != remote.size:
            return False
        if remote.sha256 is not None:
            return self.sha256() == remote.sha256
        return self.git_sha1() == remote.git_sha1

    def sha256(self) -> str:
        """SHA-256 of the contents, read once."""
        if self._sha256 is None:
            digest = sha256()
            self._feed(digest.update)
            self._sha256 = digest.hexdigest()
        return self._sha256

    def git_sha1(self) -> str:
        """The git blob hash of the contents."""
        digest = sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        self._feed(digest.update)
        return digest.hexdigest()

    def _feed(self, update: Callable[[bytes], object]) -> None:
        if isinstance(self.source, bytes):
            update(self.source)
            return
        with disk_explained("read", self.source), self.source.open("rb") as file:
            while piece := file.read(_PIECE):
                update(piece)


def hub_api(endpoint: str | None = None) -> HfApi:
    """Return the hub library's API object with qkedit's user agent; None means the user's own endpoint."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, library_name="qkedit", library_version=__version__)


def find_repository(
    name: str, revision: str | None = None, *, or_default: bool = False, endpoint: str | None = None
) -> Repository | None:
    """Return the files of a repository; None if it does not exist or this user has no access to it.

    Args:
        name: "org/name".
        revision: branch, tag or commit; None for the default branch.
        or_default: use the default branch if the revision does not exist.
        endpoint: the URL of a hub, in place of HF_ENDPOINT.

    Raises:
        CheckpointError: the revision does not exist, or there is no access or no network.
    """
    from huggingface_hub import RepoFile, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    api = hub_api(endpoint)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    has_revision = True
    with explained(name, revision or constants.DEFAULT_REVISION):
        try:
            info = api.model_info(name, revision=revision, timeout=timeout)
        except GatedRepoError:  # a subclass of the next one
            raise
        except RepositoryNotFoundError:
            return None
        except RevisionNotFoundError:
            if not or_default:
                raise
            info, has_revision = api.model_info(name, timeout=timeout), False
        commit = info.sha or ""
        entries = list(api.list_repo_tree(name, recursive=True, revision=commit))
    files = {
        entry.path: RemoteFile(
            entry.path, entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None, entry.xet_hash
        )
        for entry in entries
        if isinstance(entry, RepoFile)
    }
    return Repository(name, commit, bool(info.private), has_revision, files)
