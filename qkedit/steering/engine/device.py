"""Choose the device of the computation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkedit.errors import UsageError, first_sentence
from qkedit.steering.processes.launch import launched

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    `auto` is the CPU where torch sees no accelerator, and else what accelerate picks.

    Several processes on one machine each take a different GPU, as long as there are enough.

    Raises:
        UsageError: there is no such device on this machine.
    """
    import torch

    if launch := launched():
        name = _device_of(launch.local_rank, name)

    # accelerate would say the same, after a quarter of a second for its import.
    if name == "cpu" or (name == "auto" and not torch.accelerator.is_available()):
        return torch.device("cpu")
    if name == "auto":
        from accelerate import PartialState

        try:
            return PartialState().device
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"cannot be chosen: {first_sentence(error)}", where="device", remedy="name one with --device"
            ) from error
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"there is no device {name!r}", where="device", remedy="choose auto, cpu, cuda, cuda:N or mps"
        ) from None
    present = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 0)
    if (device.index or 0) >= present:
        raise UsageError(f"this machine has no device {name!r}", where="device", remedy="choose --device cpu or auto")
    return device


def choose_devices(name: str) -> tuple[torch.device, ...]:
    """Return the devices that share the layers of one process: by default every GPU that it sees.

    Args:
        name: as for `choose_device`; `cuda` means all GPUs, as does `auto` if it finds one; `cuda:N` means that one.

    Raises:
        UsageError: there is no such device on this machine.
    """
    import torch

    device = choose_device(name)
    if device.type != "cuda" or name.startswith("cuda:") or launched():
        return (device,)
    return tuple(torch.device("cuda", number) for number in range(torch.cuda.device_count()))


def recorded_device(name: str) -> str:
    """Return the device as the manifest names it, without a GPU's number: equal GPUs give equal bytes."""
    device = choose_device(name)
    return str(device) if name == str(device) else device.type


def _device_of(local_rank: int, name: str) -> str:
    """Return the device of one of several processes; accelerate would wait for all of them before it answers."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and (count := torch.cuda.device_count()):
        return f"cuda:{local_rank % count}"
    return name
