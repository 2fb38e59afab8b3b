"""Turn a request's body into a model's inputs, and every way this can fail into a refusal that keeps nothing alive."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qkedit.errors import QkeditError, first_line, memory_that_ran_out
from qkedit.serving.requests.chat_request import ChatRequest, parse_chat_request
from qkedit.serving.requests.conversations import placeholders
from qkedit.serving.requests.image_hosts import ImageHosts
from qkedit.serving.requests.image_policy import ImagePolicy, from_data_url, is_data_url
from qkedit.serving.requests.request_errors import RequestError
from qkedit.serving.served_model import ServedModel

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("uvicorn.error")  # where the server's own failures are written


@dataclass(frozen=True)
class Prepared:
    """A request that can be answered.

    Attributes:
        request: what was asked, without its messages.
        inputs: the model's.
        settings: transformers' settings of how to decode.
    """

    request: ChatRequest
    inputs: Mapping[str, Any]
    settings: Any


class Preparation:
    """Prepares the requests of a server.

    Args:
        served: the model.
        policy: which images are taken.
    """

    def __init__(self, served: ServedModel, policy: ImagePolicy) -> None:
        self._served = served
        self._policy = policy
        self._hosts = ImageHosts(policy.hosts, policy.limits)
        self._placeholders = placeholders(served.loaded.processor)
        # One at a time: decoded images are large, and tokenizers are not made for several threads.
        self._thread = ThreadPoolExecutor(1, "preparing")

    async def prepared(self, body: dict[str, Any]) -> Prepared:
        """Return a request that can be answered, and empty its body, which may be large.

        Raises:
            RequestError: it cannot be served.
        """
        try:
            return await self._read(body)
        except QkeditError as error:
            # The frames it passed hold the request's images, so it is raised anew, out of their sight.
            failure = error
        finally:
            body.clear()
        failure.__cause__ = failure.__context__ = None
        raise failure.with_traceback(None)

    async def _read(self, body: dict[str, Any]) -> Prepared:
        request = parse_chat_request(
            body,
            model=self._served.name,
            plugins=self._served.switch.names,
            images=self._policy.limits.images,
            placeholders=self._placeholders,
        )
        fetched = await self._hosts.files(image.url for image in request.images if not is_data_url(image.url))
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._inputs, request, fetched)

    def _inputs(self, request: ChatRequest, fetched: Mapping[str, bytes]) -> Prepared:
        """Return a request with its inputs. Raises RequestError for one that does not become any."""
        images: list[Image] = []
        try:
            urls = [image.url for image in request.images]
            images = self._policy.decoded([from_data_url(url) if is_data_url(url) else fetched[url] for url in urls])
            # It may have to wait for others, and what its images came in is large.
            return Prepared(replace(request, messages=()), *self._served.prepared(request, images))
        except QkeditError:
            raise
        # A processor or a template may fail in any way on what clients send, and it is theirs to change it.
        except Exception as error:
            if whose := memory_that_ran_out(error):
                raise RequestError(f"{whose} does not hold the request", remedy="send less", status=413) from error
            # As text: a record with the error itself would keep the images alive wherever records are kept.
            logger.warning("a request could not be prepared\n%s", traceback.format_exc().rstrip())
            raise RequestError(
                f"the model's processor fails on them ({type(error).__name__}: {first_line(error)})",
                where="messages",
                remedy="change them",
            ) from error
        finally:
            for image in images:
                image.close()
