"""Plan a push file by file, without sending anything.

Files are compared by content. The hub itself copies a shard from the base if the SHA-256 is equal, and files that the
repository already holds are not sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from qkedit.checkpoint.contents import CONFIG_FILE, MANIFEST_FILE, is_hidden, is_hidden_file, reason_left_out
from qkedit.checkpoint.hub.files import HubFiles
from qkedit.checkpoint.hub.repository import Content, Repository, find_repository
from qkedit.checkpoint.io.ownership import shown, written_by_qkedit
from qkedit.checkpoint.manifest_file import Manifest, Ownership, part_of
from qkedit.errors import UsageError
from qkedit.publishing.bases import HubBase, licence_without_hub
from qkedit.publishing.cards import delta_card, outgoing_card
from qkedit.publishing.licences import Licence, is_licence_text, refuse_licence, stated
from qkedit.publishing.outgoing import Outgoing, outgoing_files
from qkedit.publishing.plan import PlannedFile, PushOptions, PushPlan
from qkedit.steering.manifest import read_manifest
from qkedit.steering.outputs.names import BASE_CARD_FILE, CARD_FILE
from qkedit.steering.verify import compare_with_base, mismatched


def plan_push(
    directory: str | Path,
    options: PushOptions,
    *,
    endpoint: str | None = None,
    on_bytes: Callable[[int], None] = lambda length: None,
) -> PushPlan:
    """Check an output, its licence and the repository, and return the plan of the push.

    Args:
        directory: an output of `steer` or `apply`.
        options: the options of the push.
        endpoint: the URL of a hub, in place of HF_ENDPOINT.
        on_bytes: called with the number of bytes of the output that were checked against its manifest.

    Raises:
        UsageError: something must not be published, or not to this repository.
        VerificationError: the directory does not match its manifest, or its other files are not those of the base.
        CheckpointError: the directory is not an output, or the hub is unreachable.
    """
    path = Path(directory)
    manifest = read_manifest(path)
    outgoing = outgoing_files(path, manifest, options.include, options.exclude)
    repository = find_repository(options.repository, options.branch, or_default=True, endpoint=endpoint)
    _refuse_public(repository, options)
    base = HubBase.find(manifest, endpoint)
    licence, warnings = _licence(manifest, outgoing, base, options.license)
    contents = dict(outgoing.files)
    if base is not None:  # an output of edited tensors only does not hold them
        contents |= {name: base.content(name) for name in base.licence_texts() if name not in contents}
    contents = _with_card(manifest, contents, base, licence, options)
    _verify(path, manifest, outgoing, base if CONFIG_FILE in outgoing.files else None, on_bytes)
    planned = [_planned(name, contents[name], repository, base if options.copy else None) for name in sorted(contents)]
    earlier = _files_of_earlier_push(repository, endpoint)
    if repository is not None:
        planned += [PlannedFile(name, "delete", repository.files[name].size, None) for name in earlier - set(contents)]
        left_there = sorted(set(repository.files) - {file.name for file in planned})
        weights = [name for name in left_there if name.endswith(".safetensors") or reason_left_out(name)]
        _refuse_foreign(repository, planned, weights, options)
        if weights:
            warnings += (f"{repository.name} also holds other weights, which loaders may read: {shown(weights)}",)
    else:
        left_there = []
    return PushPlan(
        options=options,
        files=tuple(planned),
        repository=repository,
        base=base,
        licence=licence,
        message=options.message or f"Push {manifest.base.model}, edited with qkedit",
        left_here=outgoing.left_here,
        left_there=tuple(left_there),
        warnings=warnings,
    )


def _refuse_public(repository: Repository | None, options: PushOptions) -> None:
    if repository is not None and options.private and not repository.private:
        raise UsageError(
            "exists and is public",
            where=repository.name,
            remedy="first make it private in its settings, choose another name, or leave out --private",
        )


def _licence(
    manifest: Manifest,
    outgoing: Outgoing,
    base: HubBase | None,
    identifier: str | None,
) -> tuple[Licence, tuple[str, ...]]:
    """Return the licence to publish under, and warnings about it."""
    if base is not None:
        name, of_base, texts = base.name, base.licence(), base.licence_texts()
    else:
        cards = {name: _text(outgoing.files[name]) for name in (BASE_CARD_FILE, CARD_FILE) if name in outgoing.files}
        name, of_base = manifest.base.model, licence_without_hub(manifest, cards)
        texts = [file for file in outgoing.files if is_licence_text(file)]
    if identifier is None:
        refuse_licence(name, of_base, texts)
        return of_base, ()
    licence = stated(identifier, of_base)
    if licence == of_base or not of_base.identifiers:
        return licence, ()
    return licence, (f"the base's licence is {of_base}: make sure that it lets you publish under {licence}",)


def _with_card(
    manifest: Manifest,
    contents: dict[str, Content],
    base: HubBase | None,
    licence: Licence,
    options: PushOptions,
) -> dict[str, Content]:
    """Return the contents with the card that names the licence to publish under."""
    if CARD_FILE in contents:
        own = _text(contents[CARD_FILE])
        card = outgoing_card(own, licence, is_stated=options.license is not None)
        if card == own:
            return contents
    else:
        recorded = manifest.base.model if base is not None and manifest.base.revision else None
        card = delta_card(manifest, options.repository, recorded, licence)
    return contents | {CARD_FILE: Content(card.encode(errors="backslashreplace"))}


def _verify(
    directory: Path,
    manifest: Manifest,
    outgoing: Outgoing,
    base: HubBase | None,
    on_bytes: Callable[[int], None],
) -> None:
    """Refuse a directory that does not match its manifest, or whose other files are not those of the base."""
    result = compare_with_base(directory, manifest, None, on_bytes)
    if base is not None:
        own = {name: content for name, content in outgoing.files.items() if name not in outgoing.included}
        differing = tuple(f"{name}: differs from the file of {base.name}" for name in base.differing(own))
        result = replace(result, mismatches=(*result.mismatches, *differing))
    if result.mismatches:
        raise mismatched(result, directory, "write the output again; nothing was sent")


def _planned(name: str, content: Content, repository: Repository | None, base: HubBase | None) -> PlannedFile:
    existing = repository.files.get(name) if repository is not None else None
    if existing is not None and content.equals(existing):
        return PlannedFile(name, "unchanged", content.size, content)
    source = base.repository.files.get(name) if base is not None else None
    # The hub copies only large files, by a hash that very old files do not have.
    if source is not None and source.sha256 and source.xet_hash and content.equals(source):
        return PlannedFile(name, "copy", content.size, content, copied_from=source)
    return PlannedFile(name, "upload", content.size, content)


def _files_of_earlier_push(repository: Repository | None, endpoint: str | None) -> set[str]:
    """Return the files of a repository that an earlier push sent."""
    if repository is None or MANIFEST_FILE not in repository.files:
        return set()
    sizes = {file.name: file.size for file in repository.files.values()}
    files = HubFiles(repository.name, repository.commit, sizes, repository.commit, endpoint)
    manifest = part_of(files.read(MANIFEST_FILE, 0, sizes[MANIFEST_FILE]), Ownership)
    if manifest is None:
        return {MANIFEST_FILE}
    return {
        name
        for name in written_by_qkedit(manifest, sizes) & set(sizes)
        if not (is_hidden(name) or is_hidden_file(name))
    }


def _refuse_foreign(
    repository: Repository, planned: Iterable[PlannedFile], weights: Iterable[str], options: PushOptions
) -> None:
    """Refuse to replace a model that qkedit did not push, or to mix an output with other weights."""
    if options.force or MANIFEST_FILE in repository.files:
        return
    replaced = [
        file.name
        for file in planned
        if file.action != "unchanged"
        and file.name in repository.files
        and file.name != CARD_FILE
        and not is_hidden_file(file.name)
    ]
    foreign = sorted({*replaced, *weights})
    if foreign:
        raise UsageError(
            f"holds files that qkedit did not push: {shown(foreign)}",
            where=repository.name,
            remedy="choose another repository or --branch, or push anyway with --force (the history keeps them)",
        )


def _text(content: Content) -> str:
    source = content.source
    return (source if isinstance(source, bytes) else source.read_bytes()).decode(errors="replace")
