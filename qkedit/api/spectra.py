"""Look at query-key spectra from Python: the command `inspect`, with `--suggest` and `--compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.api.editing import after_a_run, planned_edit
from qkedit.checkpoint.architecture.library import Directories, using_architectures
from qkedit.selection import Selection
from qkedit.spectral.sink import NONE
from qkedit.spectral.suppression import Channel, Suppression
from qkedit.steering.steer_options import Product, Spared, edit_options

if TYPE_CHECKING:
    from qkedit.inspection.comparison import Comparison
    from qkedit.inspection.spectra import Inspection
    from qkedit.inspection.suggestion import Suggestion


def inspect(
    model: str | Path,
    *,
    layers: Selection = "all",
    heads: Selection = "all",
    k: int = 4,
    energy: float | None = None,
    channel: Channel = "full",
    offset: int | tuple[int, int, int] = 0,
    device: str = "auto",
    revision: str | None = None,
    protect: str = NONE,
    spare: Spared = "none",
    product: Product = "raw",
    architectures: Directories | None = None,
) -> Inspection:
    """Return the spectra of a checkpoint's query-key products, without writing anything.

    Args:
        model: as for `steer`; a checkpoint without vision is accepted, too.
        layers, heads: as for `steer`.
        k, energy: the modes that count as dominant.
        channel: as for `steer`.
        offset: query position − key position; three numbers for time, height and width.
        device, revision: as for `steer`.
        protect, spare: as for `steer`: the spectra are those without these directions and heads.
        product: as for `steer`.
        architectures: as for `steer`.

    Raises:
        QkeditError: as for `plan`; or a weight holds NaN or infinity, or the positions are not supported.

    Example:
        >>> qkedit.inspect("demo", layers=3).layers[0].heads[0].head
        0
    """
    from qkedit.inspection.spectra import inspect as inspect_plan

    suppression = Suppression(k, energy, channel=channel)
    options = edit_options(
        layers, heads, suppression, device, allow_text_only=True, protect=protect, spare=spare, product=product
    )
    with using_architectures(architectures):
        planned = after_a_run(planned_edit(model, options, spare, revision), model, revision)
        return inspect_plan(planned, (offset, offset, offset) if isinstance(offset, int) else offset)


def suggest(
    model: str | Path,
    *,
    layers: Selection = "all",
    heads: Selection = "all",
    channel: Channel = "full",
    device: str = "auto",
    revision: str | None = None,
    protect: str = NONE,
    product: Product = "raw",
    architectures: Directories | None = None,
) -> Suggestion:
    """Propose layers and k for `steer` from the spectra alone: a heuristic, and a place to start.

    Args:
        model, layers, heads, channel, device, revision, protect, product, architectures: as for `inspect`.

    Returns:
        The layers and k with their reason; `layers` is empty where no layer stands out.

    Raises:
        QkeditError: as for `inspect`.

    Example:
        >>> found = qkedit.suggest("demo")
        >>> found.layers, found.k, found.command
    """
    from qkedit.inspection.spectra import inspect as inspect_plan
    from qkedit.inspection.suggestion import suggest as suggest_from

    suppression = Suppression(channel=channel)
    options = edit_options(layers, heads, suppression, device, allow_text_only=True, protect=protect, product=product)
    with using_architectures(architectures):
        planned = after_a_run(planned_edit(model, options, "none", revision), model, revision)
        return suggest_from(inspect_plan(planned), planned.options, str(model))


def compare_spectra(
    before: str | Path | None,
    after: str | Path,
    *,
    layers: Selection = "all",
    heads: Selection = "all",
    k: int = 4,
    energy: float | None = None,
    channel: Channel = "full",
    device: str = "auto",
    revision: str | None = None,
    architectures: Directories | None = None,
) -> Comparison:
    """Compare the spectra of two models of the same shape: singular values, and angles between dominant subspaces.

    Args:
        before: a directory, a hub id, an alias or `demo`; None for the model that `after` was made from, by its
            manifest.
        after: likewise.
        layers, heads, k, energy, channel, device, architectures: as for `inspect`.
        revision: of `before` on the hub; by default the recorded one if `before` is None.

    Raises:
        QkeditError: the models have different shapes, the base is not known, or as for `inspect`.

    Example:
        >>> qkedit.compare_spectra("demo", "./edited", layers=3).layers[0].heads[0].query_side_angles
    """
    from qkedit.checkpoint.checkpoint import open_checkpoint
    from qkedit.checkpoint.resolve import resolve
    from qkedit.inspection.comparison import base_of
    from qkedit.inspection.comparison import compare_spectra as compare_plans
    from qkedit.steering.plan import make_plan

    options = edit_options(layers, heads, Suppression(k, energy, channel=channel), device, allow_text_only=True)
    with using_architectures(architectures):
        planned = planned_edit(after, options, "none", None)
        base = (
            base_of(planned.checkpoint, revision=revision)
            if before is None
            else open_checkpoint(resolve(str(before), revision))
        )
        return compare_plans(make_plan(base, planned.options), planned)
