"""All known records of model families, by name, with the file of each.

Without a change to the package, these records are added to those in `configs/`:

* those of installed packages that name a package of records by an entry point of the group `qkedit.architectures`;
* those in the directories of `using_architectures` (`--architectures` on the command line), or else in the
  directories of the environment variable QKEDIT_ARCHITECTURES, separated as in PATH.

They are added in this order. A record with the name or model type of an earlier one needs `replaces: that name`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from qkedit.checkpoint.architecture.schema import Decoder, Explanation, Family, ProjectionLayout, Refusal
from qkedit.checkpoint.architecture.sources import (
    File,
    Source,
    installed_sources,
    read_source,
    shipped_source,
)
from qkedit.checkpoint.record_reader import closest, wrong

VARIABLE = "QKEDIT_ARCHITECTURES"
Directories = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Named = TypeVar("Named", ProjectionLayout, Decoder, Family)
# None: the directories of the environment variable.
_chosen: ContextVar[tuple[Path, ...] | None] = ContextVar("architectures", default=None)


@dataclass(frozen=True)
class Architectures:
    """All records; every name and every model type occurs once."""

    layouts: dict[str, ProjectionLayout] = field(default_factory=dict)
    decoders: dict[str, Decoder] = field(default_factory=dict)  # by name
    families: dict[str, Family] = field(default_factory=dict)  # by name
    refusals: tuple[Refusal, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    origins: dict[tuple[str, str], File] = field(default_factory=dict)  # by (kind, name)

    def origin(self, record: ProjectionLayout | Decoder | Family | Explanation) -> File | None:
        """Return the file of a record; None for a record that is not from a file."""
        return self.origins.get(_identity(record))

    def decoder_of(self, model_type: str) -> Decoder | None:
        """Return the decoder with this model type, or None."""
        return next((decoder for decoder in self.decoders.values() if model_type in decoder.model_types), None)


@contextmanager
def using_architectures(directories: Directories | None) -> Iterator[None]:
    """Use the records of these directories within the block, in place of those of QKEDIT_ARCHITECTURES.

    Args:
        directories: one or several, each in the form of `configs/` (docs/adding-a-model.md); None changes nothing.

    Raises:
        QkeditError: a directory cannot be read or has no records, or a record is invalid or clashes with another.
    """
    if directories is None:
        yield
        return
    several = [directories] if isinstance(directories, str | os.PathLike) else directories
    token = _chosen.set(_distinct(several))
    try:
        _known.cache_clear()  # a record may have been corrected in the meantime
        architectures()
        yield
    finally:
        _chosen.reset(token)


def chosen_directories() -> tuple[Path, ...] | None:
    """Return the active directories of `using_architectures`, to pass to another process, or None."""
    return _chosen.get()


def architectures() -> Architectures:
    """Return all records. Raises QkeditError, naming file and key, if one is invalid."""
    chosen = _chosen.get()
    if chosen is None:
        chosen = _distinct(part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part)
    return _known(chosen)


def _distinct(directories: Iterable[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """Return the directories without repetitions, in the order of their first occurrence."""
    by_place = {os.path.realpath(path): path for path in reversed([Path(one).expanduser() for one in directories])}
    return tuple(reversed(by_place.values()))


@cache
def _known(directories: tuple[Path, ...]) -> Architectures:
    known = _shipped()
    further = (*installed_sources(), *(read_source(directory) for directory in directories))
    if not further:
        return known
    for source in further:
        known = _added(known, source)
    _check_references(known)
    return known


@cache
def _shipped() -> Architectures:
    known = _added(Architectures(), shipped_source())
    _check_references(known)
    return known


def _added(known: Architectures, source: Source) -> Architectures:
    """Return the known records together with those of one more source."""
    origins = dict(known.origins)
    tables: dict[str, dict[str, Any]] = {
        "layouts": dict(known.layouts),
        "decoders": dict(known.decoders),
        "families": dict(known.families),
    }
    taken = {
        kind: {name: one.name for one in table.values() for name in _names(one)} for kind, table in tables.items()
    }
    for item in source.records:
        kind, name = _identity(item.record)
        _add(tables[kind], taken[kind], item.record, item.file, origins)
        origins[kind, name] = item.file
    for explained in source.explanations:
        origins.setdefault(_identity(explained.record), explained.file)
    return replace(
        known,
        **tables,
        refusals=(*known.refusals, *source.refusals),
        explanations=(*known.explanations, *(item.record for item in source.explanations)),
        origins=origins,
    )


def _add(
    table: dict[str, Named], taken: dict[str, str], record: Named, file: File, origins: dict[tuple[str, str], File]
) -> None:
    """Add a record to those of its kind; `taken` holds the identifiers of all of them, each with its record's name."""
    kind, _ = _identity(record)
    if record.replaces is not None:
        if record.replaces not in table:
            what = f"there is no earlier record {record.replaces!a}"
            raise wrong(what, f"{file}, replaces", closest(record.replaces, table))
        del origins[kind, record.replaces]
        for name in _names(table.pop(record.replaces)):
            del taken[name]
    names = _names(record)
    if shared := names & taken.keys():
        other = taken[min(shared)]
        theirs = origins[kind, other]
        remedy = f"choose another name, or write `replaces: {other}` to use this record instead"
        raise wrong(
            f"{min(shared)} is also in {theirs}",
            str(file),
            "correct the record" if file.source == theirs.source else remedy,
        )
    table[record.name] = record
    taken.update(dict.fromkeys(names, record.name))


def _names(record: ProjectionLayout | Decoder | Family) -> set[str]:
    """Return the identifiers that must be unique: the record's name and model types (with that of the vision)."""
    if isinstance(record, ProjectionLayout):
        return {f"the name {record.name!a}"}
    vision = f" with the vision of {record.vision!a}" if isinstance(record, Family) and record.vision else ""
    own = (f"the model type {model_type!a}{vision}" for model_type in record.model_types)
    return {f"the name {record.name!a}", *own}


def _identity(record: Any) -> tuple[str, str]:
    if isinstance(record, Explanation):
        return "explained", record.tensor.pattern
    kinds = {ProjectionLayout: "layouts", Decoder: "decoders", Family: "families"}
    return kinds[type(record)], record.name


def _check_references(known: Architectures) -> None:
    """Raise QkeditError if a decoder names an unknown layout, or a family an unknown decoder."""
    for decoder in known.decoders.values():
        for name in decoder.layouts:
            if name not in known.layouts:
                file = known.origins["decoders", decoder.name]
                raise wrong(f"there is no layout {name!a}", f"{file}, layouts", closest(name, known.layouts))
    model_types = {model_type for decoder in known.decoders.values() for model_type in decoder.model_types}
    for family in known.families.values():
        if family.decoder not in model_types:
            file = known.origins["families", family.name]
            raise wrong(
                f"no decoder has the model type {family.decoder!a}",
                f"{file}, decoder",
                closest(family.decoder, model_types),
            )
