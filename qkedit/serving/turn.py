"""The model while it answers one request: with that request's plug-ins and seed, until its client hangs up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qkedit.errors import QkeditError
from qkedit.serving.metrics import Metrics
from qkedit.serving.on_transformers import LoadedModel
from qkedit.serving.plugin_switch import PluginSwitch
from qkedit.serving.request_errors import HUNG_UP, RequestError

if TYPE_CHECKING:
    from qkedit.plugins.request import RequestReport

logger = logging.getLogger("uvicorn.error")  # where the server's own failures are written


class Turn:
    """What a server that calls `model.generate` is given for a model, for one answer.

    `generate` has to be called on one thread for all turns of a model: plug-ins are attached to the model itself, and
    the multimodal rotary embeddings of some families keep the last prompt's offset there.

    Args:
        loaded: the model and its processor.
        switch: its plug-ins.
        plugins: names of those that act.
        seed: of sampling; None for whatever the generators are at.
        gone: set once nobody waits for the answer any more.
        metrics: where the answer is counted.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        switch: PluginSwitch,
        plugins: Sequence[str],
        *,
        seed: int | None,
        gone: threading.Event,
        metrics: Metrics,
    ) -> None:
        self.config = loaded.model.config
        self.plugins = tuple(plugins)
        self.report: RequestReport | None = None
        self.failure: QkeditError | None = None
        self._loaded = loaded
        self._switch = switch
        self._seed = seed
        self._gone = gone
        self._metrics = metrics

    def generate(self, *, streamer: Any = None, **arguments: Any) -> Any:
        """Return the tokens of prompt and answer, `[1, length]`, as `generate` of transformers does.

        Raises:
            QkeditError: it failed; kept as `failure`, since a server that streams tells it only as text.
        """
        if self._gone.is_set():
            raise RequestError("the client has hung up", status=HUNG_UP)
        start = time.perf_counter()
        try:
            tokens = self._generated(streamer, arguments)
        except QkeditError as error:
            self.failure = error
            raise
        except Exception as error:
            if self._gone.is_set():  # what cancels a stream
                raise
            logger.exception("an answer failed")
            self.failure = QkeditError(
                f"the answer failed ({type(error).__name__})", remedy="see the server's log for the reason"
            )
            raise self.failure from error
        prompt = arguments["input_ids"].shape[1]
        self._metrics.answer(
            prompt, tokens.shape[1] - prompt, time.perf_counter() - start, self.report.seconds if self.report else {}
        )
        if streamer is not None:
            streamer.end()
        return tokens

    def reported(self) -> dict[str, Any]:
        """Return what a client is told: the plug-ins that were on, and what they did where there were images."""
        return {
            "plugins": [self._switch.settings[name].as_dict() for name in self.plugins],
            "report": None if self.report is None else asdict(self.report),
        }

    def _generated(self, streamer: Any, arguments: dict[str, Any]) -> Any:
        from transformers import StoppingCriteriaList

        processor = self._loaded.processor
        with self._switch.on(self.plugins) as report, _seeded(self._loaded.model.device, self._seed):
            tokens = self._loaded.model.generate(
                **{
                    **arguments,
                    # Stop texts are looked up in a vocabulary, which processors do not have.
                    "tokenizer": getattr(processor, "tokenizer", processor),
                    "streamer": None if streamer is None else _Tokens(streamer),
                    "stopping_criteria": StoppingCriteriaList([self._nobody_waits]),
                }
            )
            self.report = report()
        return tokens

    def _nobody_waits(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        return torch.full((input_ids.shape[0],), self._gone.is_set(), dtype=torch.bool, device=input_ids.device)


class _Tokens:
    """Hands tokens on to a streamer, but not their end: what is reported with it is not known before."""

    def __init__(self, streamer: Any) -> None:
        self.put = streamer.put

    def end(self) -> None:
        """Wait for the report."""


@contextmanager
def _seeded(device: Any, seed: int | None) -> Iterator[None]:
    """Draw from generators with this seed, and leave them to the next answer as they were."""
    import torch

    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
