"""The base model on the hub: the files to copy from it, its licence, and the files that must equal its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qkedit.checkpoint.card_fields import LONGEST_BLOCK, card_fields
from qkedit.checkpoint.contents import MANIFEST_FILE, PLUGINS_FILE, is_hidden_file
from qkedit.checkpoint.hub.files import HubFiles
from qkedit.checkpoint.hub.repository import Content, Repository, find_repository
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.checkpoint.presets import HUB_ID
from qkedit.demo import DEMOS, demo_checkpoint
from qkedit.errors import CheckpointError
from qkedit.publishing.licences import Licence, is_licence_text
from qkedit.steering.outputs.names import BASE_CARD_FILE, CARD_FILE

# A licence text is a few kilobytes long; a file larger than this is something else.
_LONGEST_TEXT = 1_000_000


@dataclass(frozen=True)
class HubBase:
    """The nearest model on the hub from which an output was made, and the shards that were edited since."""

    repository: Repository
    files: HubFiles
    edited_shards: frozenset[str]

    @classmethod
    def find(cls, manifest: Manifest, endpoint: str | None) -> HubBase | None:
        """Find the base of an output; return None if no manifest names a model on the hub.

        Raises:
            CheckpointError: the hub does not (or no longer) have the recorded model or revision, or is unreachable.
        """
        edited: set[str] = set()
        for edit in (manifest.as_dict(), *reversed(manifest.history)):
            edited |= set(_shards(edit))
            base = edit.get("base")
            name, commit = (base.get("model"), base.get("revision")) if isinstance(base, dict) else (None, None)
            if not (isinstance(name, str) and isinstance(commit, str) and HUB_ID.fullmatch(name)):
                continue
            repository = find_repository(name, commit, endpoint=endpoint)
            if repository is None:
                raise CheckpointError(
                    "the hub does not have this model, or no longer, or the model is private",
                    where=f"the base {name}",
                    remedy="run `hf auth login` with a token that can read it",
                )
            sizes = {file.name: file.size for file in repository.files.values()}
            return cls(repository, HubFiles(name, commit, sizes, commit, endpoint), frozenset(edited))
        return None

    @property
    def name(self) -> str:
        """The hub id of the base."""
        return self.repository.name

    def licence(self) -> Licence:
        """Return the licence in the base's model card."""
        return Licence.of(card_fields(self._text(CARD_FILE, LONGEST_BLOCK)))

    def licence_texts(self) -> list[str]:
        """Return the names of the files that must accompany every copy: the licence and its notices."""
        return [name for name, size in self.files.sizes().items() if is_licence_text(name) and size <= _LONGEST_TEXT]

    def content(self, name: str) -> Content:
        """Read one of the base's files into memory."""
        return Content(self.files.read(name, 0, self.files.sizes()[name]))

    def differing(self, files: dict[str, Content]) -> Iterator[str]:
        """Yield the names of files that should equal the base's and do not. Every file is read.

        Args:
            files: the files of a full directory, by name, except those that the user included explicitly.
        """
        for name, content in files.items():
            remote = self.repository.files.get(name)
            written = {CARD_FILE, BASE_CARD_FILE, MANIFEST_FILE, PLUGINS_FILE} | self.edited_shards
            if remote is not None and name not in written and not is_hidden_file(name) and not content.equals(remote):
                yield name

    def _text(self, name: str, limit: int) -> str:
        sizes = self.files.sizes()
        return self.files.read(name, 0, min(sizes[name], limit)).decode(errors="replace") if name in sizes else ""


def licence_without_hub(manifest: Manifest, cards: dict[str, str]) -> Licence:
    """Return the licence of a base that is not on the hub, from the model cards in the output.

    Args:
        manifest: the manifest of the edit.
        cards: the output's cards, by file name.
    """
    if manifest.base.model in DEMOS and not manifest.history:
        cards = {BASE_CARD_FILE: (demo_checkpoint(manifest.base.model) / CARD_FILE).read_text("utf-8")}
    found = (Licence.of(card_fields(cards.get(name, ""))) for name in (BASE_CARD_FILE, CARD_FILE))
    return next((licence for licence in found if licence.identifiers), Licence())


def _shards(edit: dict[str, Any]) -> Iterator[str]:
    tensors = edit.get("tensors")
    for tensor in tensors if isinstance(tensors, list) else ():
        if isinstance(tensor, dict) and isinstance(tensor.get("shard"), str):
            yield tensor["shard"]
