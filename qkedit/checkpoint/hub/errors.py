"""What goes wrong between here and the hub, as one sentence with a remedy.

`huggingface_hub` raises its own classes for what a hub answers, those of its HTTP library (which differs between its
major versions) for what a network does, and OSErrors for the disk. All of them end here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qkedit.errors import CheckpointError, QkeditError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def explained(repo_id: str, revision: str, file: str = "") -> Iterator[None]:
    """Turn every failure of the hub library in the body into a CheckpointError.

    Args:
        repo_id: the repository the body asks for.
        revision: the revision the user asked for.
        file: the file the body asks for, if any.
    """
    try:
        yield
    except QkeditError:
        raise
    except Exception as error:  # the library's dependencies raise classes of their own that nobody lists
        what, remedy = _explain(error, repo_id, revision)
        where = f"{repo_id}/{file}" if file else repo_id
        raise CheckpointError(what, where=where, remedy=remedy) from error


def is_transport_error(error: BaseException) -> bool:
    """Whether the network failed, as opposed to the hub answering with an error."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    # The base class of all that the HTTP library raises; the hub library derives its own errors from it too.
    return isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)


def is_unreachable(error: Exception) -> bool:
    """Whether the hub could not answer, as opposed to answering with a refusal."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, OfflineModeIsEnabled) or is_transport_error(error)


def _explain(error: BaseException, repo_id: str, revision: str) -> tuple[str, str]:
    """Return what happened and what to do."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        # Only says that the cache does not have it either.
        return _explain(error.__cause__, repo_id, revision)
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_answer(error, repo_id, revision)
    if isinstance(error, errors.HFValidationError):
        return "is not a valid hub id", "give one like org/name, or an existing directory"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            "the model is not in the cache and HF_HUB_OFFLINE forbids to fetch it",
            f"unset HF_HUB_OFFLINE, or run `hf download {repo_id}` where there is a network",
        )
    if is_transport_error(error):
        return (
            f"the connection to the hub failed ({_one_line(error)})",
            "check the network and try again; a model that is in the cache or in a directory needs none",
        )
    if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
        return (
            f"the disk of the download cache is full ({constants.HF_HUB_CACHE})",
            "free some space or set HF_HOME to a directory on another disk; finished files are kept",
        )
    if isinstance(error, OSError):
        return (
            f"the file cannot be brought into the download cache ({_one_line(error)})",
            f"check {constants.HF_HUB_CACHE} and try again; finished files are kept",
        )
    return (
        f"the hub's answer cannot be used ({_one_line(error)})",
        "check HF_ENDPOINT and any proxy, or download the model and give its directory",
    )


def _explain_answer(error: HfHubHTTPError, repo_id: str, revision: str) -> tuple[str, str]:
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return (
            "access to this model is restricted",
            f"accept its terms at {error.response.url.join(f'/{repo_id}')} and log in with `hf auth login`",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "the hub has no such model, or it is private",
            "check the spelling, log in with `hf auth login` if it is private, "
            "or give the path of a directory that exists if you meant one",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the model has no revision {revision!r}", "give a branch, tag or commit of this model as --revision"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "the hub no longer has this file", "run again to list the model's files anew"
    if status in (401, 403):
        return (
            f"the hub refuses access ({status})",
            "log in with `hf auth login`, with a token that may read this model",
        )
    if status == 429:
        return "the hub answers no more requests for now (429)", "log in with `hf auth login` or try again later"
    return f"the hub answered with an error ({status})", "try again later"


def _one_line(error: BaseException) -> str:
    """Return the error's class and the first line of what it says, without a full stop."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
