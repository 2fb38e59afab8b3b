"""A model of a server: its name, its plug-ins, and a test answer before the first request."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qkedit.errors import UsageError
from qkedit.runtime.generation import LoadedModel
from qkedit.runtime.sampling import samples
from qkedit.serving.http.metrics import Metrics
from qkedit.serving.plugin_switch import PluginSwitch
from qkedit.serving.request_model import RequestModel
from qkedit.serving.requests.chat_request import ChatRequest, Decoding, ImageUrl, Message
from qkedit.serving.requests.conversations import check_length, check_text_length, conversation_inputs

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ServedModel:
    """The served model.

    Attributes:
        name: the name for clients.
        loaded: the model and its processor.
        switch: the plug-ins of the model.
    """

    name: str
    loaded: LoadedModel
    switch: PluginSwitch

    @property
    def context(self) -> int:
        """The maximum number of tokens of a prompt and its answer together."""
        return int(self.loaded.model.config.get_text_config().max_position_embeddings)

    @cached_property
    def _longest_token(self) -> int:
        processor = self.loaded.processor
        return max(map(len, getattr(processor, "tokenizer", processor).get_vocab()))

    def prepared(self, request: ChatRequest, images: Sequence[Image]) -> tuple[Mapping[str, Any], Any]:
        """Return the model's inputs for a request, and the decoding settings of transformers.

        Raises:
            RequestError: the model does not accept the request, or it is too long.
        """
        check_text_length(request.texts, self.context, self._longest_token)
        inputs = conversation_inputs(self.loaded, request.messages, images)
        length = check_length(inputs["input_ids"].shape[1], request.decoding.max_tokens, self.context)
        return inputs, generation_config(self.loaded.model.generation_config, request.decoding, length)

    def request_model(self, request: ChatRequest, gone: threading.Event, metrics: Metrics) -> RequestModel:
        """Return the object that answers a request; see `RequestModel`."""
        decoding = request.decoding
        return RequestModel(
            self.loaded,
            self.switch,
            request.plugins,
            stops=decoding.stop,
            seed=decoding.seed,
            gone=gone,
            metrics=metrics,
        )


def generation_config(own: Any, decoding: Decoding, length: int) -> Any:
    """Return the model's own settings, overridden by those of a request.

    Args:
        own: the model's settings, which are not changed.
        decoding: the settings of the request.
        length: the maximum number of tokens of the answer.
    """
    config = copy.deepcopy(own)
    config.max_new_tokens = length
    temperature = own.temperature if decoding.temperature is None else decoding.temperature
    asked = decoding.temperature is not None or decoding.top_p is not None
    if not samples(temperature, by_default=True):
        config.do_sample, config.temperature, config.top_p, config.top_k = False, None, None, None
    elif asked:
        config.do_sample, config.temperature = True, temperature
        config.top_p = own.top_p if decoding.top_p is None else decoding.top_p
    config.num_beams = 1  # beams cannot be streamed, and an answer must not depend on whether it is streamed
    return config


def try_out(served: ServedModel) -> str | None:
    """Answer one request with all plug-ins, so that a failure occurs at the start and not at the first client.

    Returns:
        Why the plug-ins cannot act together although each one can, so that requests must name some; None if they can.

    Raises:
        QkeditError: the model, its processor or a plug-in does not work.
    """
    names = served.switch.names
    try:
        _answer_once(served, names)
    except UsageError as error:
        if len(names) < 2:
            raise
        for name in names:
            _answer_once(served, (name,))
        return str(error)
    return None


def _answer_once(served: ServedModel, plugins: tuple[str, ...]) -> None:
    from PIL import Image

    question = Message("user", (ImageUrl(""), "What is there?"))
    decoding = Decoding(max_tokens=1, temperature=0.0)  # greedy, since a search of a plug-in's own does not sample
    request = ChatRequest((question,), decoding, stream=False, plugins=plugins)
    inputs, settings = served.prepared(request, [Image.linear_gradient("L").convert("RGB")])
    served.request_model(request, threading.Event(), Metrics()).generate(**inputs, generation_config=settings)
