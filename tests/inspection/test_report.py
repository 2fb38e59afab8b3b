"""Test tables, CSV, plots and pages: widths, numbers, and unusual input."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from qkedit.errors import QkeditError, UsageError
from qkedit.inspection.comparison import Comparison, HeadComparison, LayerComparison
from qkedit.inspection.spectra import Inspection, KeptShare, LayerSpectra
from qkedit.inspection.suggestion import suggest
from qkedit.report.files import check_target, write_file
from qkedit.report.plots import check_plot, plot_format, require_matplotlib
from qkedit.report.spectra.csv_file import comparison_csv, spectra_csv
from qkedit.report.spectra.page import spectra_page
from qkedit.report.spectra.plot import spectra_plot
from qkedit.report.spectra.summary import layer_row
from qkedit.report.spectra.table import ComparisonTable, SpectrumTable, inline_spectrum
from tests.inspection.inspections import inspection, spiked

KEPT = {part: KeptShare(0.5, 0.7) for part in ("all", "temporal", "height", "width")}
COMPARISON = Comparison(
    "base",
    "edited",
    "full",
    "k 2",
    (
        LayerComparison(
            4,
            (
                HeadComparison(0, 0, (3.0, 1.0), (1.0, 0.5), 0.9, 0.8, 3.0, 2.0, (5.0, 80.0), (1.0, 2.0)),
                HeadComparison(1, 0, (5.0, 1.0), (2.0, 0.5), 0.9, 0.6, None, None, (), ()),
            ),
        ),
    ),
)


def plain(layers: int = 3, heads: int = 4, **settings: object) -> Inspection:
    return inspection(
        {layer: [spiked([3.0 + head, 2.5]) for head in range(heads)] for layer in range(layers)}, **settings
    )


def rendered(table: SpectrumTable | ComparisonTable, width: int, encoding: str = "utf-8") -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=stream, width=width, force_terminal=False).print(table)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 120, 4096])
@pytest.mark.parametrize("every_head", [False, True])
@pytest.mark.parametrize(
    "shown",
    [
        plain(),
        plain(k=16),
        plain(offset=(2, 2, 2), kept=KEPT),
        plain(channel="symmetric", unrealized_share=0.64, leak=0.35, offset=(1, 2, 3), kept={"all": KEPT["all"]}),
        inspection({27: [tuple(1e-5 * value for value in spiked([3.0]))]}),
        inspection({0: [(0.0,) * 32]}, symmetric_share=None, gap_at_k=None),
    ],
)
def test_tables_fit_the_terminal(shown: Inspection, every_head: bool, width: int) -> None:
    lines = rendered(SpectrumTable(shown, every_head), width)
    assert max(map(len, lines)) <= width
    rows = sum(len(layer.heads) for layer in shown.layers) if every_head else len(shown.layers)
    numbers = {str(layer.layer) for layer in shown.layers}
    # One line per row: no line is wrapped.
    assert sum(line.split()[0] in numbers for line in lines[1 : rows + 1]) == rows
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_narrow_encodings_use_plain_characters(encoding: str) -> None:
    for table in (SpectrumTable(plain(), False), ComparisonTable(COMPARISON, True)):
        assert "s1" in "".join(rendered(table, 80, encoding))


def test_the_row_of_a_layer_has_the_medians_of_its_heads() -> None:
    row = layer_row(plain(layers=1).layers[0])
    assert row.singular_values[:2] == (4.5, 2.5)
    lines = rendered(SpectrumTable(plain(layers=1), False), 80)
    assert lines[1].split()[:3] == ["0", "4.5", "2.5"]
    assert "55%" in lines[1]
    assert "1.25" in lines[1]


def test_every_table_and_plot_shows_the_median_of_skewed_heads() -> None:
    shares = (0.1, 0.2, 0.9)  # their mean is 0.4
    values = [(7.0, 3.0)] * 3
    seen = inspection({0: values}, symmetric_share=0.5)
    heads = [
        replace(head, energy_top_k=share, symmetric_share=share, unrealized_share=share, leak=share)
        for head, share in zip(seen.layers[0].heads, shares, strict=True)
    ]
    seen = replace(seen, layers=(LayerSpectra(0, tuple(heads)),))
    row = layer_row(seen.layers[0])
    assert (row.energy_top_k, row.symmetric_share, row.unrealized_share, row.leak) == (0.2, 0.2, 0.2, 0.2)
    compared = replace(
        COMPARISON,
        layers=(
            LayerComparison(
                0,
                tuple(
                    HeadComparison(number, 0, pair, pair, share, share, 2.0, 2.0, (share,), (share,))
                    for number, (pair, share) in enumerate(zip(values, shares, strict=True))
                ),
            ),
        ),
    )
    for table in (SpectrumTable(seen, False), ComparisonTable(compared, False)):
        text = "\n".join(rendered(table, 119))
        assert "20" in text
        assert "40" not in text
        assert "medians of its heads" in text


def test_inline_spectra_have_a_logarithmic_scale() -> None:
    assert inline_spectrum((1.0, 1e-2, 1e-4, 0.0), 4) == "█▅▁▁"
    assert inline_spectrum((1.0, 1e-2, 1e-4, 0.0), 2, plain=True) == "#."
    assert inline_spectrum((0.0, 0.0), 8) == "▁▁"


def test_comparisons_show_both_models() -> None:
    lines = rendered(ComparisonTable(COMPARISON, False), 80)
    assert lines[1].split() == ["4", "4", "→", "1.5", "90.0%", "→", "70.0%", "80.0°", "2.0°"]
    heads = rendered(ComparisonTable(COMPARISON, True), 60)
    assert heads[2].split() == ["4", "1", "5", "→", "2", "90.0%", "→", "60.0%", "-", "-"]
    assert max(map(len, heads)) <= 60


def test_csv_has_every_number_in_full_precision() -> None:
    shown = inspection({3: [spiked([1 / 3]), spiked([9.1], size=32)]}, offset=(0, 1, 2), kept=KEPT, gap_at_k=None)
    rows = list(csv.DictReader(io.StringIO(spectra_csv(shown))))
    assert [(row["layer"], row["head"], row["key_head"]) for row in rows] == [("3", "0", "0"), ("3", "1", "0")]
    assert rows[0]["offset"] == "0,1,2"
    assert rows[0]["gap_at_k"] == ""
    assert rows[0]["kept_height_key_side"] == "0.7"
    for row, head in zip(rows, shown.layers[0].heads, strict=True):
        assert tuple(float(row[f"sigma_{number}"]) for number in range(1, 33)) == head.singular_values


def test_csv_of_heads_with_different_sizes_has_empty_cells() -> None:
    rows = list(csv.DictReader(io.StringIO(spectra_csv(inspection({0: [spiked([], 4)], 1: [spiked([], 6)]})))))
    assert [rows[0]["sigma_5"], rows[1]["sigma_5"] != ""] == ["", True]


def test_csv_of_a_comparison_has_a_row_per_mode() -> None:
    rows = list(csv.DictReader(io.StringIO(comparison_csv(COMPARISON))))
    assert len(rows) == 4
    assert (rows[1]["mode"], rows[1]["sigma_before"], rows[1]["query_side_angle"]) == ("2", "1.0", "80.0")
    assert rows[2]["query_side_angle"] == ""


@pytest.mark.parametrize(("file_format", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_plots_in_every_format_are_reproducible(file_format: str, start: bytes) -> None:
    pictures = [spectra_plot(plain(layers=12), file_format) for _ in range(2)]
    assert pictures[0].startswith(start)
    assert pictures[0] == pictures[1]


def test_plots_name_model_layers_and_axes() -> None:
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):
        text = spectra_plot(plain(layers=2, model="odd_$name$", offset=(3, 3, 3)), "svg").decode()
    words = " ".join("".join(ElementTree.fromstring(text).itertext()).split())
    for expected in ("odd_$name$", "layers 0-1", "offset 3", "query head", "layer", "mode i", "σᵢ / σ₁", "(%)"):
        assert expected in words


@pytest.mark.parametrize(
    "shown",
    [
        inspection({0: [(0.0,) * 8]}, symmetric_share=None, gap_at_k=None),
        inspection({0: [spiked([])], 5: [spiked([], 16), spiked([], 16)]}),
        plain(layers=1, heads=1),
    ],
)
def test_plots_and_pages_of_unusual_models_are_made(shown: Inspection) -> None:
    assert spectra_plot(shown, "png")
    assert "<table>" in spectra_page(shown)


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data.append(data)


def test_pages_are_well_formed_without_external_resources() -> None:
    shown = plain(layers=12, warnings=("something to know",), channel="symmetric", unrealized_share=0.6, leak=0.4)
    text = spectra_page(shown, suggest(shown))
    page = _Page(text)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert not {"src", "href", "srcset", "action"} & set(attributes)
    assert re.findall(r"https?://|@import|url\(", text) == []
    assert "prefers-color-scheme: dark" in text
    assert "Something to know." in page.data
    assert any(text.startswith("qkedit tune ") for text in page.data)
    assert sum(tag == "tr" for tag, _ in page.tags) == 2 + 12 + 12 * 4


def test_pages_escape_names() -> None:
    shown = plain(model="</script><script>alert(1)</script>&amp;", warnings=("<b>bold</b>",))
    page = _Page(spectra_page(shown, suggest(shown)))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag == "b" for tag, _ in page.tags)


def test_cells_have_the_numbers_for_sorting() -> None:
    page = _Page(spectra_page(plain(layers=1, heads=1, symmetric_share=None)))
    values = [attributes["data-value"] for tag, attributes in page.tags if tag == "td" and "data-value" in attributes]
    assert "" in values
    assert all(value == "" or float(str(value)) >= 0 for value in values)


def test_files_are_written_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "spectra.csv"
    write_file(target, b"first")
    write_file(target, b"second")
    assert target.read_bytes() == b"second"

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(QkeditError, match="no space left"):
        write_file(target, b"third")
    assert [path.name for path in tmp_path.iterdir()] == ["spectra.csv"]
    assert target.read_bytes() == b"second"


def test_unwritable_paths_are_refused_before_the_work(tmp_path: Path) -> None:
    for path, expected in (
        (tmp_path / "spectra.txt", "unknown ending"),
        (tmp_path / "missing" / "spectra.csv", "no directory"),
    ):
        with pytest.raises(UsageError, match=expected):
            check_target(path, (".csv",), "--csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        check_target(tmp_path / "folder.csv", (".csv",), "--csv")


def test_a_missing_matplotlib_is_reported_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkedit.report.plots.find_spec", lambda name: None)
    with pytest.raises(QkeditError, match="matplotlib is not installed") as caught:
        require_matplotlib()
    assert "qkedit[plot]" in caught.value.remedy
    with pytest.raises(QkeditError, match=r"^--plot: matplotlib is not installed"):
        check_plot(tmp_path / "keys.png", "--plot")


def test_plots_are_checked_like_other_files(tmp_path: Path) -> None:
    for name, expected in (("keys.png", "png"), ("keys.SVG", "svg"), ("a.b.pdf", "pdf")):
        check_plot(tmp_path / name, "--plot")
        assert plot_format(tmp_path / name) == expected
    for name, message in (("keys.jpg", ".png or .svg or .pdf"), ("missing/keys.png", "no directory")):
        with pytest.raises(UsageError, match=f"^--plot: .*{message}"):
            check_plot(tmp_path / name, "--plot")
