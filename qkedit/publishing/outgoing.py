"""Choose the files of an output directory that a push sends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from qkedit.checkpoint.contents import PLUGINS_FILE, is_hidden, is_hidden_file
from qkedit.checkpoint.hub.repository import Content
from qkedit.checkpoint.io.ownership import files_by_owner, shown, written_by_qkedit
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.manifest_file import Manifest, Ownership
from qkedit.errors import CheckpointError, UsageError
from qkedit.steering.outputs.names import CARD_FILE


@dataclass(frozen=True)
class Outgoing:
    """The files of a directory by name, sorted."""

    files: dict[str, Content]
    included: frozenset[str]  # files that qkedit did not write and the user included
    left_here: tuple[str, ...]  # hidden files, which belong to some tool, and those that the user excluded


def outgoing_files(
    directory: Path, manifest: Manifest, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Outgoing:
    """Return the files of a directory to send: those that qkedit wrote, and those that the user includes.

    Args:
        directory: an output in any layout.
        manifest: the manifest of the output.
        include: patterns of further files to send, such as `*.md`.
        exclude: patterns of files that qkedit did not write and that are not sent.

    Raises:
        UsageError: there are other files, or a pattern matches none.
        CheckpointError: a file of the output is missing, or a link points outside the directory.
    """
    found = files_by_owner(directory)
    own = (*found.ours, *found.changed)
    _refuse_missing(directory, manifest, own)
    changed = sorted({*found.changed} - {CARD_FILE})  # a card that the user edited is sent as it is
    if changed:
        raise CheckpointError(
            f"files were changed since qkedit wrote them: {shown(changed)}",
            where=str(directory),
            remedy="write the output again",
        )
    for option, patterns in (("--include", include), ("--exclude", exclude)):
        for pattern in patterns:
            if not _matching(found.others, [pattern]):
                raise UsageError(
                    f"{pattern!a} matches none of the files that qkedit did not write",
                    where=option,
                    remedy="check the pattern; files that qkedit wrote are always sent",
                )
    left_out = _matching(found.others, exclude)
    included = _matching(found.others, include) - left_out
    hidden = {name for name in found.others if is_hidden(name) or is_hidden_file(name)}
    unknown = sorted(set(found.others) - left_out - included - hidden)
    if unknown:
        attached = (
            f" ({PLUGINS_FILE} would attach plug-ins wherever the model is run)" if PLUGINS_FILE in unknown else ""
        )
        raise UsageError(
            f"holds files that qkedit did not write: {shown(unknown)}{attached}",
            where=str(directory),
            remedy="send them with --include PATTERN, leave them here with --exclude PATTERN, or move them away",
        )
    files = LocalFiles(directory)
    return Outgoing(
        {name: _content(files, name, included) for name in sorted({*own, *included})},
        frozenset(included),
        tuple(sorted(left_out | (hidden - included))),
    )


def _refuse_missing(directory: Path, manifest: Manifest, own: Sequence[str]) -> None:
    ownership = Ownership(tool=manifest.tool, files=manifest.files, generated=manifest.generated)
    missing = sorted(written_by_qkedit(ownership, own) - set(own))
    if missing:
        raise CheckpointError(
            f"files of the output are missing: {shown(missing)}",
            where=str(directory),
            remedy="write the output again, or put them back",
        )


def _content(files: LocalFiles, name: str, included: Iterable[str]) -> Content:
    where = str(files.directory / name)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "the name holds bytes that are not UTF-8, which the hub does not accept", where=where, remedy="rename it"
        ) from None
    path = files.local_path(name)
    # Shards may be links to those of the base (`--link symlink`); every other file of an output is a copy.
    if files.leads_out(name) is not None and not name.endswith(".safetensors") and name not in included:
        raise CheckpointError(
            f"is a link to {path}", where=where, remedy="replace it with the file itself, or write the output again"
        )
    if not path.is_file():
        raise CheckpointError("is not a file", where=where, remedy="leave it here with --exclude")
    return Content(path)


def _matching(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
