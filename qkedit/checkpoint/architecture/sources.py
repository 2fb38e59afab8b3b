"""Read the records in `configs/`, each with the file that it stood in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from qkedit.checkpoint.architecture.schema import Decoder, Explanation, Family, ProjectionLayout, Refusal
from qkedit.checkpoint.records import read_record, read_records
from qkedit.configuration_files import configuration_directory, parse_configuration
from qkedit.errors import QkeditError

DIRECTORIES: dict[str, type[ProjectionLayout] | type[Decoder] | type[Family]] = {
    "layouts": ProjectionLayout,
    "decoders": Decoder,
    "families": Family,
}
EXPLAINED, REFUSALS = "explained.yaml", "refusals.yaml"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Read(Generic[Item]):
    """One record and the file it stood in."""

    record: Item
    file: str
    sha256: str  # of the file


@dataclass(frozen=True)
class Source:
    """The records of one directory."""

    records: tuple[Read[ProjectionLayout | Decoder | Family], ...]
    explanations: tuple[Read[Explanation], ...]
    refusals: tuple[Refusal, ...]


def shipped_source() -> Source:
    """Return the records that come with the package."""
    return _read(configuration_directory(), "configs")


def _read(directory: Path, shown: str) -> Source:
    records: list[Read[ProjectionLayout | Decoder | Family]] = []
    for name, kind in DIRECTORIES.items():
        for path in sorted((directory / name).glob("*.yaml")):
            value, file, sha256 = _parsed(path, f"{shown}/{name}/{path.name}")
            records.append(Read(read_record(kind, value, file), file, sha256))
    explanations: tuple[Read[Explanation], ...] = ()
    if (path := directory / EXPLAINED).is_file():
        value, file, sha256 = _parsed(path, f"{shown}/{EXPLAINED}")
        explanations = tuple(Read(record, file, sha256) for record in read_records(Explanation, value, file))
    refusals: tuple[Refusal, ...] = ()
    if (path := directory / REFUSALS).is_file():
        value, file, _ = _parsed(path, f"{shown}/{REFUSALS}")
        refusals = read_records(Refusal, value, file)
    return Source(tuple(records), explanations, refusals)


def _parsed(path: Path, shown: str) -> tuple[object, str, str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise QkeditError(f"cannot be read ({error.strerror})", where=shown, remedy="check the file") from error
    return parse_configuration(content, shown), shown, hashlib.sha256(content).hexdigest()
