"""Format spectra as CSV, for use in other tools."""

from __future__ import annotations

from qkedit.inspection.comparison import Comparison
from qkedit.inspection.spectra import Inspection
from qkedit.report.csv_text import csv_text
from qkedit.report.spectra.summary import offset_text


def spectra_csv(inspection: Inspection) -> str:
    """Return one line per head; the singular values come last."""
    heads = [(layer.layer, head) for layer in inspection.layers for head in layer.heads]
    longest = max(len(head.singular_values) for _, head in heads)
    parts = list(heads[0][1].kept or {})
    names = [
        "rank",
        "k",
        "energy_top_k",
        "effective_rank",
        "symmetric_share",
        "gap_at_k",
        "unrealized_share",
        "leak",
        "bias_share",
    ]
    header = ["model", "channel", "offset", "layer", "head", "key_head", *names]
    header += [f"kept_{part}_{side}" for part in parts for side in ("query_side", "key_side")]
    header += [f"sigma_{number}" for number in range(1, longest + 1)]
    offset = offset_text(inspection.offset)
    lines: list[list[object]] = [list(header)]
    for layer, head in heads:
        line: list[object] = [inspection.model, inspection.channel, offset, layer, head.head, head.key_head]
        line += [getattr(head, name) for name in names]
        for part in parts:
            assert head.kept is not None
            line += [head.kept[part].query_side, head.kept[part].key_side]
        line += [*head.singular_values, *[None] * (longest - len(head.singular_values))]
        lines.append(line)
    return csv_text(lines)


def comparison_csv(comparison: Comparison) -> str:
    """Return one line per head and mode number, with σ in both models and the principal angles if there are any."""
    header = ["model", "other", "channel", "layer", "head", "key_head", "mode", "sigma_before", "sigma_after"]
    lines: list[list[object]] = [[*header, "query_side_angle", "key_side_angle"]]
    for layer in comparison.layers:
        for head in layer.heads:
            for mode, (before, after) in enumerate(zip(head.before, head.after, strict=True)):
                angles = [
                    side[mode] if mode < len(side) else None for side in (head.query_side_angles, head.key_side_angles)
                ]
                names = [comparison.model, comparison.other, comparison.channel]
                lines.append([*names, layer.layer, head.head, head.key_head, mode + 1, before, after, *angles])
    return csv_text(lines)
