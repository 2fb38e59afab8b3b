"""Measure the mathematics alone: ours, its floor, and alternative algorithms.

The floor is the work that every implementation of the same method needs, on operands that are in memory in the dtype
in which they are multiplied: the Gram products of queries and keys and the product of the small factors in float64,
the small singular value decompositions in one batch, and the two thin float32 products of the write-back. It excludes
conversions from the storage dtype, Cholesky factors, figures for the manifest and (on a GPU) transfers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarking.results import Route, Stage
from benchmarking.timing import Timing, in_turns, seconds_of
from qkedit.spectral.factors import factor
from qkedit.spectral.product import QKProduct
from qkedit.steering.engine.device import choose_device
from qkedit.steering.engine.edited_weights import begin_edit
from qkedit.steering.engine.layer_weights import LayerWeights
from qkedit.steering.engine.workers import workers
from qkedit.steering.plan import SteerPlan


def measure_mathematics(plan: SteerPlan, repeats: int) -> tuple[Stage, dict[str, Timing]]:
    """Return our time and the floor, for all planned layers, and the parts of the floor."""
    device = choose_device(plan.options.device)
    weights = _read(plan)
    _ours(plan, device)  # libraries initialise at the first call
    _floor(weights[:1], plan, device)
    taken = in_turns(
        repeats,
        {
            "mathematics": lambda: {"all": _ours(plan, device)},
            "mathematics, floor": lambda: _floor(weights, plan, device),
        },
    )
    floors = taken["mathematics, floor"]
    parts = {name: Timing(tuple(floor[name] for floor in floors)) for name in floors[0]}
    ours = Timing(tuple(seconds["all"] for seconds in taken["mathematics"]))
    return Stage(None, ours, Timing(tuple(sum(floor.values()) for floor in floors))), parts


def measure_routes(plan: SteerPlan, repeats: int) -> Iterator[Route]:
    """Yield the time of each way to compute the small factors of one layer: ours and QR, in two precisions."""
    device = choose_device(plan.options.device)
    product = LayerWeights.read(plan.checkpoint.files, plan.layers[0]).product(device)
    routes = {
        "Gram and Cholesky, float64 (ours)": lambda: (
            factor(product.query, "query"),
            factor(product.key, "key"),
        ),
        "QR, float32": lambda: _qr_factors(product, torch.float32),
        "QR, float64": lambda: _qr_factors(product, torch.float64),
    }
    for action in routes.values():  # libraries initialise at the first call
        action()
    taken = in_turns(repeats, {f"factors by {name}": _timed(action, device) for name, action in routes.items()})
    for name, seconds in zip(routes, taken.values(), strict=True):
        yield Route(name, "factors of one layer", Timing(tuple(seconds)), len(plan.layers))


def measure_dense_route(plan: SteerPlan) -> Iterator[Route]:
    """Yield the time of the singular value decomposition of one head's `D × D` product; once, since it is slow."""
    device = choose_device(plan.options.device)
    planned = plan.layers[0]
    product = LayerWeights.read(plan.checkpoint.files, planned).product(device)
    heads = sum(len(layer.heads) for layer in plan.layers)
    for dtype in (torch.float32, torch.float64):
        name = f"dense SVD, {str(dtype).removeprefix('torch.')}"
        dense = product.query[0].to(dtype).mT @ product.key[int(product.key_head[0])].to(dtype)
        taken = in_turns(1, {name: _timed(partial(torch.linalg.svd, dense), device)})
        yield Route(name, "modes of one head", Timing(tuple(taken[name])), heads)


def _read(plan: SteerPlan) -> list[LayerWeights]:
    return [LayerWeights.read(plan.checkpoint.files, planned) for planned in plan.layers]


def _ours(plan: SteerPlan, device: torch.device) -> float:
    weights = _read(plan)  # read again, untimed: the edit is made in place
    with workers(device) as pool:
        edits = pool.stream(lambda layer: begin_edit(layer, plan, device, pool), weights, ahead=1)
        return seconds_of(lambda: list(edits), _finish(device))


def _floor(weights: list[LayerWeights], plan: SteerPlan, device: torch.device) -> dict[str, float]:
    """Return the seconds of each part, added up over the layers; operands and memory are prepared untimed."""
    seconds: dict[str, float] = {}
    for layer in weights:
        for name, action in _floor_parts(layer.product(device), plan.options.suppression.k).items():
            seconds[name] = seconds.get(name, 0.0) + seconds_of(action, _finish(device))
    return seconds


def _floor_parts(product: QKProduct, k: int) -> dict[str, Callable[[], object]]:
    """Return the products and decompositions of one layer, ready to run."""
    query, key = product.query.double(), product.key.double()
    query_factor, key_factor, core = product.query_factor, product.key_factor, product.core
    weights = product.query.float()
    left = weights.new_ones(product.heads, product.head_size, k)
    right = weights.new_ones(product.heads, k, product.head_size)
    # Results are written into touched memory: newly allocated memory costs a page fault at its first touch.
    query_gram, key_gram = query_factor.clone(), key.new_ones(len(key), *core.shape[1:])
    directions, edited = weights.new_ones(product.heads, k, weights.shape[-1]), weights.clone()

    def grams() -> None:
        torch.matmul(query, query.mT, out=query_gram)
        torch.matmul(key, key.mT, out=key_gram)

    def write_back() -> None:
        torch.matmul(right, weights, out=directions)
        torch.baddbmm(weights, left, directions, out=edited)

    return {
        "Gram products, float64": grams,
        "product of the factors, float64": lambda: torch.matmul(query_factor.mT, key_factor, out=query_gram),
        "small SVDs, float64": lambda: torch.linalg.svd(core),
        "write-back products, float32": write_back,
    }


def _qr_factors(product: QKProduct, dtype: torch.dtype) -> list[Tensor]:
    return [torch.linalg.qr(weights.to(dtype).mT, mode="r").R for weights in (product.query, product.key)]


def _timed(action: Callable[[], object], device: torch.device) -> Callable[[], float]:
    return lambda: seconds_of(action, _finish(device))


def _finish(device: torch.device) -> Callable[[], object]:
    """Return a function that waits for the device, since a GPU still works after a call has returned."""
    if device.type != "cuda":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)
