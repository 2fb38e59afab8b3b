"""The plan of `steer`: the bytes it will read, change and write, from headers and config alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from qkedit.checkpoint.architecture.heads import AttentionLayer, AttentionStack, HeadRows, InputGain
from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.manifest_file import RecordedOptions
from qkedit.checkpoint.record_reader import as_plain
from qkedit.checkpoint.resolve import resolve
from qkedit.errors import UnsupportedForm, UsageError
from qkedit.selection import select_heads, select_layers
from qkedit.spectral.sink import Sink
from qkedit.spectral.suppression import Suppression, mode_count
from qkedit.steering.steer_options import SteerOptions


@dataclass(frozen=True)
class PlannedLayer:
    """One attention layer and the query heads to edit in it.

    `folded` says that the modes are those of the product with the gain of the norm before it folded in.
    """

    layer: AttentionLayer
    heads: tuple[int, ...]
    folded: bool = False

    @property
    def key_heads(self) -> tuple[int, ...]:
        """The key heads that the chosen query heads read, ascending."""
        return tuple(sorted({head // self.layer.group_size for head in self.heads}))

    def by_key_head(self) -> tuple[PlannedLayer, ...]:
        """Return the layer once for each of its key heads, with the query heads that read it."""
        return tuple(
            replace(self, heads=tuple(head for head in self.heads if head // self.layer.group_size == key_head))
            for key_head in self.key_heads
        )

    @property
    def needed_tensors(self) -> tuple[TensorEntry, ...]:
        """The tensors that the edit of the layer reads: projections, key bias and norms; a fused tensor once."""
        layer = self.layer
        rows: list[HeadRows | InputGain | None] = [layer.query, layer.key, layer.key_bias]
        for norm in (layer.query_norm, layer.key_norm):
            rows += [norm.gain, norm.shift] if norm else []
        rows += [layer.input_gain] if self.folded else []
        return tuple({part.tensor.name: part.tensor for part in rows if part is not None}.values())


@dataclass(frozen=True)
class SteerPlan:
    """A checked request: every layer exists, and every form and size is known.

    `sink` is what a run of the model showed, for an edit that protects it, and `spared` the heads by layer that are
    left alone; None until the model has been run.
    """

    checkpoint: Checkpoint
    options: SteerOptions
    stack: AttentionStack
    layers: tuple[PlannedLayer, ...]
    sink: Sink | None = None
    spared: Mapping[int, tuple[int, ...]] | None = None

    def sparing(self, heads: Mapping[int, Sequence[int]]) -> SteerPlan:
        """Return the plan without some query heads, by layer.

        Raises:
            UsageError: no head is left to edit, or a number is not one of a layer's heads.
        """
        spared = {}
        for planned in self.layers:
            own = tuple(sorted(set(heads.get(planned.layer.index, ()))))
            if own and not 0 <= own[0] <= own[-1] < planned.layer.query_heads:
                raise UsageError(
                    f"layer {planned.layer.index} has {planned.layer.query_heads} query heads",
                    where=f"spare, head {own[-1] if own[0] >= 0 else own[0]}",
                    remedy="name some of them",
                )
            if own:
                spared[planned.layer.index] = own
        layers = tuple(
            replace(planned, heads=rest)
            for planned in self.layers
            if (rest := tuple(head for head in planned.heads if head not in spared.get(planned.layer.index, ())))
        )
        if not layers:
            raise UsageError(
                "every chosen head would be left alone", where="spare", remedy="choose more heads or layers"
            )
        return replace(self, layers=layers, spared=spared)

    @property
    def needs_run(self) -> bool:
        """True if heads or directions to leave alone are still to be found by a run of the model."""
        return bool(self.options.protect and self.sink is None) or (
            self.options.spare != "none" and self.spared is None
        )

    def recorded_options(self) -> RecordedOptions:
        """Return the options as the manifest records them, with what a run of the model showed."""
        options = self.options.recorded()
        if self.spared is not None:
            options = replace(options, spared={str(layer): heads for layer, heads in sorted(self.spared.items())})
        if options.protect is None or self.sink is None:
            return options
        return replace(options, protect=replace(options.protect, token=self.sink.token, sha256=self.sink.sha256))

    @property
    def edited_layers(self) -> tuple[AttentionLayer, ...]:
        """The layers to edit, without the choice of heads."""
        return tuple(planned.layer for planned in self.layers)

    @property
    def tensors(self) -> dict[str, TensorEntry]:
        """The tensors that will change, by on-disk name, in the order of the layers."""
        return {planned.layer.query.tensor.name: planned.layer.query.tensor for planned in self.layers}

    @property
    def bytes_to_read(self) -> int:
        """The number of bytes that the mathematics needs."""
        needed = {entry.name: entry for planned in self.layers for entry in planned.needed_tensors}
        return sum(entry.nbytes for entry in needed.values())

    @property
    def bytes_to_write(self) -> int:
        """The number of bytes in the changed tensors."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def touched_shards(self) -> tuple[str, ...]:
        """The shards that hold a planned tensor."""
        return tuple(sorted({entry.shard for entry in self.tensors.values()}))

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as `--dry-run --json` prints it."""
        return {
            "model": self.checkpoint.files.name,
            "revision": self.checkpoint.files.revision,
            "understood_as": self.stack.understood_as,
            "options": as_plain(self.recorded_options()),
            "layers": [
                {
                    "layer": planned.layer.index,
                    "form": planned.layer.form,
                    "query_heads": planned.layer.query_heads,
                    "key_heads": planned.layer.key_heads,
                    "group_size": planned.layer.group_size,
                    "head_size": planned.layer.query.head_size,
                    "edited_heads": list(planned.heads),
                    "tensor": planned.layer.query.tensor.name,
                    "shard": planned.layer.query.tensor.shard,
                    "dtype": planned.layer.query.tensor.dtype,
                    "shape": list(planned.layer.query.tensor.shape),
                    "norm": planned.layer.norm_kind,
                    "biases": planned.layer.query_bias is not None or planned.layer.key_bias is not None,
                }
                for planned in self.layers
            ],
            "skipped_layers": [asdict(skipped) for skipped in self.stack.skipped],
            "tensors_to_change": len(self.tensors),
            "bytes_to_read": self.bytes_to_read,
            "bytes_to_write": self.bytes_to_write,
            "directory_bytes": self.checkpoint.kept_bytes,
            "touched_shards": list(self.touched_shards),
            "left_out": dict(self.checkpoint.left_out),
        }


def make_plan(checkpoint: Checkpoint, options: SteerOptions) -> SteerPlan:
    """Return the plan for `options` on `checkpoint`.

    Raises:
        UsageError: the selection names layers or heads that the model does not have, or no control can match the edit.
        UnsupportedForm: qkedit does not support the form of the model's projections, or no record names the norm
            whose gain is to be folded in.
    """
    stack = attention_stack(checkpoint, allow_text_only=options.allow_text_only)
    layers = {layer.index: layer for layer in stack.layers}
    chosen = [layers[index] for index in select_layers(options.layers, stack.layer_count, sorted(layers))]
    folded = options.product == "folded"
    planned = tuple(PlannedLayer(layer, select_heads(options.heads, layer.query_heads), folded) for layer in chosen)
    for layer in chosen:
        if folded and layer.input_gain is None:
            raise UnsupportedForm(
                "no record names the norm before the projections, whose gain would be folded in",
                where=f"layer {layer.index}",
                remedy="take --product raw, or add `input_norm` to the decoder's record (docs/adding-a-model.md)",
            )
        if options.protect >= layer.head_size:
            raise UsageError(
                f"a head has {layer.head_size} directions, and all would be protected",
                where=f"protect, layer {layer.index}",
                remedy="protect fewer, such as sink:4",
            )
        _refuse_unmatched_control(options, layer)
    return SteerPlan(checkpoint, options, stack, planned)


def _refuse_unmatched_control(options: SteerOptions, layer: AttentionLayer) -> None:
    """Raise UsageError if the shapes alone show that a head has no k modes besides its k dominant ones."""
    suppression = options.suppression
    if suppression.control != "index" or suppression.energy is not None:
        return
    modes = mode_count(suppression.channel, layer.head_size, layer.query.tensor.shape[1]) - options.protect
    if 2 * suppression.k > modes:
        taken = min(suppression.k, modes)
        raise unmatched_control(f"layer {layer.index}", suppression, taken, modes - taken)


def unmatched_control(where: str, suppression: Suppression, taken: int, left: int) -> UsageError:
    """Return the error for an edit that takes more modes of a head than it leaves."""
    # A random frame of as many directions as the head has spans all of them: that control would be the edit.
    has_norm = suppression.channel == "full" and left > 0
    return UsageError(
        f"the edit takes {taken} of {taken + left} modes of a head, so no index-matched control exists",
        where=where,
        remedy=f"use at most half of the modes with --k or --energy{',' if has_norm else ' or'} leave the head or "
        f"layer out{', or choose --control norm' if has_norm else ''}",
    )


def plan_for(
    model: str, options: SteerOptions, revision: str | None = None, *, keep_plugins: bool = False
) -> SteerPlan:
    """Return the plan for a model by its name; reads headers and config only.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        options: the edit.
        revision: the branch, tag or commit of a model on the hub.
        keep_plugins: copy the model's `qkedit-plugins.json` to the output.
    """
    checkpoint = open_checkpoint(resolve(model, revision))
    return make_plan(checkpoint.with_plugins() if keep_plugins else checkpoint, options)
