"""The devices of a search's workers."""

from __future__ import annotations

import os
from typing import Any

from qkedit.errors import UsageError


def worker_devices(device: str, device_map: Any, at_once: int, workers: int | None) -> tuple[str, ...]:
    """Return the device of each worker; `cuda` stands for every GPU in turn, and `cuda:1` for that one.

    Args:
        device: the device of the model, by PyTorch's name.
        device_map: the placement of the model on several devices; None for one device.
        at_once: the number of trials of a round.
        workers: the number of workers; None for one per GPU or CPU core, and at most one per trial of a round.

    Raises:
        UsageError: a model that is spread over several devices cannot have several workers.
    """
    import torch

    if device_map is not None:
        if workers is not None and workers > 1:
            raise UsageError(
                "the model is spread over the devices of one process",
                where="--workers",
                remedy="leave out --workers or --device-map",
            )
        return (device,)
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    available = len(os.sched_getaffinity(0)) if device == "cpu" else max(1, gpus)
    count = min(at_once, available) if workers is None else workers
    if count == 1 or not gpus:
        return (device,) * count
    return tuple(f"cuda:{number % gpus}" for number in range(count))
