"""Which device the mathematics runs on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qkedit.errors import UsageError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` is what accelerate picks here.

    Raises:
        UsageError: there is no such device on this machine, or several processes were launched.
    """
    import torch

    if name == "cpu":
        return torch.device("cpu")
    if name == "auto":
        from accelerate import PartialState

        launched = os.environ.get("WORLD_SIZE", "1")
        if launched != "1":  # asked first: the state of several processes waits for all of them
            raise UsageError(
                f"{launched} processes were launched for one edit",
                where="WORLD_SIZE",
                remedy="start qkedit directly, without accelerate launch or torchrun",
            )
        try:
            return PartialState().device
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"cannot be chosen: {reason}", where="device", remedy="name one with --device") from error
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"there is no device {name!r}", where="device", remedy="take auto, cpu, cuda, cuda:N or mps"
        ) from None
    present = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 0)
    if (device.index or 0) >= present:
        raise UsageError(f"this machine has no device {name!r}", where="device", remedy="take --device cpu or auto")
    return device
