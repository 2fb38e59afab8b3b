"""The stored weights of one planned layer as tensors: read by byte ranges, and split into heads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from qkedit.checkpoint.architecture.heads import HeadNorm, HeadRows
from qkedit.checkpoint.architecture.schema import NormKind
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles
from qkedit.spectral.factors import on_device, product_dtype
from qkedit.spectral.norms import fold_keys, norm_map
from qkedit.spectral.product import QKProduct
from qkedit.steering.engine.reading import StoredLayer, read_bytes
from qkedit.steering.plan import PlannedLayer

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class LayerWeights:
    """The stored weights of one planned layer, on the CPU in their storage dtype, by tensor name."""

    planned: PlannedLayer
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, files: CheckpointFiles, planned: PlannedLayer, entries: Iterable[TensorEntry] | None = None) -> Self:
        """Read `entries` of one layer, by default the tensors that its mathematics needs."""
        entries = planned.needed_tensors if entries is None else entries
        return cls(planned, {entry.name: read_tensor(files, entry) for entry in entries})

    @classmethod
    def of(cls, stored: StoredLayer) -> Self:
        """Wrap bytes that have been read already, without a copy."""
        entries = stored.planned.needed_tensors
        return cls(stored.planned, {entry.name: tensor_of(stored.contents[entry.name], entry) for entry in entries})

    @property
    def query(self) -> Tensor:
        """The whole tensor that holds the queries, `[rows, D]`."""
        return self.tensors[self.planned.layer.query.tensor.name]

    def product(self, device: torch.device, rotation: Tensor | None = None) -> QKProduct:
        """Return the product of the chosen heads on `device`, norms folded in.

        `rotation` `[d_h, d_h]`, if given, is applied between query and key, after their norms: `R_nᵀ` gives the
        product at relative offset n.
        """
        keys, key_head = self._folded(self._rows(self.planned.layer.key, self.planned.key_heads), between=rotation)
        query = self._rows(self.planned.layer.query, self.planned.heads)
        return QKProduct(on_device(query, device), on_device(keys, device), key_head)

    def with_input_gain(self, product: QKProduct) -> QKProduct:
        """Return `G W_qᵀ W_k G`, the product of the states before the gain g of their norm, with `G = diag g`.

        Its modes are those of the plan's product; `W_qᵀ W_k` itself is returned where the plan does not fold.
        """
        gain = self.planned.layer.input_gain
        if not self.planned.folded or gain is None:
            return product
        factor = self.tensors[gain.tensor.name].flatten().double() + (gain.kind is NormKind.ONE_PLUS_RMS)

        def folded(rows: Tensor) -> Tensor:
            dtype = product_dtype(rows.device)
            return rows.to(dtype) * factor.to(rows.device, dtype)

        return QKProduct(folded(product.query), folded(product.key), product.key_head)

    def query_constant_seen_by_keys(self) -> Tensor | None:
        """Return `(F_k W_k)ᵀ (F_q b_q + s_q)`, float64 `[H, D]`; None where queries have neither bias nor shift.

        The constant part of each chosen head's queries adds this to the logit of a key's input. The bias must have
        been read.
        """
        layer, heads = self.planned.layer, self.planned.heads
        shift = layer.query_norm.shift if layer.query_norm else None
        if layer.query_bias is None and shift is None:
            return None
        constant = torch.zeros(len(heads), layer.head_size, 1, dtype=torch.float64)
        if layer.query_bias is not None:
            bias = self._numbers(layer.query_bias, heads).double().unsqueeze(-1)
            constant = self._norm_maps(layer.query_norm, heads) @ bias
        if shift is not None:
            constant = constant + self._numbers(shift, heads).double().unsqueeze(-1)
        keys = self._rows(layer.key, self.planned.key_heads)
        # The keys' norm is applied first: that multiplies d_h numbers, and the keys have D times as many.
        constant = self._norm_maps(layer.key_norm, self.planned.key_heads)[self._key_head()].mT @ constant
        return torch.cat(
            [keys[key_head].double().mT @ part for key_head, part in zip(self._key_head(), constant, strict=True)], -1
        ).mT

    def met_by_queries(self, moments: Tensor) -> Tensor:
        """Return `F_qᵀ S F_q` of the key head that each chosen query head reads, float64 `[H, d_h, d_h]`.

        `moments` is S of every key head of the layer, `[H_kv, d_h, d_h]`, of keys after their norm.
        """
        layer, heads = self.planned.layer, self.planned.heads
        maps = self._norm_maps(layer.query_norm, heads)
        return maps.mT @ moments[[head // layer.group_size for head in heads]] @ maps

    def key_bias(self) -> Tensor | None:
        """Return the constant added to every token's keys, `[H_kv, d_h]`, folded like them; None if there is none."""
        layer, heads = self.planned.layer, self.planned.key_heads
        bias = self._numbers(layer.key_bias, heads).unsqueeze(-1) if layer.key_bias else None
        if bias is None and (layer.key_norm is None or layer.key_norm.shift is None):
            return None
        if bias is None:
            bias = torch.zeros(len(heads), layer.head_size, 1)
        shift = layer.key_norm.shift if layer.key_norm else None
        return self._folded(bias, shift=self._numbers(shift, heads).unsqueeze(-1) if shift else None)[0].squeeze(-1)

    def _rows(self, rows: HeadRows, heads: tuple[int, ...]) -> Tensor:
        return head_rows(self.tensors[rows.tensor.name], rows, heads)

    def _numbers(self, rows: HeadRows, heads: tuple[int, ...]) -> Tensor:
        """Return the rows of a bias or a norm, in storage order whatever its shape: `[heads, head_size]`."""
        return head_rows(self.tensors[rows.tensor.name].flatten(), rows, heads)

    def _folded(
        self, keys: Tensor, shift: Tensor | None = None, between: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return keys `[H_kv, d_h, …]` with all norms folded in, and the key head that each chosen query head reads.

        `shift` is added to the keys after their norm; then `between` maps the sum.
        """
        layer, key_heads, key_head = self.planned.layer, self.planned.key_heads, self._key_head()
        if layer.query_norm is None and layer.key_norm is None and between is None:
            return keys, key_head
        keys = self._norm_maps(layer.key_norm, key_heads) @ keys.double()
        if shift is not None:
            keys = keys + shift.double()
        if between is not None:
            keys = between.double() @ keys
        return fold_keys(keys, key_head, self._norm_maps(layer.query_norm, self.planned.heads))

    def _key_head(self) -> Tensor:
        """Return the planned key head that each selected query head reads, `[H]`."""
        key_heads, group_size = self.planned.key_heads, self.planned.layer.group_size
        return torch.tensor([key_heads.index(head // group_size) for head in self.planned.heads])

    def _norm_maps(self, norm: HeadNorm | None, heads: tuple[int, ...]) -> Tensor:
        ones = torch.ones(len(heads), self.planned.layer.head_size)
        if norm is None:
            return norm_map("l2", ones)
        if norm.gain is None:
            return norm_map(NormKind.RMS if norm.kind is NormKind.ONE_PLUS_RMS else norm.kind, ones)
        return norm_map(norm.kind, self._numbers(norm.gain, heads))


def read_tensor(files: CheckpointFiles, entry: TensorEntry) -> Tensor:
    """Read one tensor by its byte range, onto the CPU in its storage dtype."""
    return tensor_of(read_bytes(files, entry), entry)


def tensor_of(content: bytearray, entry: TensorEntry) -> Tensor:
    """Return the tensor that bytes hold, without a copy."""
    return torch.frombuffer(content, dtype=TORCH_DTYPES[entry.dtype]).view(entry.shape)


def stored_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor in the byte order of a file, without a copy."""
    array: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(array)


def sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of a contiguous CPU tensor's bytes."""
    return hashlib.sha256(stored_bytes(tensor)).hexdigest()


def head_rows(tensor: Tensor, rows: HeadRows, heads: tuple[int, ...]) -> Tensor:
    """Return the rows of `heads`, `[len(heads), head_size, …]`; a view where they are contiguous."""
    size, starts = rows.head_size, [rows.starts[head] for head in heads]
    if all(start == starts[0] + place * size for place, start in enumerate(starts)):
        return tensor[starts[0] : starts[0] + len(heads) * size].unflatten(0, (len(heads), size))
    return torch.stack([tensor[start : start + size] for start in starts])
