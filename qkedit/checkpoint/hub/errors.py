"""Explain failures of reading from the hub in one sentence with a remedy.

`huggingface_hub` raises its own classes for the hub's answers, those of its HTTP library (which differs between major
versions) for network failures, and OSErrors for the disk. All of them are handled here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from qkedit.errors import CheckpointError, QkeditError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def failures_as(make: Callable[[Exception], QkeditError]) -> Iterator[None]:
    """Turn every failure of the hub library in the block into the error that `make` returns for it."""
    try:
        yield
    except QkeditError:
        raise
    except Exception as error:  # the library's dependencies raise undocumented classes of their own
        raise make(error) from error


def explained(repo_id: str, revision: str, file: str = "") -> AbstractContextManager[None]:
    """Turn every failure of the hub library in the block into a CheckpointError.

    Args:
        repo_id: the repository that the block requests.
        revision: the revision that the user requested.
        file: the file that the block requests, if any.
    """

    def failure(error: Exception) -> CheckpointError:
        what, remedy = _explain(error, repo_id, revision)
        return CheckpointError(what, where=f"{repo_id}/{file}" if file else repo_id, remedy=remedy)

    return failures_as(failure)


def is_transport_error(error: BaseException) -> bool:
    """Return whether the network failed, as opposed to an error response from the hub."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    # The base class of all errors of the HTTP library; the hub library derives its own errors from it too.
    return isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)


def is_unreachable(error: Exception) -> bool:
    """Return whether the hub could not answer, as opposed to a refusal."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, OfflineModeIsEnabled) or is_transport_error(error)


def _explain(error: BaseException, repo_id: str, revision: str) -> tuple[str, str]:
    """Return the failure and its remedy."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        # This error only adds that the cache does not have it either.
        return _explain(error.__cause__, repo_id, revision)
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_answer(error, repo_id, revision)
    if isinstance(error, errors.HFValidationError):
        return "is not a valid hub id", "give one such as org/name, or an existing directory"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            "the model is not in the cache, and HF_HUB_OFFLINE forbids the download",
            f"unset HF_HUB_OFFLINE, or run `hf download {repo_id}` where there is a network",
        )
    if is_transport_error(error):
        return (
            f"the connection to the hub failed ({_one_line(error)})",
            "check the network and try again; a model in the cache or in a directory does not need it",
        )
    if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
        return (
            f"the disk of the download cache is full ({constants.HF_HUB_CACHE})",
            "free some space or set HF_HOME to a directory on another disk; finished files are kept",
        )
    if isinstance(error, OSError):
        return (
            f"the file cannot be written to the download cache ({_one_line(error)})",
            f"check {constants.HF_HUB_CACHE} and try again; finished files are kept",
        )
    return (
        f"the hub's response is not usable ({_one_line(error)})",
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
            "the hub does not have this model, or it is private",
            "check the spelling, log in with `hf auth login` if it is private, "
            "or give the path of a directory that exists if you meant one",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the model has no revision {revision!r}", "give a branch, tag or commit of this model as --revision"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "the hub no longer has this file", "run again to read the list of files anew"
    if status in (401, 403):
        return (
            f"the hub refuses access ({status})",
            "run `hf auth login` with a token that can read this model",
        )
    if status == 429:
        return "the hub's rate limit is reached (429)", "log in with `hf auth login` or try again later"
    return f"the hub answered with an error ({status})", "try again later"


def _one_line(error: BaseException) -> str:
    """Return the error's class and the first line of its message, without a full stop."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
