"""Ask any server that speaks OpenAI's protocol: vLLM, SGLang, `qkedit serve` or a hosted service.

Images are sent inside the request, as data URLs, or as the URLs at which the server finds them. Temporary failures
(no connection, a busy or failing server) are retried with growing pauses, or those that the server asks for. Any other
refusal ends the run, and finished answers are kept. An answer without text, which reasoning models return when their
tokens are used up, counts as empty, with the server's finish reason; an answer that is not text ends the run.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urlsplit

from qkedit.errors import QkeditError, UsageError, first_sentence
from qkedit.evaluation.files.json_rows import LONGEST_TEXT
from qkedit.evaluation.files.records import STOP
from qkedit.evaluation.runs.backend import EvalRequest, Reply, versions
from qkedit.evaluation.runs.concurrency import Concurrency
from qkedit.evaluation.runs.endpoint_session import EndpointSession, Lane, Unreachable
from qkedit.images import is_plain, read_image

if TYPE_CHECKING:
    from openai import OpenAI

KEY_VARIABLE = "QKEDIT_API_KEY"
# The first bytes of files in the formats that every server reads.
_SENT_AS_THEY_ARE = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True)
class ServedImages:
    """Images that the server reads itself, so that requests do not carry them.

    Attributes:
        directory: the directory of the images here.
        url: the server's URL of the same directory, such as `file:///data/val2014` or `http://HOST/val2014`.
    """

    directory: Path
    url: str

    def __post_init__(self) -> None:
        """Raise UsageError for a URL that cannot be followed by a path."""
        try:
            parts = urlsplit(self.url)
        except ValueError:
            parts = urlsplit("")
        is_address = parts.scheme in ("http", "https") and bool(parts.netloc)
        is_file = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
        if (
            not (is_address or is_file)
            or parts.query
            or parts.fragment
            or parts.username
            or not self.url.isprintable()
        ):
            raise UsageError(
                "is not the URL of a directory",
                where=f"--image-urls {self.url}",
                remedy="give file:///DIRECTORY or http://HOST/DIRECTORY",
            )

    def url_of(self, image: Path) -> str:
        """Return the URL of an image file in the directory or below it."""
        return f"{self.url.rstrip('/')}/{quote(image.relative_to(self.directory).as_posix())}"


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks OpenAI's protocol.

    Attributes:
        url: the server's URL, such as `http://localhost:8000/v1`; `/v1` may be left out.
        model: the name of the model there; by default the only one it has.
        concurrency: the largest number of requests in progress at a time; None to measure which is fastest.
        retries: the number of times a request is sent again.
        timeout: seconds until a question counts as unanswered.
        images: the images that the server reads itself; by default they are sent inside the requests.
        fields: further fields of every request, which the server knows beyond OpenAI's protocol.
    """

    url: str
    model: str | None = None
    concurrency: int | None = None
    retries: int = 6
    timeout: float = 600.0
    images: ServedImages | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Backend`."""
        return {"concurrency": self.concurrency or "measured"}

    @cached_property
    def base_url(self) -> str:
        """The URL with its path.

        Raises:
            UsageError: it is not a web address, or contains a password, which would be written to result files.
        """
        try:
            parts = urlsplit(self.url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or True)
        except ValueError:
            is_address = False
        if not is_address or not self.url.isprintable():
            raise UsageError("is not a web address", where=f"--endpoint {self.url}", remedy="give http://HOST:PORT/v1")
        if parts.username or parts.password:
            raise UsageError(
                "holds a name and a password", where="--endpoint", remedy=f"set {KEY_VARIABLE} to the key instead"
            )
        if parts.query or parts.fragment:
            raise UsageError(
                "has more after its path", where="--endpoint", remedy=f"leave out what follows {parts.path or '/v1'}"
            )
        return self.url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")

    @cached_property
    def name(self) -> str:
        """The name of the served model; the server is asked for it if the user does not give it.

        Raises:
            UsageError: the server has several.
            QkeditError: the server has none or does not answer.
        """
        if self.model is not None:
            return self.model
        with self._client() as client, self._explained():
            names = [str(model.id) for model in client.models.list()]
        if len(names) == 1:
            return names[0]
        if not names:
            raise QkeditError("serves no model", where=self.base_url, remedy="name one with --endpoint-model")
        raise UsageError(
            f"serves {len(names)} models", where=self.base_url, remedy=f"choose --endpoint-model {' or '.join(names)}"
        )

    def identity(self) -> dict[str, Any]:
        """See `Backend`."""
        return {
            "endpoint": self.base_url,
            "endpoint_model": self.name,
            **({} if self.images is None else {"image_urls": self.images.url}),
            "libraries": versions("openai"),
        }

    def or_as_recorded(self, run: Mapping[str, Any]) -> Endpoint:
        """Return this endpoint, with the model's name from the record of an earlier run if the server does not answer.

        So a finished run can be scored again without its server.

        Args:
            run: the identity of that run; empty if there was none.
        """
        recorded = run.get("endpoint_model")
        if self.model is not None or run.get("endpoint") != self.base_url or not isinstance(recorded, str):
            return self
        try:
            return replace(self, model=replace(self, retries=0).name)
        except Unreachable:
            return replace(self, model=recorded)

    @contextmanager
    def session(self) -> Iterator[EndpointSession]:
        """See `Backend`."""
        with self.lane() as lane:
            yield EndpointSession([lane])

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """Open the connection to this server for a session."""
        concurrency = Concurrency(self.concurrency)
        with self._client(concurrency.refused) as client:
            yield Lane(self, client, concurrency)

    def answer(self, client: OpenAI, request: EvalRequest) -> Reply:
        """Return the answer to one question. Raises QkeditError if the request fails."""
        content: list[Any] = [{"type": "text", "text": request.prompt}]
        if request.image is not None:
            url = data_url(request.image) if self.images is None else self.images.url_of(request.image)
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        with self._explained():
            completion = client.chat.completions.create(
                model=self.name,
                messages=[{"role": "user", "content": content}],
                max_tokens=request.max_new_tokens,
                temperature=0,
                extra_body=dict(self.fields) or None,
            )
            # A server of another kind may answer with anything.
            choice = completion.choices[0]
            text, reason = _text_of(choice.message.content), choice.finish_reason
        if len(text) > LONGEST_TEXT:
            raise self._failed(f"returned an answer of {len(text)} characters", "lower --max-new-tokens")
        return Reply(text, reason if isinstance(reason, str) else STOP)

    def log_probabilities(self, tokens: Sequence[int]) -> list[float]:
        """Return the server's log probability of every token of a text but the first, in nats.

        Raises:
            QkeditError: the server cannot be asked for them, or does not give one for each token.
        """
        with self._client() as client, self._explained():
            completion = client.completions.create(
                model=self.name, prompt=list(tokens), echo=True, logprobs=1, max_tokens=1, temperature=0
            )
            found = completion.choices[0].logprobs
            values = [] if found is None else list(found.token_logprobs or ())[1 : len(tokens)]
        if len(values) != len(tokens) - 1 or not all(isinstance(value, float | int) for value in values):
            raise self._failed("does not give the log probabilities of a prompt", "serve with vLLM or SGLang")
        return values

    def _client(self, on_refusal: Callable[[], None] = lambda: None) -> OpenAI:
        if find_spec("openai") is None:
            raise QkeditError(
                "the package openai is not installed",
                where="--endpoint",
                remedy="run: pip install 'qkedit[endpoint]'",
            )
        from qkedit.evaluation.runs.bounded_client import bounded_client

        return bounded_client(self.base_url, _key(), retries=self.retries, timeout=self.timeout, on_refusal=on_refusal)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the client's exceptions into one sentence."""
        import openai

        from qkedit.evaluation.runs.bounded_client import LARGEST_RESPONSE, TooLongError, TooSlowError

        too_long = f"sent more than {LARGEST_RESPONSE >> 20} MB in one response", "check that the address is right"
        too_slow = f"did not answer within {self.timeout:g} s", "send fewer requests at a time"
        try:
            yield
        except TooLongError as error:
            raise self._failed(*too_long) from error
        except (openai.APITimeoutError, TooSlowError) as error:
            raise self._failed(*too_slow) from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, TooLongError):
                raise self._failed(*too_long) from error
            if isinstance(error.__cause__, TooSlowError):
                raise self._failed(*too_slow) from error
            reason = first_sentence(error.__cause__ or error)
            raise Unreachable(
                f"cannot be reached ({reason})", where=self.base_url, remedy="start the server or check the address"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            remedy = f"set {KEY_VARIABLE} to a key that the server accepts"
            raise self._failed(f"refused the key ({error.status_code}: {_said(error)})", remedy) from error
        except openai.APIStatusError as error:
            again = error.status_code == 429 or error.status_code >= 500
            remedy = "run again when the server works" if again else "correct what its message names"
            raise self._failed(f"refused the request ({error.status_code}: {_said(error)})", remedy) from error
        except (openai.APIError, AttributeError, TypeError, LookupError, ValueError, RecursionError) as error:
            raise self._failed(
                "answered, but not in OpenAI's protocol", "give the address that is followed by /chat/completions"
            ) from error

    def _failed(self, what: str, remedy: str) -> QkeditError:
        return QkeditError(what, where=self.base_url, remedy=remedy)


def _key() -> str:
    """Return the key for the server. Raises UsageError, without showing the key, if no header can hold it."""
    key = os.environ.get(KEY_VARIABLE) or "none"  # a server without keys accepts any key
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        raise UsageError(
            "has a blank at its end, a line break or a character that no key has",
            where=KEY_VARIABLE,
            remedy="set it to the key alone",
        )
    return key


def _text_of(content: Any) -> str:
    """Return the text of an answer that is a string, a list of parts, or null. Raises ValueError for anything else."""
    if content is None:
        return ""
    if isinstance(content, list):
        content = "".join(part["text"] if part["type"] == "text" else _no_text() for part in content)
    return content if isinstance(content, str) else _no_text()


def _no_text() -> NoReturn:
    raise ValueError("an answer that is not text")


def data_url(file: Path) -> str:
    """Return an image as a `data:` URL: PNG and JPEG that every server decodes alike stay; others become PNG.

    Raises:
        QkeditError: the file cannot be read or is not an image.
    """
    from qkedit.checkpoint.io.file_errors import explained

    with explained("read the picture", file):
        content = file.read_bytes()
    kind = next((kind for begin, kind in _SENT_AS_THEY_ARE.items() if content.startswith(begin)), None)
    if kind is None or not is_plain(content, str(file)):
        stream = io.BytesIO()
        read_image(file).save(stream, "PNG")
        kind, content = "image/png", stream.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _said(error: Any) -> str:
    """Return the server's message about its refusal, on one line."""
    body = error.body if isinstance(error.body, dict) else {}
    message = body.get("message") or body.get("detail") or getattr(error, "message", "")
    return " ".join(str(message).split())[:300].rstrip(".")
