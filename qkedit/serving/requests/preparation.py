"""Convert a request's body to a model's inputs, and every failure to a refusal that does not keep the body alive."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qkedit.errors import QkeditError, first_sentence, memory_that_ran_out
from qkedit.runtime.processor_errors import placeholders
from qkedit.serving.requests.chat_request import ChatRequest, parse_chat_request
from qkedit.serving.requests.image_hosts import ImageHosts
from qkedit.serving.requests.image_policy import ImagePolicy, from_data_url, is_data_url
from qkedit.serving.requests.request_errors import RequestError
from qkedit.serving.served_model import ServedModel

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("uvicorn.error")  # the log of the server's own failures


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to be answered.

    Attributes:
        request: the request, without its messages.
        inputs: the model's inputs.
        settings: the decoding settings of transformers.
    """

    request: ChatRequest
    inputs: Mapping[str, Any]
    settings: Any


class Preparation:
    """Prepares the requests of a server.

    Args:
        served: the model.
        policy: the images that are accepted.
    """

    def __init__(self, served: ServedModel, policy: ImagePolicy) -> None:
        self._served = served
        self._policy = policy
        self._hosts = ImageHosts(policy.hosts, policy.limits)
        self._placeholders = placeholders(served.loaded.processor)
        # One at a time: decoded images are large, and tokenizers are not thread-safe.
        self._thread = ThreadPoolExecutor(1, "preparing")

    async def prepared(self, body: dict[str, Any]) -> Prepared:
        """Prepare a request for its answer, and empty its body, which may be large.

        Raises:
            RequestError: the request cannot be served.
        """
        try:
            return await self._read(body)
        except QkeditError as error:
            # Its traceback holds the request's images, so a new error is raised outside those frames.
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
        """Return a request with its inputs. Raises RequestError if that fails."""
        images: list[Image] = []
        try:
            urls = [image.url for image in request.images]
            images = self._policy.decoded([from_data_url(url) if is_data_url(url) else fetched[url] for url in urls])
            # The request may have to wait, and the encoded images are large.
            prepared = Prepared(replace(request, messages=()), *self._served.prepared(request, images))
            if self._served.switch.reads_pictures(request.plugins):
                images = []  # which are then kept with the inputs
            return prepared
        except QkeditError:
            raise
        # A processor or a template may fail in any way on a client's input, which the client can change.
        except Exception as error:
            if whose := memory_that_ran_out(error):
                raise RequestError(f"{whose} is too small for the request", remedy="send less", status=413) from error
            # As text: a record with the error itself would keep the images alive in every stored record.
            logger.warning("a request could not be prepared\n%s", traceback.format_exc().rstrip())
            raise RequestError(
                f"the model's processor fails on them ({type(error).__name__}: {first_sentence(error)})",
                where="messages",
                remedy="change them",
            ) from error
        finally:
            for image in images:
                image.close()
