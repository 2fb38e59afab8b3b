"""Simulated devices: tensors that report a device, with checks that operands are on the same one.

All tensors are in the machine's memory, and all numbers are computed there. But each tensor reports a device, results
have the device of their operands, and operands on different devices are refused as by CUDA, so that code that forgets
to move a tensor fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CPU = torch.device("cpu")
MOVES = {Tensor.to, Tensor.cpu, Tensor.copy_, Tensor.type_as, Tensor.__deepcopy__}
INDEXES = {Tensor.__getitem__, Tensor.__setitem__}
NEEDS_CPU = {Tensor.numpy, Tensor.__array__}


class Elsewhere(Tensor):
    """A tensor that reports the device `place`."""

    place: torch.device


def placed(tensor: Tensor, place: torch.device) -> Tensor:
    """Return the tensor, with the same memory, as one on a device."""
    plain = tensor.detach().as_subclass(Tensor)
    if place == CPU:
        return plain
    elsewhere = plain.as_subclass(Elsewhere)
    elsewhere.place = place
    return elsewhere


def place_of(tensor: Tensor) -> torch.device:
    return getattr(tensor, "place", CPU)


class PretendedDevices(TorchFunctionMode):
    """Simulate devices while the context is open. Raises RuntimeError if operands are on different devices."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check the devices of the operands, compute, and set the device of the result."""
        kwargs = kwargs or {}
        if function == Tensor.device.__get__:
            return place_of(args[0])
        flat, _ = tree_flatten((args, kwargs))
        tensors = [value for value in flat if isinstance(value, Tensor)]
        place = place_of(tensors[0]) if tensors else CPU
        if function in NEEDS_CPU and place != CPU:
            raise TypeError(f"can't convert {place} device type tensor to numpy")
        if function not in MOVES:
            place = _common_place(function, tensors)
        wanted = [value for value in flat if isinstance(value, torch.device)]
        if function is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
            wanted = [place_of(args[1])]
        texts = [value for value in (*args[1:], kwargs.get("device")) if isinstance(value, str)]
        if function is Tensor.cpu:
            wanted = [CPU]
        elif texts and (function is Tensor.to or "device" in kwargs):
            wanted = [torch.device(texts[0])]
        place = wanted[0] if wanted else place
        plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
        if isinstance(plain_kwargs.get("device"), str):
            plain_kwargs["device"] = CPU
        if function is Tensor.to:
            plain_args = tuple(CPU if isinstance(value, str) else value for value in plain_args)
        result = function(*plain_args, **plain_kwargs)
        if place.type == "mps" and any(
            isinstance(value, Tensor) and value.dtype in (torch.float64, torch.complex128)
            for value in tree_flatten(result)[0]
        ):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
            )
        return tree_map(lambda value: placed(value, place) if isinstance(value, Tensor) else value, result)


def _common_place(function: Any, tensors: Sequence[Tensor]) -> torch.device:
    """Return the common device of the operands; numbers may have any device, and an index may be on the CPU."""
    if function in INDEXES:
        self, others = tensors[0], [tensor for tensor in tensors[1:] if place_of(tensor) != CPU]
        tensors = [self, *others] if place_of(self) != CPU or others else [self]
    places = {place_of(tensor) for tensor in tensors if tensor.ndim or place_of(tensor) != CPU}
    if len(places) > 1:
        name = getattr(function, "__name__", function)
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {sorted(map(str, places))}")
    return places.pop() if places else CPU


def _plain(value: Any) -> Any:
    if isinstance(value, Elsewhere):
        return value.as_subclass(Tensor)
    return CPU if isinstance(value, torch.device) else value


def spread(model: nn.Module, places: Mapping[str, str]) -> None:
    """Put modules on devices by their names, the longest matching one, and move their inputs there.

    Like accelerate with a `device_map`: a module accepts arguments on any device.
    """
    for name, module in model.named_modules():
        known = [prefix for prefix in places if prefix == "" or f"{name}.".startswith(f"{prefix}.")]
        device = torch.device(places[max(known, key=len)])
        for own in (module._parameters, module._buffers):
            own.update({key: placed(tensor, device) for key, tensor in own.items() if tensor is not None})

        def move(part: nn.Module, args: Any, kwargs: Any, device: torch.device = device) -> Any:
            return send_to_device(args, device), send_to_device(kwargs, device)

        if name in places or module._parameters or module._buffers:
            module.register_forward_pre_hook(move, with_kwargs=True)
