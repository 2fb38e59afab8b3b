"""Run the model on changed inputs in step with an answer, so that the two distributions can be contrasted.

The branch is a second call of transformers' `generate`, which alone knows how each family counts positions, pads
batches and keeps its cache. It runs in a thread of its own: its logits processor hands over the logits of every step,
waits for the tokens that the answer went on with, and forces them. Only one of the two threads works at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from qkedit.errors import QkeditError

# More tokens than any answer has: the answer ends the branch.
_ENDLESS = 2**20
# A token that no model has, so that the branch does not end by itself: a request may change the answer's own end.
_NO_END = 2**31 - 1


class _Ended(BaseException):
    """Raised to leave the branch's `generate`; a BaseException, so that nobody on the way treats it as an error."""


class LockstepBranch:
    """A branch that starts at the first call of `logits`.

    Args:
        model: the model, whose rotary state is put back whenever the branch has run.
        generate: the model's own `generate`, which passes the logits of every forward pass to `forwarded`.
        inputs: the branch's model inputs.
    """

    def __init__(self, model: nn.Module, generate: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
        self._model = model
        self._generate = generate
        self._inputs = inputs
        self._tokens: SimpleQueue[Tensor | None] = SimpleQueue()
        self._answers: SimpleQueue[Tensor | BaseException] = SimpleQueue()
        self._last: Tensor | None = None
        self._rotary: dict[nn.Module, Any] = {}
        self._thread: threading.Thread | None = None

    def logits(self, tokens: Tensor | None) -> Tensor:
        """Return the branch's logits of the next token; see `Branch`. Raises what the branch's forward pass raises."""
        with self._own_rotary_state():
            if self._thread is None:
                device = self._inputs["input_ids"].device.type
                autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), device
                self._thread = threading.Thread(target=self._run, args=autocast, name="qkedit branch", daemon=True)
                self._thread.start()
            else:
                self._tokens.put(tokens)
            answer = self._answers.get()
        if isinstance(answer, BaseException):
            self._thread.join()
            raise answer
        return answer

    def forwarded(self, logits: Tensor) -> None:
        """Take the logits of a forward pass, `[batch, vocabulary]`; called in the branch's thread."""
        self._last = logits

    def close(self) -> None:
        """End the branch and its thread."""
        if self._thread is not None and self._thread.is_alive():
            self._tokens.put(None)
            self._thread.join()

    def _run(self, autocast: bool, dtype: torch.dtype, device: str) -> None:
        try:
            with torch.autocast(device, dtype=dtype, enabled=autocast):
                self._generate(
                    **self._inputs,
                    max_new_tokens=_ENDLESS,
                    eos_token_id=_NO_END,
                    do_sample=False,
                    num_beams=1,
                    logits_processor=[self._force],
                )
            self._answers.put(QkeditError("the contrasted branch ended before the answer", where="generate"))
        except _Ended:
            pass
        except BaseException as error:  # raised again where the answer is made
            self._answers.put(error)

    def _force(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert self._last is not None  # a forward pass comes before its processors
        self._answers.put(self._last)
        tokens = self._tokens.get()
        if tokens is None:
            raise _Ended
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter_(1, tokens[:, None].to(scores.device), 0.0)

    @contextmanager
    def _own_rotary_state(self) -> Iterator[None]:
        """Keep `rope_deltas`, which families with three-axis positions leave on a module, apart from the answer's."""
        modules = [module for module in self._model.modules() if hasattr(module, "rope_deltas")]
        before = {module: module.rope_deltas for module in modules}
        for module, value in self._rotary.items():
            module.rope_deltas = value
        try:
            yield
        finally:
            self._rotary = {module: module.rope_deltas for module in modules}
            for module, value in before.items():
                module.rope_deltas = value
