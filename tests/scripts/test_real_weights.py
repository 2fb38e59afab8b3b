"""Test the measurements on real weights with models of known answers; nothing is downloaded."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.files.records import MeasuredItem
from tests.paths import ROOT
from tests.scripts.loading import SCRIPTS, load_script

WORDS = 500


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS / "documents"))  # like Python for a script
    yield load_script("real_weights")
    for name in [name for name in sys.modules if name.startswith(("laboratory_document", "real_weights_document"))]:
        del sys.modules[name]


class Tokenizer:
    """Every word is a token, numbered by its first occurrence."""

    all_special_ids = (0, 1)

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __len__(self) -> int:
        return WORDS

    def __call__(self, text: str, **options: Any) -> SimpleNamespace:
        ids = [self.known.setdefault(word, 2 + len(self.known) % (WORDS - 2)) for word in text.split()]
        return SimpleNamespace(input_ids=torch.tensor([ids]))


class Copier:
    """Predicts the token that followed the last earlier occurrence of the present one, and `favourite` otherwise."""

    def __init__(self, favourite: int, *, copies: bool) -> None:
        self.favourite, self.copies = favourite, copies

    def __call__(self, ids: torch.Tensor, *, use_cache: bool, logits_to_keep: int = 0) -> SimpleNamespace:
        logits = torch.zeros(*ids.shape, WORDS)
        for row, tokens in zip(logits, ids.tolist(), strict=True):
            for place, token in enumerate(tokens):
                earlier = tokens[:place]
                found = len(earlier) - 1 - earlier[::-1].index(token) if token in earlier else None
                row[place, self.favourite if found is None or not self.copies else tokens[found + 1]] = 9.0
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def test_a_copying_and_a_repeating_model_have_the_expected_losses(script: ModuleType) -> None:
    measures = import_module("real_weights_document.measures")
    tokenizer = Tokenizer()
    given = measures.material(tokenizer, "a b c d\n\ne f")
    singular, several = given.verbs
    assert len(given.sequences) == measures.SEQUENCES
    assert torch.equal(given.sequences[:, : measures.COPIED], given.sequences[:, measures.COPIED :])
    items, before = measures.measure(Copier(several, copies=True), given, None)
    again, _ = measures.measure(Copier(singular, copies=False), given, before)

    def share(found: Sequence[MeasuredItem], metric: Any) -> float:
        value = metric.value_of(measures.having(found, metric))
        assert value is not None
        return float(value)

    # A drawn token may occur twice in the first half, and then the last occurrence is not the one to copy.
    assert share(items, measures.COPYING) > 0.8
    assert share(again, measures.COPYING) < 0.05
    assert share(items, measures.GRAMMAR) == share(again, measures.GRAMMAR) == 0.5  # the plural, which is never right
    assert share(items, measures.SAME) == 1.0
    assert share(again, measures.SAME) < 0.9
    own = next(item for item in items if item.id == "own 0")
    wrong = math.log(math.exp(9) + WORDS - 1)  # no token of "a b c d" is predicted
    assert own.sums["loss"] == pytest.approx((3 * wrong, 3.0))


def test_pooled_repetitions_keep_the_mean(script: ModuleType) -> None:
    measures = import_module("real_weights_document.measures")
    runs = [[MeasuredItem("x", {"loss": (value, 2.0)}, group="x")] for value in (1.0, 3.0)]
    assert measures.pooled(runs) == [MeasuredItem("x", {"loss": (2.0, 2.0)}, group="x")]


def test_results_can_be_resumed_for_the_same_model_only(script: ModuleType, tmp_path: Path) -> None:
    results, arms = (import_module(f"real_weights_document.{name}") for name in ("results", "arms"))
    file, items = tmp_path / "results.jsonl", [MeasuredItem("x", {"loss": (1.5, 2.0)}, group="x")]
    first = results.Results(file, {"weights": "a"})
    first.add(arms.EDIT, items, {"energy_removed": 0.5})
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"arm": "torn')
    second = results.Results(file, {"weights": "a"})
    assert second.of(arms.EDIT) == items
    assert second.facts_of(arms.EDIT) == {"energy_removed": 0.5}
    assert second.of(arms.SYMMETRIC) is None
    assert file.read_bytes() == whole
    with pytest.raises(UsageError, match="another model"):
        results.Results(file, {"weights": "b"})


def test_every_arm_is_measured_once(script: ModuleType) -> None:
    arms = import_module("real_weights_document.arms")
    keys = [str(arm.as_dict()["steer"]) for arm in arms.ARMS]
    assert len(set(keys)) == len(keys) == len(arms.EDITS) + len(arms.CONTROLS) * arms.SEEDS
    assert len({arm.name for arm in arms.ARMS}) == len(keys)


def test_the_table_has_differences_intervals_and_ranges(script: ModuleType, tmp_path: Path) -> None:
    results, arms, tables = (import_module(f"real_weights_document.{name}") for name in ("results", "arms", "tables"))

    def items(loss: float, same: float) -> list[MeasuredItem]:
        text = [
            MeasuredItem(f"own {place}", {"loss": (loss * 10, 10.0), "same": (same * 10, 10.0)}, group=f"own {place}")
            for place in range(2)
        ]
        others = [MeasuredItem(name, {name: (1.0, 1.0)}, group=name) for name in ("copying", "grammar")]
        return [*text, *others]

    found = results.Results(tmp_path / "results.jsonl", {"weights": "a"})
    found.add(script.Arm("base"), items(3.0, 1.0), {})
    found.add(arms.EDIT, items(3.5, 0.7), {"energy_removed": 0.25})
    for place, arm in enumerate(arms.CONTROLS["index-matched of k 4"][1]):
        found.add(arm, items(3.1 + 0.01 * place, 0.9), {"energy_removed": 0.05})
    lines = list(tables.cost_lines(found))
    assert lines[0].startswith("Unedited: perplexity 20.1 on our paragraphs and 20.1 on all texts (20 tokens)")
    assert any(line.startswith("| k 4 | 25% | +0.50 [+0.50, +0.50] | 70 [70, 70] |") for line in lines)
    assert any(line.startswith("| index-matched of k 4, 5 seeds | 5% | +0.12 [+0.12, +0.12] |") for line in lines)
    assert any(line.startswith("|   lowest to highest |  | +0.10 to +0.14 | 90 to 90 |") for line in lines)
    assert any(line.startswith("| k 4 − index-matched | +0.38 [+0.38, +0.38] | −20 [−20, −20] |") for line in lines)


def test_a_wrongly_loaded_model_is_refused(script: ModuleType) -> None:
    smollm = import_module("real_weights_document.smollm")
    smollm.refuse_unless_english(19.0)
    for perplexity in (31.0, math.inf, math.nan):
        with pytest.raises(QkeditError, match="no sound model of English"):
            smollm.refuse_unless_english(perplexity)
    assert len(smollm.ENGLISH.read_text("utf-8").strip().split("\n\n")) == 6


def test_both_documents_have_the_section(script: ModuleType) -> None:
    """The script of the laboratory keeps the section in the document."""
    sections = import_module("laboratory_document.sections")
    document = (ROOT / "docs" / "laboratory.md").read_text("utf-8")
    template = (SCRIPTS / "documents" / "laboratory_document" / "laboratory.md").read_text("utf-8")
    lines = sections.section(document, script.SCRIPT, script.SECTION)
    assert sum(line.startswith("| ") for line in lines) > 30
    assert "## Real weights\n" in template
    filled = sections.with_section(template, script.SCRIPT, script.SECTION, lines)
    assert sections.section(filled, script.SCRIPT, script.SECTION) == lines
