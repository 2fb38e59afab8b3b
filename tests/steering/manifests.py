"""Make the smallest manifest, as a value and as the content of its file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qkedit.checkpoint.manifest_file import (
    EditControl,
    EditedChannel,
    HeadEdit,
    Manifest,
    RecordedBase,
    RecordedOptions,
    TensorEdit,
    Tool,
)

HEAD = HeadEdit(head=0, key_head=0, suppressed=(1.0,), energy_removed=0.5, gap=None, relative_change=0.5)
SMALL = Manifest(
    tool=Tool(version="0"),
    base=RecordedBase(model="m", revision=None),
    options=RecordedOptions(
        layers="0",
        heads="all",
        k=1,
        energy=None,
        retain=0.0,
        channel=EditedChannel.FULL,
        control=EditControl.NONE,
        seed=0,
        compute_dtype="float32",
        device="cpu",
    ),
    tensors=(
        TensorEdit(
            name="t", shard="s", layer=0, dtype="F32", shape=(1, 1), sha256_before="0", sha256_after="1", heads=(HEAD,)
        ),
    ),
    history=(),
)


def of_base(model: str, revision: str | None) -> Manifest:
    return replace(SMALL, base=RecordedBase(model=model, revision=revision))


def small_file() -> dict[str, Any]:
    """Return a new copy of the file's content."""
    return SMALL.as_dict()
