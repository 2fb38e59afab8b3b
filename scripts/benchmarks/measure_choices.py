"""Measure the choices that docs/method.md and docs/architecture.md give as reasons, at Qwen2-VL-7B shapes.

    python scripts/benchmarks/measure_choices.py

* Gram products accumulated in float32 and in float64;
* the size of the pieces in which weights are converted;
* heads on single-threaded workers against threads inside each product, alone and next to one busy process;
* the size of the pieces in which a tensor is written. The files stay until the end, so that none reuses the memory of
  an earlier one: 4.5 GB below the directory for temporary files (TMPDIR).

Prints a Markdown table for docs/benchmarks.md; takes about a minute.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from qkedit.spectral import factors
from qkedit.spectral.edit import suppress
from qkedit.spectral.product import QKProduct
from qkedit.spectral.suppression import Suppression
from qkedit.steering.engine.layer_weights import stored_bytes
from qkedit.steering.engine.workers import Workers, workers

HEADS, KEY_HEADS, HEAD_SIZE, HIDDEN = 28, 4, 128, 3584
REPEATS = 7
WRITES, WRITTEN_LAYERS = 8, 11


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    generator = torch.Generator().manual_seed(0)
    query = (torch.randn(HEADS, HEAD_SIZE, HIDDEN, generator=generator) * 0.02).bfloat16()
    key = (torch.randn(KEY_HEADS, HEAD_SIZE, HIDDEN, generator=generator) * 0.02).bfloat16()
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| choice | ms per layer |\n|---|---|")
    for name, action in (*gram_precisions(query), *piece_sizes(query, key)):
        print(f"| {name} | {median_ms(action):.0f} |")
    for neighbour in (False, True):
        with busy_process() if neighbour else alone():
            for name, action in schedules(query, key):
                low, high = extremes_ms(action)
                print(f"| {name}, {'with one busy process' if neighbour else 'alone'} | {low:.0f} to {high:.0f} |")
    for name, taken in write_sizes(stored_bytes(query)).items():
        print(f"| {name} | {1000 * min(taken):.0f} to {1000 * max(taken):.0f} |")


def gram_precisions(query: torch.Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the same products in both precisions, on converted operands."""
    for dtype in (torch.float32, torch.float64):
        weights = query.to(dtype)
        yield f"Gram products, {str(dtype).removeprefix('torch.')}", lambda weights=weights: weights @ weights.mT


def piece_sizes(query: torch.Tensor, key: torch.Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the write-back of one layer with weights converted in pieces of different sizes."""
    product = QKProduct(query, key)
    update = suppress(product, Suppression()).update

    def write_back(size: int) -> None:
        chosen, factors.CPU_WORKING_BYTES = factors.CPU_WORKING_BYTES, size
        update.apply(product)
        factors.CPU_WORKING_BYTES = chosen

    for megabytes in (2, 8, 64):
        yield f"write-back, pieces of {megabytes} MB", lambda size=megabytes << 20: write_back(size)


def schedules(query: torch.Tensor, key: torch.Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the mathematics of one layer with heads spread over workers, and with threads inside each product."""
    group = HEADS // KEY_HEADS

    def edit(place: slice) -> None:
        product = QKProduct(query[place], key[place.start // group : place.stop // group])
        suppress(product, Suppression()).update.apply(product)

    def on_workers() -> None:
        with workers(query.device) as pool:
            pool.map(edit, [slice(start, start + group) for start in range(0, HEADS, group)])

    yield "one layer, single-threaded workers", on_workers
    yield "one layer, threads inside each product", lambda: Workers(None).map(edit, [slice(0, HEADS)])


@contextmanager
def busy_process() -> Iterator[None]:
    """Run a process that keeps one core busy while the context is open."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def write_sizes(content: memoryview) -> dict[str, list[float]]:
    """Return the seconds per layer of writing eleven layers, in turns and each time into a new file."""
    sizes = {"writing, whole tensors": len(content), "writing, pieces of 1 MB": 1 << 20}
    taken: dict[str, list[float]] = {name: [] for name in sizes}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(WRITES):
            for name, size in sizes.items():
                with open(Path(folder, f"{size}-{turn}"), "xb", buffering=0) as file:
                    started = time.perf_counter()
                    for _ in range(WRITTEN_LAYERS):
                        for start in range(0, len(content), size):
                            file.write(content[start : start + size])
                    taken[name].append((time.perf_counter() - started) / WRITTEN_LAYERS)
                os.sync()
    return taken


@contextmanager
def alone() -> Iterator[None]:
    yield


def seconds(action: Callable[[], object]) -> list[float]:
    action()
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return taken


def median_ms(action: Callable[[], object]) -> float:
    return 1000 * statistics.median(seconds(action))


def extremes_ms(action: Callable[[], object]) -> tuple[float, float]:
    taken = seconds(action)
    return 1000 * min(taken), 1000 * max(taken)


if __name__ == "__main__":
    main()
