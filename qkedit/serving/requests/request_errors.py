"""What a client is told when its request cannot be served: a status, one sentence, and OpenAI's document around it."""

from __future__ import annotations

from typing import Any

from qkedit.errors import UsageError

HUNG_UP = 499  # no client is left to read it; logs and metrics know the number from reverse proxies


class RequestError(UsageError):
    """A request that cannot be served; `where` is the field that is wrong."""

    def __init__(self, what: str, *, where: str = "", remedy: str = "", status: int = 400, code: str = "") -> None:
        self.status = status
        self.code = code
        super().__init__(what, where=where, remedy=remedy)

    def document(self) -> dict[str, Any]:
        """Return the answer's body, in the form that OpenAI's clients read."""
        return error_document(self.status, str(self), param=self.where or None, code=self.code or None)


def error_document(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the body of an answer that refuses or fails."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def status_of(error: Exception) -> int:
    """Return the status that tells whose fault a failure is; plug-ins refuse requests by UsageError."""
    if isinstance(error, RequestError):
        return error.status
    return 400 if isinstance(error, UsageError) else 500
