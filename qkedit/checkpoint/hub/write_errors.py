"""Explain failures of writing to the hub in one sentence with a remedy, without tokens or URLs."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from qkedit.checkpoint.hub.errors import failures_as, is_transport_error
from qkedit.errors import QkeditError, first_sentence

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_GO_ON = "run the same command again: contents that the hub already has are not sent twice"
# Upload URLs are signed: whoever has one may write there.
_ADDRESS = re.compile(r"https?://\S+")
_TOKEN = re.compile(r"hf_\w+")


class PushFailed(QkeditError):
    """The hub did not accept a push; the repository is unchanged, or has all of it."""


def write_explained(repository: str, doing: str) -> AbstractContextManager[None]:
    """Turn every failure of the hub library in the block into a PushFailed.

    Args:
        repository: the repository that the block writes to.
        doing: the action of the block, as an infinitive: "commit".
    """

    def failure(error: Exception) -> PushFailed:
        what, remedy = _explain(error, repository, doing)
        # Without its cause, whose text holds URLs; --debug still prints where it came from.
        return PushFailed(what, where=repository, remedy=remedy)

    return failures_as(failure)


def _explain(error: Exception, repository: str, doing: str) -> tuple[str, str]:
    from huggingface_hub import errors

    if isinstance(error, errors.FileDuplicationError):
        return (
            f"the hub did not copy all shards from the base ({_plain(str(error).splitlines()[-1].strip())})",
            "upload them instead with --no-copy (storage regions differ, or the base may not be read)",
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_answer(error, repository, doing)
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return _explain(error.__cause__, repository, doing)  # the error names the file, its cause the failure
    if is_transport_error(error):
        return f"the connection to the hub failed ({_plain(first_sentence(error))})", f"check the network and {_GO_ON}"
    return f"the hub library could not {doing} ({_plain(first_sentence(error))})", _GO_ON


def _explain_answer(error: HfHubHTTPError, repository: str, doing: str) -> tuple[str, str]:
    status = error.response.status_code
    said = f": {_plain(error.server_message.splitlines()[0])}" if error.server_message else ""
    if error.response.url.path.endswith("/lfs-files/duplicate"):
        return (
            f"the hub does not copy shards from the base ({status}{said})",
            "upload them instead with --no-copy (storage regions differ, or the base may not be read)",
        )
    if status in (401, 403, 404):
        owner = repository.partition("/")[0]
        return (
            f"the hub refuses to {doing} ({status}{said})",
            f"run `hf auth login` with a token that can write for {owner}",
        )
    if status == 412:
        return "somebody else committed to it in the meantime", _GO_ON
    if status == 429:
        return "the hub's rate limit is reached (429)", f"wait some minutes and {_GO_ON}"
    return f"the hub responded with an error to the request to {doing} ({status}{said})", _GO_ON


def _plain(text: str) -> str:
    """Return another program's message for quoting, without URLs, tokens and a full stop."""
    return _TOKEN.sub("…", _ADDRESS.sub("…", text)).rstrip(" .")[:300]
