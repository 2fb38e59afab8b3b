"""Test failures of a model while it answers."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qkedit.errors import QkeditError
from qkedit.serving.http.metrics import Metrics
from qkedit.serving.request_model import RequestModel
from qkedit.serving.requests.request_errors import status_of


class Failing:
    """A model that makes a tensor and fails, with its switch of plug-ins."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.device = torch.device("cpu")
        self.made: Any = None

    def generate(self, **arguments: Any) -> None:
        """Raise the given error."""
        tensor = torch.zeros(8)
        self.made = weakref.ref(tensor)
        raise copy.copy(self.error)  # so that this test holds no frames

    @contextmanager
    def on(self, names: Any) -> Iterator[Any]:
        """Switch no plug-in on."""
        yield lambda: None


def failure_of(model: Failing) -> QkeditError:
    loaded: Any = SimpleNamespace(model=model, processor=SimpleNamespace())
    switch: Any = model
    answering = RequestModel(loaded, switch, (), stops=(), seed=None, gone=threading.Event(), metrics=Metrics())
    with pytest.raises(QkeditError) as raised:
        answering.generate(input_ids=torch.zeros(1, 1))
    assert answering.failure is raised.value
    return raised.value


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            503,
            "the device's memory is too small",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), 503, "the device's"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            503,
            "memory is too small",
        ),
        (MemoryError(), 503, "memory is too small for the answer; send less, or ask again later."),
        (RuntimeError("shapes differ"), 500, "the answer failed (RuntimeError); see the server's log for the reason."),
        (QkeditError("scr: no"), 500, "scr: no."),
    ],
)
def test_failures_become_status_and_sentence(error: Exception, status: int, said: str) -> None:
    failure = failure_of(Failing(error))
    assert status_of(failure) == status
    assert str(failure).startswith(said)


def test_a_failure_frees_the_memory_of_the_answer() -> None:
    """The memory must be free for the next request without a garbage collection."""
    model = Failing(RuntimeError("shapes differ"))
    gc.disable()
    try:
        failure = failure_of(model)
        assert model.made() is None
        assert failure.__cause__ is failure.__context__ is None
    finally:
        gc.enable()


def test_the_message_of_torch_for_a_full_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as full:
        torch.empty(10**15)
    assert status_of(failure_of(Failing(full.value))) == 503
