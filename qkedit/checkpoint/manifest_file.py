"""`qkedit.json` as a value: the edit of a checkpoint, the edited tensors, and the hashes that verify them.

It lists every file of the full directory, so that a later run knows which ones it may replace. It contains nothing
that differs between two runs on the same inputs (no times, no paths), so an output is reproducible to the byte. The
manifests of earlier edits are under `history`, oldest first, as they were written.

Unknown keys are ignored, since a later version may add facts. A change in the meaning of a key gets a new schema, and
a later schema is refused. Schema 1, with which qkedit 0.1 began, is read as schema 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from typing import Any, Self, TypeVar

from qkedit.checkpoint.manifest_text import SCHEMA as SCHEMA
from qkedit.checkpoint.manifest_text import WRITE_AGAIN, as_schema_2, dumped
from qkedit.checkpoint.record_reader import MACHINE_WRITTEN, RecordError, as_plain, read_record
from qkedit.errors import CheckpointError
from qkedit.strict_text import parse_json

Part = TypeVar("Part")
# The file keeps k and seed, and other programs read no longer number.
LARGEST_NUMBER = 2**64 - 1
# An edit is scaled by so much at most.
LARGEST_STRENGTH = 2.0
# By so much float64 may leave a share's range.
_ROUNDING = 1e-6


class EditedChannel(StrEnum):
    """The part of the product that was edited."""

    FULL = "full"
    SYMMETRIC = "symmetric"
    ANTISYMMETRIC = "antisymmetric"


class EditControl(StrEnum):
    """The random control that replaced the edit."""

    NONE = "none"
    INDEX = "index"
    NORM = "norm"


class Derivation(StrEnum):
    """The origin of an edit that was not made by `steer`: other edits, or two checkpoints."""

    STACKED = "stacked"
    SCALED = "scaled"
    EXTRACTED = "extracted"


@dataclass(frozen=True, kw_only=True)
class Tool:
    """The program that wrote a manifest."""

    name: str = "qkedit"
    version: str


@dataclass(frozen=True, kw_only=True)
class RecordedBase:
    """The model that was edited: a hub id and its commit, `demo`, or only the name of a directory."""

    model: str
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class ProtectedSink:
    """The query directions that an edit left alone because they find the attention sink; see `qkedit.spectral.sink`.

    Attributes:
        directions: the largest number of them per head.
        token: the token on which the model was run to find them; None in a plan.
        sha256: the SHA-256 of what the run showed; None in a plan.
    """

    directions: int
    token: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse a number that no edit has."""
        if self.directions < 1:
            raise ValueError("protects fewer than one direction")


@dataclass(frozen=True, kw_only=True)
class RecordedOptions:
    """All options that affect the bytes of an edit; see `SteerOptions` and `Suppression`."""

    layers: str
    heads: str
    k: int
    energy: float | None
    retain: float
    channel: EditedChannel
    control: EditControl
    seed: int
    compute_dtype: str
    device: str
    protect: ProtectedSink | None = None
    spare: str | None = None  # the role of the heads that were left alone
    spared: dict[str, tuple[int, ...]] | None = None  # these heads, by layer
    product: str | None = None  # `folded`; None for the product of the weights alone

    def __post_init__(self) -> None:
        """Refuse what nobody can have asked for."""
        if not 1 <= self.k <= LARGEST_NUMBER or not 0 <= self.seed <= LARGEST_NUMBER:
            raise ValueError("has a k or a seed that no edit has")
        if not 0 <= self.retain < 1 or (self.energy is not None and not 0 < self.energy <= 1):
            raise ValueError("has a share to retain or an energy outside 0 to 1")


@dataclass(frozen=True, kw_only=True)
class HeadEdit:
    """The edit of one query head. Shares are 0–1, or `None` where they have no meaning."""

    head: int
    key_head: int
    suppressed: tuple[float, ...]  # σ (channels: |λ|; norm control: direction strengths) of the suppressed modes
    energy_removed: float  # of the channel's energy, requested
    gap: float | None  # σ_k / σ_{k+1} at the cut
    relative_change: float  # ‖W_q' − W_q‖ / ‖W_q‖ after rounding to the storage dtype
    unrealized_share: float | None = None  # channels: share of the requested change that queries cannot write
    leak: float | None = None  # channels: share of the requested change that lands in the other channel
    scale: float | None = None  # norm control: c
    key_bias_effect: float | None = None  # ‖(W_q' − W_q)ᵀ b_k‖
    overlap: float | None = None  # several edits: the part that two of them both remove, as a share of their sum
    order: float | None = None  # several edits: the effect of their order if they were composed, also as a share

    def __post_init__(self) -> None:
        """Refuse figures that no edit has; the file's reader has refused NaN and infinity."""
        if min(self.suppressed, default=0) < 0 or min(self.head, self.key_head) < 0 or self.relative_change < 0:
            raise ValueError("has a negative head, mode or relative_change")
        if self.energy_removed > 1 + _ROUNDING:
            raise ValueError("removes more energy than there is")


@dataclass(frozen=True, kw_only=True)
class TensorEdit:
    """One edited query tensor: its place, its hashes, and the edits of its selected heads."""

    name: str
    shard: str
    layer: int
    form: str = ""  # the layout of heads in the tensor
    norm: str | None = None  # the kind of norm after the query projection, folded into the product
    dtype: str
    shape: tuple[int, ...]
    sha256_before: str
    sha256_after: str
    heads: tuple[HeadEdit, ...]

    def __post_init__(self) -> None:
        """Refuse a tensor without edited heads, or with impossible ones."""
        numbers = [head.head for head in self.heads]
        if not numbers:
            raise ValueError("lists no heads")
        if len(set(numbers)) < len(numbers):
            raise ValueError("lists a head twice")
        if self.layer < 0 or min(self.shape, default=0) < 0:
            raise ValueError("has a layer or a size below 0")


