"""Read one directory of records: qkedit's own, an installed package's, or a user's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Generic, TypeVar

from qkedit.checkpoint.architecture.schema import Decoder, Explanation, Family, ProjectionLayout, Refusal
from qkedit.checkpoint.record_reader import closest, read_record, read_records, wrong
from qkedit.configuration_files import MAX_LENGTH, configuration_directory, parse_configuration, parse_foreign
from qkedit.errors import QkeditError, first_sentence
from qkedit.other_packages import all_points_of_other_packages, package_of

# The entry-point group in which other packages name a package of records: "my_package.records".
ENTRY_POINTS = "qkedit.architectures"
DIRECTORIES: dict[str, type[ProjectionLayout] | type[Decoder] | type[Family]] = {
    "layouts": ProjectionLayout,
    "decoders": Decoder,
    "families": Family,
}
EXPLAINED, REFUSALS = "explained.yaml", "refusals.yaml"
SHIPPED, OF_USER = "qkedit", "user"
Item = TypeVar("Item")


@dataclass(frozen=True)
class File:
    """A file of records.

    Attributes:
        source: `qkedit`, `package NAME` or `user`.
        directory: the directory, as messages show it.
        name: the name within the directory, such as `decoders/llama.yaml`.
        sha256: the SHA-256 of its bytes.
    """

    source: str
    directory: str
    name: str
    sha256: str

    def __str__(self) -> str:
        """Return the file as messages show it."""
        return f"{self.directory}/{self.name}"

    @property
    def is_shipped(self) -> bool:
        """True if it comes with qkedit."""
        return self.source == SHIPPED

    @property
    def identity(self) -> str:
        """Return the file for a manifest: without its directory, so that the same record gives the same bytes."""
        source = "" if self.source == OF_USER else f" of the {self.source}"
        return f"{self.name}{source} (SHA-256 {self.sha256[:16]}…)"


@dataclass(frozen=True)
class Read(Generic[Item]):
    """One record, and the file it was read from."""

    record: Item
    file: File


@dataclass(frozen=True)
class Source:
    """The records of one directory."""

    records: tuple[Read[ProjectionLayout | Decoder | Family], ...]
    explanations: tuple[Read[Explanation], ...]
    refusals: tuple[Refusal, ...]


def shipped_source() -> Source:
    """Return the records that come with the package."""
    return _read(configuration_directory(), "configs", SHIPPED)


def read_source(directory: Path, source: str = OF_USER) -> Source:
    """Return the records of a directory outside qkedit.

    Raises:
        QkeditError: the directory does not exist, cannot be read, or has no records or other files, or a record is
            invalid.
    """
    known = (*DIRECTORIES, EXPLAINED, REFUSALS)
    for path in _listed(directory):
        if path.name not in known and (path.is_dir() or path.suffix in (".yaml", ".yml")):
            raise wrong("is not a folder or file of records", _shown(path), closest(path.name, known))
    found = _read(directory, _shown(directory), source)
    if not (found.records or found.explanations or found.refusals):
        raise QkeditError(
            "holds no architecture records",
            where=_shown(directory),
            remedy=f"put YAML files into its folders {', '.join(DIRECTORIES)}, as docs/adding-a-model.md shows",
        )
    return found


def installed_sources() -> tuple[Source, ...]:
    """Return the records of installed packages, in the order of their entry points' names. Raises QkeditError."""
    points = all_points_of_other_packages(ENTRY_POINTS)
    return tuple(read_source(_directory_of(point), f"package {package_of(point)}") for point in points)


def _directory_of(point: EntryPoint) -> Path:
    """Return the directory of the package that an entry point names, importing only its parents."""
    from importlib.util import find_spec

    try:
        spec = find_spec(point.value)
    except Exception as error:  # importing the parents may raise anything
        raise _not_found(point, first_sentence(error)) from error
    locations = [] if spec is None else list(spec.submodule_search_locations or ())
    if not locations:
        raise _not_found(point, f"there is no package {point.value}")
    return Path(locations[0])


def _not_found(point: EntryPoint, reason: str) -> QkeditError:
    return QkeditError(
        f"the architecture records {point.name} of the package {package_of(point)} cannot be found ({reason})",
        where=f"entry point {ENTRY_POINTS}",
        remedy="repair or uninstall that package",
    )


def _read(directory: Path, shown: str, source: str) -> Source:
    records: list[Read[ProjectionLayout | Decoder | Family]] = []
    for name, kind in DIRECTORIES.items():
        for path in _record_files(directory / name):
            value, file = _parsed(path, File(source, shown, f"{name}/{path.name}", ""))
            records.append(Read(read_record(kind, value, str(file)), file))
    explanations: tuple[Read[Explanation], ...] = ()
    if (path := directory / EXPLAINED).exists():
        value, file = _parsed(path, File(source, shown, EXPLAINED, ""))
        explanations = tuple(Read(record, file) for record in read_records(Explanation, value, str(file)))
    refusals: tuple[Refusal, ...] = ()
    if (path := directory / REFUSALS).exists():
        value, file = _parsed(path, File(source, shown, REFUSALS, ""))
        refusals = read_records(Refusal, value, str(file))
    return Source(tuple(records), explanations, refusals)


def _record_files(directory: Path) -> Iterator[Path]:
    if not directory.exists():
        return
    for path in _listed(directory):
        if path.suffix == ".yml":
            raise wrong("does not end in .yaml, as records do", _shown(path), "rename the file")
        if path.suffix == ".yaml":
            yield path


def _listed(directory: Path) -> list[Path]:
    """Return the entries of a directory by name, except hidden files and Python's own (`__init__.py` …)."""
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith((".", "__")))
    except FileNotFoundError:
        raise QkeditError(
            "there is no such directory of architecture records", where=_shown(directory), remedy="check the path"
        ) from None
    except OSError as error:
        raise _unreadable(directory, error.strerror) from error


def _parsed(path: Path, file: File) -> tuple[object, File]:
    try:
        if not path.is_file():  # reading a pipe could block forever
            raise _unreadable(path, "it is not a file")
        with path.open("rb") as opened:
            content = opened.read(MAX_LENGTH + 1)
    except OSError as error:
        raise _unreadable(path, error.strerror) from error
    read = File(file.source, file.directory, file.name, hashlib.sha256(content).hexdigest())
    parse = parse_configuration if file.is_shipped else parse_foreign
    return parse(content, str(file)), read


def _unreadable(path: Path, reason: str | None) -> QkeditError:
    return QkeditError(f"cannot be read ({reason})", where=_shown(path), remedy="check the path and its permissions")


def _shown(path: Path) -> str:
    """Return a path for a message; the name may hold bytes that are not UTF-8."""
    return str(path).encode(errors="backslashreplace").decode()
