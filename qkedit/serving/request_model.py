"""The model for one request: with that request's plug-ins and seed, until its client disconnects."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from qkedit.errors import QkeditError, memory_that_ran_out
from qkedit.runtime.generation import LoadedModel
from qkedit.serving.answer_text import StopText
from qkedit.serving.http.metrics import Metrics
from qkedit.serving.plugin_switch import PluginSwitch
from qkedit.serving.requests.request_errors import HUNG_UP, RequestError

if TYPE_CHECKING:
    from qkedit.plugins.core.report import RequestReport

logger = logging.getLogger("uvicorn.error")  # the log of the server's own failures


class RequestModel:
    """The object on which a server calls `model.generate` for one answer.

    `generate` must be called on one thread for all requests to a model: plug-ins are attached to the model itself,
    and the multimodal rotary embeddings of some families store the last prompt's offset there.

    Args:
        loaded: the model and its processor.
        switch: the plug-ins of the server.
        plugins: the names of the plug-ins for this request.
        stops: the texts that end the answer.
        seed: the seed of sampling; None for the present state of the generators.
        gone: set when nobody waits for the answer any more.
        metrics: the counters of answers.
    """

    # With a config, transformers' handler would choose a template to remove reasoning and tool calls from the answer.
    # Clients get the whole output of `generate`.
    config = SimpleNamespace(model_type=None)

    def __init__(
        self,
        loaded: LoadedModel,
        switch: PluginSwitch,
        plugins: Sequence[str],
        *,
        stops: Sequence[str],
        seed: int | None,
        gone: threading.Event,
        metrics: Metrics,
    ) -> None:
        self.plugins = tuple(plugins)
        self.report: RequestReport | None = None
        self.failure: QkeditError | None = None
        self.tokens: Any = None  # the tokens of the complete answer
        self._loaded = loaded
        self._switch = switch
        self._stops = tuple(stops)
        self._seed = seed
        self._gone = gone
        self._metrics = metrics

    def generate(self, *, streamer: Any = None, **arguments: Any) -> Any:
        """Return the tokens of prompt and answer, `[1, length]`, as `generate` of transformers does.

        Raises:
            QkeditError: generation failed; also stored as `failure`, since a streaming server reports it only as text.
        """
        if self._gone.is_set():
            raise RequestError("the client has disconnected", status=HUNG_UP)
        start = time.perf_counter()
        try:
            tokens = self._generated(streamer, arguments)
        except QkeditError as error:
            self.failure = error
        except Exception as error:
            # As text: a record with the error itself would keep the answer's objects alive in every stored record.
            logger.error("an answer failed\n%s", traceback.format_exc().rstrip())
            self.failure = _failure(error)
        if self.failure is not None:
            # A new error: the traceback of the first one holds the answer's tensors, on the GPU.
            self.failure.__cause__ = self.failure.__context__ = None
            raise self.failure.with_traceback(None)
        prompt = arguments["input_ids"].shape[1]
        self._metrics.answer(
            prompt, tokens.shape[1] - prompt, time.perf_counter() - start, self.report.seconds if self.report else {}
        )
        self.tokens = tokens[0, prompt:]
        if streamer is not None:
            streamer.end()
        return tokens

    def reported(self) -> dict[str, Any]:
        """Return the report for the client: the chat template, the active plug-ins, and their reports on images."""
        return {
            "chat_template": self._loaded.template_record,
            "plugins": [self._switch.settings[name].as_dict() for name in self.plugins],
            "report": None if self.report is None else self.report.as_dict(),
        }

    def _generated(self, streamer: Any, arguments: dict[str, Any]) -> Any:
        from transformers import StoppingCriteriaList

        criteria: list[Any] = [self._nobody_waits]
        if self._stops:
            criteria.append(_Said(self._stops, self._tokenizer.backend_tokenizer))
        with self._switch.on(self.plugins) as report, _seeded(self._loaded.model.device, self._seed):
            tokens = self._loaded.model.generate(
                **{
                    **arguments,
                    "tokenizer": self._tokenizer,
                    "streamer": None if streamer is None else _Tokens(streamer, self._gone),
                    "stopping_criteria": StoppingCriteriaList(criteria),
                }
            )
            self.report = report()
        return tokens

    @property
    def _tokenizer(self) -> Any:
        processor = self._loaded.processor
        return getattr(processor, "tokenizer", processor)

    def _nobody_waits(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return _for_each_row(input_ids, self._gone.is_set())


class _Said:
    """Ends an answer when it contains a stop text.

    transformers' own criterion matches stop texts with the vocabulary, which takes seconds for a new text and fails on
    some tokenizers. This one checks the text that clients get. A search that follows several answers asks about all of
    them at once, and then each is decoded anew.
    """

    def __init__(self, stops: Sequence[str], tokenizer: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self._cut = StopText(stops)
        self._stops, self._tokenizer = stops, tokenizer
        self._prompt: int | None = None  # its length
        self._decoded = DecodeStream([], skip_special_tokens=True)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if self._prompt is None:  # it is asked for the first time after one token
            self._prompt = input_ids.shape[1] - 1
        if len(input_ids) > 1:
            answers = [self._tokenizer.decode(row) for row in input_ids[:, self._prompt :].tolist()]
            return input_ids.new_tensor([any(stop in answer for stop in self._stops) for answer in answers]).bool()
        self._cut.feed(self._decoded.step(self._tokenizer, int(input_ids[0, -1])) or "")
        return _for_each_row(input_ids, self._cut.stopped)


class _Tokens:
    """Passes tokens on to a streamer as long as somebody waits for them, but not their end, since the report follows.

    An abandoned answer ends like any other. In a cancelled stream it would end as a failure.
    """

    def __init__(self, streamer: Any, gone: threading.Event) -> None:
        self._streamer = streamer
        self._gone = gone

    def put(self, value: Any) -> None:
        """Take the prompt first, then each token."""
        if not self._gone.is_set():
            self._streamer.put(value)

    def end(self) -> None:
        """Wait for the report."""


def _failure(error: Exception) -> QkeditError:
    """Return the error that a client gets for a failure of the server."""
    if whose := memory_that_ran_out(error):
        return RequestError(
            f"{whose} is too small for the answer",
            remedy="send less, or ask again later",
            status=503,
        )
    return QkeditError(f"the answer failed ({type(error).__name__})", remedy="see the server's log for the reason")


def _for_each_row(input_ids: Any, done: bool) -> Any:
    import torch

    return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)


@contextmanager
def _seeded(device: Any, seed: int | None) -> Iterator[None]:
    """Seed the generators for the block, and restore their state afterwards."""
    import torch

    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
