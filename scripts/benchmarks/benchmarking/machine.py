"""Describe the machine on which figures were measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("qkedit", "torch", "numpy", "safetensors", "transformers", "accelerate")


def describe_machine(work: Path, device: str) -> dict[str, Any]:
    """Return the facts that the figures depend on; `work` is the output directory, `device` runs the mathematics."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": _device_name(device),
        "file_system": _file_system(work),
        "kernel": f"{platform.system()} {platform.release()}",
        # Dirty pages beyond this share of the memory make writers wait for the disk.
        "dirty_ratio": int(Path("/proc/sys/vm/dirty_ratio").read_text()),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "cp": subprocess.run(["cp", "--version"], capture_output=True, text=True).stdout.partition("\n")[0],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def _file_system(path: Path) -> str:
    """Return the type and device of the mount that holds a path: the last of the longest mount points above it."""
    real = path.resolve()
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, rest = line.partition(" - ")
        point = Path(place.split()[4])
        if real.is_relative_to(point):
            kind, source, _ = rest.split(" ", 2)
            mounts.append((len(point.parts), f"{kind} on {source}"))
    return max(reversed(mounts), key=lambda mount: mount[0], default=(0, "unknown"))[1]
