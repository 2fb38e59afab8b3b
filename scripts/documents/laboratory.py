#!/usr/bin/env python
"""Measure the effects of steering, SCR and DSCR on the miniature model, and write docs/laboratory.md.

    python scripts/documents/laboratory.py --work /tmp/laboratory

All random choices are seeded, and the sweep's results are kept in the work directory, so that an interrupted run
resumes. The rules by which a claim is supported or contradicted are in laboratory_document/claims.py; they were fixed
before any result.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from textwrap import fill

from laboratory_document import render, spectra
from laboratory_document.claims import Contrast, contrasts
from laboratory_document.findings import finding_lines
from laboratory_document.sections import section, with_section
from laboratory_document.storable import left_out_sentence, with_storable_ks

from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.resolve import resolve
from qkedit.demo.worlds import world_name_for, world_named
from qkedit.laboratory.arms import Arm, demonstration_arms
from qkedit.laboratory.demonstration import Demonstration, demonstrate
from qkedit.laboratory.eval_set import SceneRange, make_eval_set
from qkedit.laboratory.measures import CAPTIONS, MEASURES, Outcome
from qkedit.laboratory.results_file import ResultsFile
from qkedit.laboratory.scoring import scored
from qkedit.laboratory.sweep import SweepReport, run_sweep
from qkedit.laboratory.sweep_setup import prepare
from qkedit.laboratory.tuning.goal import Guard
from qkedit.laboratory.worker import Job, ModelSpec
from qkedit.plugins.settings import PluginSettings
from qkedit.report.experiments.arms_plot import arms_plot
from qkedit.report.experiments.sweep_plot import sweep_plot
from qkedit.runtime.fingerprint import fingerprint
from qkedit.runtime.generation import directory_of
from qkedit.selection import describe
from qkedit.steering.steer_options import SteerOptions

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

from benchmarking.machine import describe_machine  # noqa: E402

DOCS = ROOT / "docs"
TEMPLATE = Path(__file__).resolve().parent / "laboratory_document" / "laboratory.md"
# Sections that other scripts write, and this one keeps.
OF_OTHER_SCRIPTS = (
    ("scripts/documents/attention_and_depth.py", "attention"),
    ("scripts/documents/attention_and_depth.py", "depth questions"),
    ("scripts/documents/real_weights.py", "real weights"),
)
SEEDS = 5
# Seeds of the demonstration and the sweep's two halves: three disjoint sets of scenes.
DEMONSTRATED = 500
SWEPT = 400
KS = (1, 2, 4, 8)
CHANNELS = ("symmetric", "antisymmetric", "full")
# SCR with the published share of the cells as candidates: 32 of 576 are 4 of 64.
FEW_SOURCES = (
    Arm("SCR, 4", plugins=(PluginSettings("scr", {"sources": 4}),)),
    Arm("SCR, 4 uniform", plugins=(PluginSettings("scr", {"sources": 4, "selection": "uniform"}),)),
)
SHOWN_GRIDS = ("chair_s", "recall", "hr_adversarial", "f1_adversarial")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="directory of results, kept between runs")
    parser.add_argument("--model", default="demo", help="model to measure (default: %(default)s)")
    parser.add_argument(
        "--scenes", type=int, default=DEMONSTRATED, help="scenes of the demonstration (default: %(default)s)"
    )
    parser.add_argument("--swept", type=int, default=SWEPT, help="scenes of the sweep (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="random controls of each edit (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--docs", type=Path, default=DOCS, help="directory of the documents (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    (arguments.docs / "images").mkdir(parents=True, exist_ok=True)
    measure(arguments)


@dataclass(frozen=True)
class Swept:
    """The sweep and what the document says about it.

    Attributes:
        report: the sweep.
        contrasts: the contrasts of the papers' claims.
        grids: a table per channel and measure, in Markdown.
        seconds: the seconds of all arms, summed over processes.
        answers: the number of answers.
    """

    report: SweepReport
    contrasts: list[Contrast]
    grids: list[str]
    seconds: float
    answers: int


def demonstrated(arguments: argparse.Namespace) -> Demonstration:
    world = world_name_for(arguments.model)
    shown = SceneRange(arguments.scenes, world=world)
    arms = (*demonstration_arms(SteerOptions(device="cpu"), arguments.seeds, all_arms=True), *FEW_SOURCES)
    identity = fingerprint(directory_of(arguments.model)) | {"scenes": shown.as_dict(), "seeds": arguments.seeds}
    with ResultsFile(arguments.work / "demonstration.jsonl", identity) as file:
        return demonstrate(
            ModelSpec(arguments.model), arms, shown, arguments.workers, file=file, watch=_watch("demonstration")
        )


def swept(arguments: argparse.Namespace) -> Swept:
    model_spec = ModelSpec(arguments.model)
    settings = prepare(
        model_spec,
        layers=layer_pairs(arguments.model),
        ks=KS,
        channels=CHANNELS,
        retains=(0.0,),
        control="index",
        seeds=arguments.seeds,
        objective="chair_s",
        guards=(Guard("recall", 0.02),),
        scenes=SceneRange(arguments.swept, first=arguments.scenes, world=world_name_for(arguments.model)),
    )
    settings = with_storable_ks(settings, model_spec)
    with ResultsFile(arguments.work / "sweep.jsonl", settings.as_dict()) as file:
        report = run_sweep(model_spec, settings, file, arguments.workers, _watch("sweep"))
        first, _ = settings.scenes.halves()
        eval_set = make_eval_set(first)

        @cache
        def outcome_of(arm: Arm) -> Outcome:
            result = file.result(Job(arm, first))
            assert result is not None
            return scored(arm, eval_set, result)

        grids = [
            "\n".join(render.grid_lines(report, outcome_of, channel, MEASURES[name]))
            for channel in CHANNELS
            for name in SHOWN_GRIDS
        ]
        arms = settings.arms()
        return Swept(
            report,
            list(contrasts(settings, outcome_of)),
            grids,
            sum(outcome_of(arm).seconds for arm in arms),
            len(arms) * (first.count + len(eval_set.asked)),
        )


def measure(arguments: argparse.Namespace) -> None:
    demonstration, sweep = demonstrated(arguments), swept(arguments)
    report, settings = sweep.report, sweep.report.settings
    first, second = settings.scenes.halves()
    layers = f"layers {describe(demonstration.layers)}"
    with tempfile.TemporaryDirectory() as place:
        rows = spectra.spectrum_rows(arguments.model, 4)
        twin = spectra.spectrum_rows(str(spectra.untrained_twin(arguments.model, Path(place), seed=0)), 4)
    images = {
        "laboratory-arms.png": arms_plot(demonstration.rows, f"{layers}, {arguments.scenes} scenes", "png"),
        "laboratory-sweep.png": sweep_plot(report, "png"),
        "laboratory-spectra.png": spectra.plot(rows, twin),
    }
    for name, content in images.items():
        (arguments.docs / "images" / name).write_bytes(content)
    compared = {part: "\n".join(render.arms_lines(demonstration.rows, part)) for part in _parts()}
    edit = demonstration.rows[1]
    head_size = len(rows[0].singular_values)
    text = Template(TEMPLATE.read_text("utf-8")).substitute(
        machine=machine_line(arguments.work),
        scenes=arguments.scenes,
        first_half=first.count,
        second_half=second.count,
        seeds=arguments.seeds,
        layers=layers,
        energy=f"{edit.energy_removed or 0:.0%}",
        moved=f"{edit.relative_change or 0:.0%}",
        demonstrated=f"{sum(demonstration.seconds.values()) / 60:.0f}",
        swept=f"{sweep.seconds / 60:.0f}",
        answers=f"{sweep.answers:,}",
        cells=len(report.ranked),
        winner="none" if report.winner is None else report.winner.cell.name,
        base="\n".join(render.base_lines(demonstration.rows[0])),
        **{f"arms_{part}": lines for part, lines in compared.items()},
        grids="\n\n".join(sweep.grids),
        ranking="\n".join(render.ranking_lines(report)),
        confirmation="\n".join(render.confirmation_lines(report)),
        claims="\n".join(render.claim_lines(sweep.contrasts)),
        found="\n".join(finding_lines(demonstration.rows, rows, twin, report, sweep.contrasts)),
        model=arguments.model,
        decoder_layers=len(rows),
        head_size=head_size,
        part_of_head=f"{SteerOptions().suppression.k / head_size:.0%}",
        kinds=len(world_named(world_name_for(arguments.model)).kinds),
        pairs=";".join(settings.layers),
        ks=",".join(map(str, settings.ks)),
        left_out=left_out_sentence(KS, settings.ks),
        channels=",".join(CHANNELS),
        spectra="\n".join(spectra.table(rows, twin, 4)),
    )
    document = arguments.docs / "laboratory.md"
    if document.is_file():
        for script, name in OF_OTHER_SCRIPTS:
            kept = section(document.read_text("utf-8"), script, name)
            text = with_section(text, script, name, kept)
    document.write_text(wrapped(text), encoding="utf-8")


def layer_pairs(model: str) -> tuple[str, ...]:
    """Return a model's layers two by two, in the form of `--layers`; a last odd one belongs to the pair before it."""
    count = len(attention_stack(open_checkpoint(resolve(model))).layers)
    starts = range(0, count - 1, 2)
    return tuple(f"{first}-{count - 1 if first + 3 > count - 1 and count % 2 else first + 1}" for first in starts)


def wrapped(text: str) -> str:
    """Return Markdown whose plain paragraphs have lines of up to 120 characters; the rest is kept."""
    return "\n\n".join(
        fill(" ".join(block.split()), 120, break_long_words=False, break_on_hyphens=False)
        if block[:1].isalnum() and any(len(line) > 120 for line in block.splitlines())
        else block
        for block in text.split("\n\n")
    )


def machine_line(work: Path) -> str:
    machine = describe_machine(work, "cpu")
    libraries = ", ".join(
        f"{name} {version}"
        for name, version in machine["libraries"].items()
        if name in ("qkedit", "torch", "transformers")
    )
    return (
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, {libraries}; {machine['date']}"
    )


def _parts() -> list[str]:
    return [CAPTIONS, *dict.fromkeys(measure.part for measure in MEASURES.values() if measure.part != CAPTIONS)]


def _watch(what: str):
    return lambda done, total: print(f"{what}: {done} of {total} arms", file=sys.stderr)


if __name__ == "__main__":
    main()
