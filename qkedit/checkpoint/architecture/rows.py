"""Compute the rows of heads in a projection from a layout record and head counts."""

from __future__ import annotations

from dataclasses import dataclass

from qkedit.checkpoint.architecture.schema import HeadKind, RowOrder, RowScope


@dataclass(frozen=True)
class HeadCounts:
    """H query heads on H_kv key heads, each `head_size` (d_h) rows."""

    query_heads: int
    key_heads: int
    head_size: int

    def of(self, kind: HeadKind) -> int:
        """Return the number of heads of a kind in a layer: "query" and its "gate", "key" and its "value"."""
        return self.query_heads if kind in (HeadKind.QUERY, HeadKind.GATE) else self.key_heads

    def __str__(self) -> str:
        """Return the counts in words."""
        return f"{self.query_heads} query heads on {self.key_heads} key heads of size {self.head_size}"


def row_count(rows: RowOrder, counts: HeadCounts) -> int:
    """Return the number of rows of the projection."""
    return counts.head_size * sum(counts.of(kind) for kind in rows.rows)


def head_starts(rows: RowOrder, kind: HeadKind, counts: HeadCounts) -> tuple[int, ...]:
    """Return the first row of each head of one kind, in the order of heads."""
    repeats = {
        RowScope.LAYER: 1,
        RowScope.KEY_HEAD: counts.key_heads,
        RowScope.QUERY_HEAD: counts.query_heads,
    }[rows.per]
    starts: list[int] = []
    row = 0
    for _ in range(repeats):
        for name in rows.rows:
            for _ in range(counts.of(name) // repeats):
                if name == kind:
                    starts.append(row)
                row += counts.head_size
    return tuple(starts)
