"""The diagnosis of SCR before a prefill: attention scores, the sources that follow from them, and reference norms."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from qkedit.errors import UsageError
from qkedit.plugins.core.grid import Grid, ImageExtent
from qkedit.plugins.core.prefill import Prefill, Span
from qkedit.plugins.core.recorded_attention import AttentionRecorder, Reading
from qkedit.plugins.scr.settings import SCRSettings
from qkedit.plugins.scr.sources import Choice, choose
from qkedit.selection import describe

ImageChoices = tuple[Choice, ...]  # one per grid of an image


@dataclass(frozen=True)
class Diagnosis:
    """The result of the pass over the unedited prompt.

    Attributes:
        choices: the sources and neighbours of each image of each prompt.
        cell_norms: by layer, `[cells]` float32, `‖h_i‖` of every cell; only for edited layers that the pass reached.
        remembered: the number of images with known sources.
    """

    choices: list[ImageChoices]
    cell_norms: Mapping[int, Tensor]
    remembered: int


def diagnose(
    prefill: Prefill,
    settings: SCRSettings,
    edited: tuple[int, ...],
    scored: tuple[int, ...],
    known: Sequence[ImageChoices | None],
    generator: torch.Generator,
) -> Diagnosis:
    """Find the sources of every image, with one unedited pass if necessary.

    Args:
        prefill: the request.
        settings: the settings of SCR.
        edited: the layers in which states will be redistributed.
        scored: the layers whose attention is averaged.
        known: for each image of each prompt its sources, if they are known from an earlier request.
        generator: the generator of random draws.

    Raises:
        UsageError: there is no text after an image.
    """
    grids = prefill.grids
    by_attention = settings.selection == "attention" and not all(known)
    scores_of, states_of = scored if by_attention else (), edited if settings.measure else ()
    last_layer = max((*scores_of, *states_of), default=None)
    readings = [_reading(prefill, extent, settings.queries) for extent in grids.extents] if by_attention else []
    # For the last scored layer its queries and keys are enough.
    leave_after = None if last_layer in states_of else last_layer
    recorder = AttentionRecorder(frozenset(scored), readings, leave_after)
    norms: dict[int, Tensor] = {}
    measure = CellNorms(prefill)

    def observe(layer: int, hidden: Tensor) -> None:
        if layer in edited:
            norms[layer] = measure(hidden)

    if last_layer is not None:
        record: AbstractContextManager[None] = prefill.recording(recorder) if by_attention else nullcontext()
        with record:
            prefill.preview(last_layer, observe)
    if by_attention and recorder.scores.keys() != recorder.layers:
        missing = sorted(recorder.layers - recorder.scores.keys())
        raise UsageError(
            f"layers {describe(missing)} did not compute attention", where="scr diagnosis", remedy="leave them out"
        )
    scores = recorder.mean()
    draws: dict[int, ImageChoices] = {}
    choices: list[ImageChoices] = []
    for index, (extent, before) in enumerate(zip(grids.extents, known, strict=True)):
        own = grids.of(extent)
        if before is not None:
            choices.append(before)
        elif by_attention:
            choices.append(_choices(_split(scores[index], own), settings))
        else:
            # Beams and further answers to a prompt share its sources.
            if extent.image not in draws:
                random = [torch.rand(grid.shape, generator=generator, dtype=torch.float64) for grid in own]
                draws[extent.image] = _choices(random, settings)
            choices.append(draws[extent.image])
    return Diagnosis(choices, norms, sum(before is not None for before in known))


def query_columns(prefill: Prefill, extent: ImageExtent, queries: str) -> Tensor:
    """Return the columns of a prompt whose attention to an image is scored, int64 on the CPU.

    Raises:
        UsageError: there are no such columns.
    """
    columns = prefill.real[extent.row].clone()
    columns[: extent.last + 1] = False
    for other in prefill.grids.extents:
        if other.row == extent.row:
            columns[other.first : other.last + 1] = False
    found = columns.nonzero().flatten()
    if not found.numel():
        raise UsageError(
            "no text follows an image, so nothing attends to it",
            where="scr",
            remedy="put the question after the image",
        )
    return found if queries == "text-after" else prefill.real[extent.row].nonzero().flatten()[-1:]


def _reading(prefill: Prefill, extent: ImageExtent, queries: str) -> Reading:
    device = prefill.arguments["inputs_embeds"].device
    columns = query_columns(prefill, extent, queries)
    return Reading(extent.row, columns.to(device), _cells(prefill.grids.of(extent)).to(device))


def image_keys(prefill: Prefill) -> list[bytes]:
    """Return a digest of the content of each image of each prompt: its features and the shapes of its grids."""
    embeddings = prefill.arguments["inputs_embeds"]
    keys = []
    for extent in prefill.grids.extents:
        own = prefill.grids.of(extent)
        features = embeddings[extent.row, _cells(own).to(embeddings.device)].detach().contiguous().cpu()
        digest = hashlib.blake2b(features.view(torch.uint8).numpy().tobytes())
        digest.update(repr([grid.shape for grid in own]).encode())
        keys.append(digest.digest())
    return keys


class CellNorms:
    """`‖h_i‖` of every cell of a request, `[cells]` float32; 0 for cells outside the span."""

    def __init__(self, prefill: Prefill) -> None:
        device = prefill.arguments["inputs_embeds"].device
        self._rows, self._columns = prefill.grids.cell_rows.to(device), prefill.grids.cell_columns.to(device)

    def __call__(self, hidden: Tensor, span: Span | None = None) -> Tensor:
        """Return the norms of the states of `span`, `[batch, span, D]`, or of whole prompts."""
        rows, columns = self._rows.to(hidden.device), self._columns.to(hidden.device)
        if span is None:
            return hidden[rows, columns].detach().float().norm(dim=-1)
        inside = (columns >= span.first) & (columns < span.end)
        columns = (columns - span.first).clamp(0, hidden.shape[1] - 1)
        return hidden[rows, columns].detach().float().norm(dim=-1) * inside


def _choices(scores: Sequence[Tensor], settings: SCRSettings) -> ImageChoices:
    if settings.per == "image":
        return tuple(choose(scores, settings.sources, settings.claim))
    return tuple(choose([grid], settings.sources, settings.claim)[0] for grid in scores)


def _cells(grids: Sequence[Grid]) -> Tensor:
    return torch.cat([grid.cells for grid in grids])


def _split(scores: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """Split the scores of an image's cells by grid."""
    parts = scores.split([grid.positions.numel() for grid in grids])
    return [part.view(grid.shape) for part, grid in zip(parts, grids, strict=True)]
