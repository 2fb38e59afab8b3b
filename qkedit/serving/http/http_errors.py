"""Report every failure in the form that OpenAI's clients expect: a status, and a document with one sentence."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from qkedit.errors import QkeditError
from qkedit.serving.requests.request_errors import RequestError, error_document, status_of

_SAID = {404: "there is no such path", 405: "the path does not support this method"}


def answer_errors(application: FastAPI) -> None:
    """Add handlers for every kind of failure to an application."""
    application.add_exception_handler(RequestError, _refused)
    application.add_exception_handler(RequestValidationError, _no_object)
    application.add_exception_handler(HTTPException, _by_status)
    application.add_exception_handler(QkeditError, _failed)
    application.add_exception_handler(Exception, _failed)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.document(), error.status)


def _no_object(request: Request, error: Exception) -> Response:
    return JSONResponse(error_document(400, "the body is not a JSON object; send one as application/json."), 400)


def _by_status(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.url.path}: {_SAID.get(error.status_code, str(error.detail).rstrip('.'))}."
    return JSONResponse(error_document(error.status_code, message), error.status_code, headers=error.headers)


def _failed(request: Request, error: Exception) -> Response:
    # Another library's error message may contain parts of the request or facts about the machine.
    said = str(error) if isinstance(error, QkeditError) else "the server failed; its log has the reason."
    return JSONResponse(error_document(status_of(error), said), status_of(error))