@dataclass(frozen=True, kw_only=True)
class AdapterLayer:
    """The change of one tensor in an adapter: `B A`, with the scaling 1.

    Attributes:
        tensor: the name of the edited tensor in the base.
        module: the path of its module in a loaded model.
        rank: the rank of the product.
        error: `‖BA − Δ‖ / ‖Δ‖` (Frobenius): the loss of the change Δ by truncation, and by rounding before the
            factors were computed. The factors' own rounding to float32 is not included.
        sha256_a, sha256_b: the SHA-256 of the factors' bytes.
    """

    tensor: str
    module: str
    rank: int
    error: float
    sha256_a: str
    sha256_b: str

    def __post_init__(self) -> None:
        """Refuse a rank or an error that no adapter has."""
        if self.rank < 1 or not 0 <= self.error <= 1 + _ROUNDING:
            raise ValueError("has a rank below 1 or an error outside 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One edit of a checkpoint.

    Attributes:
        tool: the program that wrote the manifest.
        libraries: names and versions of the libraries used for the computation.
        base: the model that was edited.
        understood_as: the interpretation of a model without its own record.
        options: the options of the edit; None if it was not made by a single `steer`.
        derivation: the origin of an edit that was not made by `steer`.
        made_of: the manifests of the edits that were combined, without their history.
        strength: the factor by which the change of an edit was multiplied.
        tensors: the edited tensors.
        files: every file of the full output, sorted.
        generated: the SHA-256 of each file that qkedit generated next to weights and manifest, by name.
        adapter: the layers of an adapter, also kept in a model that was made from it; otherwise None.
        history: manifests of earlier edits as they were written, each with its own schema, oldest first.
    """

    tool: Tool
    libraries: dict[str, str] = field(default_factory=dict)
    base: RecordedBase
    understood_as: str | None = None
    options: RecordedOptions | None = None
    derivation: Derivation | None = None
    made_of: tuple[dict[str, Any], ...] | None = None
    strength: float | None = None
    tensors: tuple[TensorEdit, ...]
    files: tuple[str, ...] = ()
    generated: dict[str, str] = field(default_factory=dict)
    adapter: tuple[AdapterLayer, ...] | None = None
    history: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        """Check conditions that involve several keys."""
        names = [tensor.name for tensor in self.tensors]
        if not names:
            raise ValueError("lists no tensors")
        if len(set(names)) < len(names):
            raise ValueError("lists a tensor twice")
        if self.adapter is not None and sorted(layer.tensor for layer in self.adapter) != sorted(names):
            raise ValueError("lists other tensors than its adapter has layers")
        if (self.options is None) == (self.derivation is None):
            raise ValueError("needs either options or a derivation")
        if self.strength is not None and not 0 < self.strength <= LARGEST_STRENGTH:
            raise ValueError(f"has a strength that is not above 0 and at most {LARGEST_STRENGTH:g}")
        if (
            self.options is not None
            and self.options.channel is not EditedChannel.FULL
            and any(head.unrealized_share is None or head.leak is None for head in self.heads)
        ):
            raise ValueError(f"has a head of the {self.options.channel} channel without unrealized_share and leak")

    @property
    def heads(self) -> tuple[HeadEdit, ...]:
        """Return every edited head, tensor by tensor."""
        return tuple(head for tensor in self.tensors for head in tensor.heads)

    def with_generated(self, files: Mapping[str, bytes], kept: Mapping[str, str]) -> Self:
        """Return the manifest of an output in which qkedit generates these files.

        Args:
            files: their contents.
            kept: the SHA-256 of each file that a writer generated next to the weights.
        """
        hashes = {name: sha256(content).hexdigest() for name, content in files.items()}
        return replace(self, files=tuple(sorted({*self.files, *kept})), generated={**hashes, **kept})

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Self:
        """Read a manifest of schema 1 or 2.

        Args:
            content: the content of the file.
            where: the name of the file, for messages.

        Raises:
            CheckpointError: the content is not JSON, has a later schema, or lacks a required key.
        """
        try:
            return read_record(cls, as_schema_2(content, where), where, MACHINE_WRITTEN)
        except RecordError as error:
            raise CheckpointError(error.what, where=error.where, remedy=WRITE_AGAIN) from error

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the file; keys without a value are left out."""
        return {"schema": SCHEMA, **as_plain(self)}

    def to_json(self) -> bytes:
        """Return the bytes of the file, with one line per head, so that it can be read and compared with `diff`."""
        # A directory's name may hold bytes that are not UTF-8; backslashreplace writes them as JSON escapes.
        return (dumped(self.as_dict(), "") + "\n").encode(errors="backslashreplace")


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """The part of a manifest of any schema that lists qkedit's files."""

    tool: Tool
    files: tuple[str, ...] = ()
    generated: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step:
    """The part of an earlier manifest that names its base."""

    base: RecordedBase


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The part of a manifest of any schema that names the models from which an output was made."""

    base: RecordedBase
    history: tuple[Step, ...] = ()


def part_of(content: bytes, kind: type[Part]) -> Part | None:
    """Return a part of a manifest, such as `Ownership`, whether or not the rest is valid; None if it is missing."""
    try:
        return read_record(kind, parse_json(content, file_names=True), "", MACHINE_WRITTEN)
    except (ValueError, RecordError):
        return None
