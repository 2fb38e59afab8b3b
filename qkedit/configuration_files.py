"""Find and read YAML records: those in `configs/`, which are part of the package, and others of the same form."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.errors import QkeditError
from qkedit.strict_text import MAX_YAML_DEPTH

if TYPE_CHECKING:
    import yaml

MAX_LENGTH = 100_000  # bytes of a foreign file; a record has some hundred


@cache
def configuration_directory() -> Path:
    """Return `qkedit/configs` in an installed wheel, or `configs` next to the package in a source checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def read_configuration(*parts: str) -> Any:
    """Parse one YAML file, by its path below `configs/`. Raises QkeditError if it is missing or not YAML."""
    path = configuration_directory().joinpath(*parts)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(error, str(path), "install qkedit again") from error
    return parse_configuration(content, str(path))


def parse_configuration(content: bytes, where: str, remedy: str = "correct the file or install qkedit again") -> Any:
    """Parse a YAML file of records; `remedy` is the remedy of the error.

    Raises:
        QkeditError: the content is not UTF-8 or not YAML, or has a key twice.
    """
    import yaml

    try:
        return yaml.load(content.decode("utf-8"), Loader=_record_loader())
    # PyYAML's constructors raise Python's own errors for a tag that does not fit its value.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise _unreadable(error, where, remedy) from error


def parse_foreign(content: bytes, where: str) -> Any:
    """Parse a foreign YAML file of records as `parse_configuration` does.

    Raises:
        QkeditError: the content is longer than `MAX_LENGTH`, too deeply nested, or invalid for `parse_configuration`.
    """
    if len(content) > MAX_LENGTH:
        raise QkeditError(
            f"is longer than {MAX_LENGTH} bytes", where=where, remedy="name a file of architecture records"
        )
    _check_depth(content, where)
    return parse_configuration(content, where, "correct the file")


def _check_depth(content: bytes, where: str) -> None:
    """Raise QkeditError for too deeply nested YAML, which would crash libyaml's reader."""
    import yaml

    depth = 0
    try:
        for event in yaml.parse(content.decode("utf-8"), Loader=_record_loader()):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                raise QkeditError("nests too deep", where=where, remedy="correct the record")
    except (yaml.YAMLError, ValueError) as error:
        raise _unreadable(error, where, "correct the file") from error


def configuration_files(directory: str) -> tuple[str, ...]:
    """Return the names of the YAML files in one directory of `configs/`, sorted."""
    return tuple(sorted(path.name for path in (configuration_directory() / directory).glob("*.yaml")))


def _unreadable(error: Exception, where: str, remedy: str) -> QkeditError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return QkeditError(f"cannot be read ({reason})", where=where, remedy=remedy)


@cache
def _record_loader() -> type[yaml.SafeLoader]:
    import yaml

    # libyaml, if PyYAML was built with it, takes a tenth of the time.
    fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class RecordLoader(fastest):
        """A safe loader for which a repeated key is an error; for PyYAML's own, the last one counts."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys or key.value == "<<":
                        problem = "merging is not supported" if key.value == "<<" else f"{key.value!r} occurs twice"
                        raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                    keys.add(key.value)
            made: dict[Any, Any] = super().construct_mapping(node, deep=deep)
            return made

    return RecordLoader
