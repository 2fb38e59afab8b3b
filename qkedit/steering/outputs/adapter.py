"""The adapter: each tensor's change as the factors of a LoRA, which PEFT and vLLM add to the base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import ADAPTER_CONFIG, ADAPTER_FILE
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.io.tensor_file import GrowingTensorFile, growing
from qkedit.checkpoint.manifest_file import AdapterLayer, Manifest
from qkedit.checkpoint.query_modules import QueryModule
from qkedit.errors import QkeditError
from qkedit.steering.adapters.peft_files import adapter_config, factor_names
from qkedit.steering.card import make_adapter_card
from qkedit.steering.engine.edited_tensor import EditedTensor, EditedTensors
from qkedit.steering.engine.progress import Progress
from qkedit.steering.engine.reading import stands_at
from qkedit.steering.outputs.checks import not_as_computed
from qkedit.steering.outputs.names import CARD_FILE
from qkedit.steering.outputs.tensors import sha256_of_edit
from qkedit.steering.outputs.writer import WritesEditsAlone, Written
from qkedit.stopwatch import Stopwatch


@dataclass(frozen=True)
class AdapterWriter(WritesEditsAlone):
    """Write the factors in float32, with the rank of the edit or with `rank` at most.

    `bytes_to_write` counts the edited tensors, since the size of the factors is known only at the end.

    Attributes:
        checkpoint: the base.
        planned: the tensors that are edited, by name.
        modules: the paths of their modules in a loaded model.
        rank: the largest rank per layer; None for that of the edit.
        stopwatch, progress: called at every stage.
    """

    checkpoint: Checkpoint
    planned: Mapping[str, TensorEntry]
    modules: Mapping[str, QueryModule]
    rank: int | None
    stopwatch: Stopwatch
    progress: Progress

    def generated(self, manifest: Manifest) -> dict[str, bytes]:
        """Return the adapter's config and its card."""
        ranks = {layer.module: layer.rank for layer in manifest.adapter or ()}
        base = manifest.base
        return {
            ADAPTER_CONFIG: adapter_config(base.model, base.revision, ranks),
            CARD_FILE: make_adapter_card(self.checkpoint, manifest),
        }

    @contextmanager
    def writing(self, staging: Path, edits: EditedTensors) -> Iterator[Written]:
        """Write the factors, one tensor after another; see `Writer`."""
        records, after, layers = [], {}, []
        names = [name for module in self.modules.values() for name in factor_names(module.path)]
        with growing(staging, ADAPTER_FILE, names) as file:
            for edited in edits:
                with self.stopwatch("hashing"):
                    after[edited.name] = sha256_of_edit(edited)
                layers.append(self._write(staging, file, edited))
                records.append(edited.record)
                self.progress.layer_done()
                self.progress.bytes_done(edited.record.tensor.nbytes)
                del edited  # while the next one is edited
        missing = set(self.planned) - set(after)
        if missing:
            raise QkeditError(f"{len(missing)} planned tensors were not edited", where=min(missing))
        yield Written(tuple(records), after, tuple(layers))

    def _write(self, staging: Path, file: GrowingTensorFile, edited: EditedTensor) -> AdapterLayer:
        from qkedit.spectral.changes.low_rank import stacked  # torch has been imported by now
        from qkedit.steering.engine.layer_weights import stored_bytes

        module, factored = self.modules[edited.name], edited.factored
        if factored is None:
            raise TypeError(f"{edited.name} came without factors")
        with self.stopwatch("mathematics"):
            parts = [(module.starts[head], change) for head, change in factored.heads.items()]
            change = stacked(parts, module.rows)
            change, lost = change.truncated(change.rank if self.rank is None else self.rank)
        hashes = []
        for name, factor in zip(factor_names(module.path), (change.right, change.left), strict=True):
            content = stored_bytes(factor.float().contiguous())
            hashes.append(sha256(content).hexdigest())
            with self.stopwatch("writing"):
                entry = file.append(name, "F32", tuple(factor.shape), content)
            with self.stopwatch("checks"):
                if not stands_at(LocalFiles(staging), entry, content):
                    raise not_as_computed(entry)
        # Truncation removes a part inside the space of the factors; what they miss of the change is orthogonal to it.
        error = math.hypot(factored.error, lost * math.sqrt(1 - factored.error**2))
        return AdapterLayer(
            tensor=edited.name,
            module=module.path,
            rank=change.rank,
            error=error,
            sha256_a=hashes[0],
            sha256_b=hashes[1],
        )
