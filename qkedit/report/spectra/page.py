"""Format spectra as one self-contained HTML page with charts, sortable tables, and a light and a dark theme."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files

from qkedit.inspection.spectra import Inspection
from qkedit.inspection.suggestion import Suggestion
from qkedit.report.files import printable
from qkedit.report.spectra.charts import curves, heat_map, share_bars
from qkedit.report.spectra.summary import SpectrumRow, layer_row, offset_text, rows_of
from qkedit.report.spectra.table import inline_spectrum
from qkedit.selection import describe

# A curve ends below this share of σ₁: smaller values are rounding, and would dominate the axis.
LOWEST_SHOWN = 1e-8
VALUES_SHOWN = 4
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def spectra_page(inspection: Inspection, suggestion: Suggestion | None = None) -> str:
    """Return the page's HTML."""
    layers = describe([layer.layer for layer in inspection.layers])
    title = f"{inspection.model}: query-key spectra"
    place = f" at offset {offset_text(inspection.offset)}" if any(inspection.offset) else ""
    revision = f", revision {inspection.revision}" if inspection.revision else ""
    about = f"Layers {layers}, {inspection.channel} channel{place}, dominant modes: {inspection.wanted}{revision}."
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="about">{escape(about)}</p>',
        *_warnings(inspection.warnings),
        *_suggested(suggestion),
        "<h2>Energy share of the dominant modes</h2>",
        _figure(
            _energy(inspection), "The stronger the colour, the larger the share of Σσ²; hover over a cell to read it."
        ),
        '<div class="charts"><section><h2>Spectra</h2>',
        _figure(_spectra(inspection), "Median σ of each layer's heads, from violet (first layer) to red (last)."),
        "</section><section><h2>Symmetric and antisymmetric share</h2>",
        _figure(
            share_bars(
                [(layer.layer, layer_row(layer).symmetric_share) for layer in inspection.layers],
                ("symmetric", "antisymmetric"),
            ),
            "Median over heads; symmetric below in blue, antisymmetric above in amber.",
        ),
        "</section></div>",
        "<h2>Layers</h2>",
        '<p class="note">Each row holds the medians of a layer\'s heads; the gap is the smallest. '
        "Click a heading to sort.</p>",
        _table(rows_of(inspection, every_head=False), every_head=False),
        "<h2>Heads</h2>",
        _table(rows_of(inspection, every_head=True), every_head=True),
    ]
    resources = files("qkedit.report.spectra")
    style, script = (resources.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    return printable(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _warnings(sentences: Iterable[str]) -> list[str]:
    items = [f"<li>{escape(sentence[0].upper() + sentence[1:])}.</li>" for sentence in sentences]
    return ['<ul class="warnings">', *items, "</ul>"] if items else []


def _suggested(suggestion: Suggestion | None) -> list[str]:
    if suggestion is None:
        return []
    reason = suggestion.reason[0].upper() + suggestion.reason[1:]
    lines = ["<h2>Suggestion: a heuristic, not a promise</h2>", f"<p>{escape(reason)}.</p>"]
    lines += [f"<pre>{escape(suggestion.command)}</pre>"] if suggestion.command else []
    lines.append(f"<p>{escape(' '.join(suggestion.evidence))}</p>")
    if suggestion.tune:
        lines += [f"<p>{escape(suggestion.search)}</p>", f"<pre>{escape(suggestion.tune)}</pre>"]
    return lines


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def _energy(inspection: Inspection) -> str:
    heads = sorted({head.head for layer in inspection.layers for head in layer.heads})
    shares = [{head.head: head.energy_top_k for head in layer.heads} for layer in inspection.layers]
    rows = [[row.get(head) for head in heads] for row in shares]
    return heat_map(rows, [layer.layer for layer in inspection.layers], heads)


def _spectra(inspection: Inspection) -> str:
    series = []
    for layer in inspection.layers:
        values = layer_row(layer).singular_values
        if values[0] > 0:
            series.append((layer.layer, [value / values[0] for value in values]))
    lowest = min((share for _, shares in series for share in shares if share > LOWEST_SHOWN), default=0.1)
    return curves(series, lowest) if series else "<p>All products are zero.</p>"


def _table(rows: list[SpectrumRow], *, every_head: bool) -> str:
    shown = min(VALUES_SHOWN, len(rows[0].singular_values))
    parts = list(rows[0].kept)
    channel = rows[0].unrealized_share is not None
    headings = ["layer", *(["head"] if every_head else [])]
    headings += [f"σ{number}" for number in range(1, shown + 1)]
    headings += ["top energy", "effective rank", "symmetric", "gap", *(["unrealized", "leak"] if channel else [])]
    headings += ["kept" if part == "all" else f"kept, {part}" for part in parts]
    head = "".join(f'<th scope="col"><button>{escape(heading)}</button></th>' for heading in headings)
    lines = []
    for row in rows:
        cells = [_cell(row.layer, str(row.layer)), *([_cell(int(row.heads), row.heads)] if every_head else [])]
        cells += [_cell(value, f"{value:.4g}") for value in row.singular_values[:shown]]
        cells += [_share(row.energy_top_k), _cell(row.effective_rank, f"{row.effective_rank:.1f}")]
        cells += [_share(row.symmetric_share), _cell(row.gap_at_k, f"{row.gap_at_k or 0:.3f}")]
        cells += [_share(row.unrealized_share), _share(row.leak)] if channel else []
        cells += [_share(row.kept.get(part)) for part in parts]
        blocks = inline_spectrum(row.singular_values, 16)
        lines.append(f'<tr>{"".join(cells)}<td class="spectrum">{blocks}</td></tr>')
    return (
        f'<div class="scroll"><table><thead><tr>{head}<th scope="col" class="spectrum">spectrum</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(value: float | None, text: str) -> str:
    return '<td data-value="">–</td>' if value is None else f'<td data-value="{value!r}">{escape(text)}</td>'


def _share(share: float | None) -> str:
    return _cell(share, f"{share or 0:.1%}")
