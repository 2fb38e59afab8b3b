"""Errors for requests that cannot be served: a status, and one sentence in OpenAI's error document."""

from __future__ import annotations

from typing import Any

from qkedit.errors import UsageError

HUNG_UP = 499  # only for logs and metrics, as in reverse proxies: the client has disconnected


class RequestError(UsageError):
    """A request that cannot be served; `where` is the invalid field."""

    def __init__(self, what: str, *, where: str = "", remedy: str = "", status: int = 400, code: str = "") -> None:
        self.status = status
        self.code = code
        super().__init__(what, where=where, remedy=remedy)

    def document(self) -> dict[str, Any]:
        """Return the body of the response in OpenAI's format."""
        return error_document(self.status, str(self), param=self.where or None, code=self.code or None)


def error_document(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the body of an error response."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def status_of(error: Exception) -> int:
    """Return the status for a failure, of the client or of the server; plug-ins refuse requests by UsageError."""
    if isinstance(error, RequestError):
        return error.status
    return 400 if isinstance(error, UsageError) else 500
