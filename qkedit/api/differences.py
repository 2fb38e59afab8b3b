"""Compare checkpoints and edits from Python, and make an edit of a difference: what `diff` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.checkpoint.architecture.library import Directories, using_architectures
from qkedit.steering.steer_options import OutputOptions

if TYPE_CHECKING:
    from qkedit.steering.differences.difference import ModelDifference
    from qkedit.steering.run import SteerReport


def diff(
    first: str | Path,
    second: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    architectures: Directories | None = None,
) -> ModelDifference:
    """Return in what two checkpoints or two edits differ: tensors, and the query-key product of each head.

    The result is a sequence of the tensors that differ, by name; its `layers` hold, per head, the norm and the rank of
    the difference of the products, and with a base the principal angles between the subspaces that both change.

    Args:
        first: A: a directory, a hub id, an alias or `demo`; or an edit, a delta or an adapter.
        second: B, likewise.
        base: the model that both were made from. Of an edit it is by default the other side if that is not edited,
            else the recorded one; of two checkpoints there is none by default, and A takes its place.
        revision: of a base on the hub.
        architectures: directories of records that are known in addition to qkedit's own (docs/adding-a-model.md).

    Raises:
        QkeditError: one is not sound, or the base of an edit is not known or not the one it was made from.

    Example:
        >>> found = qkedit.diff("./delta-a", "./delta-b", base="demo")
        >>> [head.relative for layer in found.layers for head in layer.heads]
    """
    from qkedit.steering.differences.difference import difference_between

    named = None if base is None else str(base)
    with using_architectures(architectures):
        return difference_between(str(first), str(second), base=named, revision=revision)


def extract(
    base: str | Path,
    edited: str | Path,
    *,
    out: str | Path,
    only_queries: bool = False,
    overwrite: bool = False,
    fsync: bool = True,
    architectures: Directories | None = None,
) -> SteerReport:
    """Write the difference of two checkpoints as a delta of the first one, also where somebody else edited the second.

    What `qkedit diff BASE EDITED --extract OUT` does.

    Args:
        base: the model before: a directory, a hub id, an alias or `demo`.
        edited: the model after, likewise.
        out: the directory to write; it appears finished or not at all.
        only_queries: leave out differences other than in query projections.
        overwrite: replace an earlier output.
        fsync: wait until the disk holds the output.
        architectures: as for `diff`.

    Raises:
        QkeditError: other things than query projections differ and `only_queries` is not set, no queries do, or one
            of the two is not sound.
    """
    from qkedit.steering.extraction import extract as extract_edit

    output = OutputOptions(Path(out), "delta", overwrite=overwrite, fsync=fsync)
    with using_architectures(architectures):
        return extract_edit(str(base), str(edited), output=output, only_queries=only_queries)
