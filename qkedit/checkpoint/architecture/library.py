"""Every record of a model family that is known, by its name, and which file it came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

from qkedit.checkpoint.architecture.schema import Decoder, Explanation, Family, ProjectionLayout, Refusal
from qkedit.checkpoint.architecture.sources import Source, shipped_source
from qkedit.checkpoint.records import closest, wrong

Named = TypeVar("Named", ProjectionLayout, Decoder, Family)


@dataclass(frozen=True)
class Origin:
    """The file that a record came from."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Architectures:
    """All records together; every name and every model type occurs once."""

    layouts: dict[str, ProjectionLayout] = field(default_factory=dict)
    decoders: dict[str, Decoder] = field(default_factory=dict)  # by name
    families: dict[str, Family] = field(default_factory=dict)  # by name
    refusals: tuple[Refusal, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)  # by (kind, name)

    def origin(self, record: ProjectionLayout | Decoder | Family | Explanation) -> Origin | None:
        """Return the file that a record came from; None for one that no file holds."""
        return self.origins.get(_identity(record))

    def decoder_of(self, model_type: str) -> Decoder | None:
        """Return the decoder with this model type; None without one."""
        return next((decoder for decoder in self.decoders.values() if model_type in decoder.model_types), None)


@cache
def architectures() -> Architectures:
    """Return all records. Raises QkeditError naming the file and key of a wrong one."""
    known = _added(Architectures(), shipped_source())
    _check_references(known)
    return known


def _added(known: Architectures, source: Source) -> Architectures:
    """Return the records with those of one more source."""
    origins = dict(known.origins)
    tables: dict[str, dict[str, Any]] = {
        "layouts": dict(known.layouts),
        "decoders": dict(known.decoders),
        "families": dict(known.families),
    }
    for item in source.records:
        kind, name = _identity(item.record)
        _add(tables[kind], item.record, item.file, origins)
        origins[kind, name] = Origin(item.file, item.sha256)
    for explained in source.explanations:
        origins[_identity(explained.record)] = Origin(explained.file, explained.sha256)
    return replace(
        known,
        **tables,
        refusals=(*known.refusals, *source.refusals),
        explanations=(*known.explanations, *(item.record for item in source.explanations)),
        origins=origins,
    )


def _add(table: dict[str, Named], record: Named, file: str, origins: dict[tuple[str, str], Origin]) -> None:
    kind, _ = _identity(record)
    for other in table.values():
        if shared := _names(record) & _names(other):
            theirs = origins[kind, other.name]
            raise wrong(f"{min(shared)!a} is also in {theirs.file}", file)
    table[record.name] = record


def _names(record: ProjectionLayout | Decoder | Family) -> set[str]:
    """Return what must be one record's alone: its name, and its model types (with those of the vision config)."""
    if isinstance(record, ProjectionLayout):
        return {record.name}
    vision = f" with the vision of {record.vision}" if isinstance(record, Family) and record.vision else ""
    return {record.name, *(f"model type {model_type}{vision}" for model_type in record.model_types)}


def _identity(record: Any) -> tuple[str, str]:
    if isinstance(record, Explanation):
        return "explained", record.tensor.pattern
    kinds = {ProjectionLayout: "layouts", Decoder: "decoders", Family: "families"}
    return kinds[type(record)], record.name


def _check_references(known: Architectures) -> None:
    """Raise QkeditError for a decoder of a layout, or a family of a decoder, that is not there."""
    for decoder in known.decoders.values():
        for name in decoder.layouts:
            if name not in known.layouts:
                file = known.origins["decoders", decoder.name].file
                raise wrong(f"there is no layout {name!a}", f"{file}, layouts", closest(name, known.layouts))
    model_types = {model_type for decoder in known.decoders.values() for model_type in decoder.model_types}
    for family in known.families.values():
        if family.decoder not in model_types:
            file = known.origins["families", family.name].file
            raise wrong(
                f"no decoder has the model type {family.decoder!a}",
                f"{file}, decoder",
                closest(family.decoder, model_types),
            )
