"""Test tune: a planted optimum is found and confirmed, no edit wins without one, and interrupted searches resume."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image
from rich.console import Console

from qkedit.cli.flags.evaluation import named_tasks
from qkedit.demo import SMALL_DEMO
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.runs.local_model import LocalModel, Shared
from qkedit.laboratory import measures
from qkedit.laboratory.tuning import sampler, trial_worker
from qkedit.laboratory.tuning.data import BenchmarkData
from qkedit.laboratory.tuning.goal import guards, measure_at
from qkedit.laboratory.tuning.result import Ended, TuneReport, Verdict
from qkedit.laboratory.tuning.sampler import PastTrial, Sampler
from qkedit.laboratory.tuning.search import SearchSettings, Watch
from qkedit.laboratory.tuning.space import Candidate, SearchSpace
from qkedit.laboratory.tuning.tune import goal_of, tune_model
from qkedit.report.experiments.tune_plot import groups, tune_plot
from qkedit.report.experiments.tune_table import TuneTables, conclusion
from qkedit.runtime.editing import edit as edited
from qkedit.runtime.loading import LoadedModel
from tests.cli.command import qkedit
from tests.laboratory.small_eval_sets import demo_model, differing, weights_of
from tests.paths import ROOT

pytest.importorskip("optuna")

# 8 layers, 9 alternatives of heads, and 8 settings of modes, channel and retained share.
SPACE = SearchSpace(("each",), ("all", "each"), (1, 4), (), ("full", "symmetric"), (0.0, 0.5))
BUDGET = 60


@pytest.fixture(scope="module")
def planted() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts" / "tuning"))
        patch.setattr(measures, "RESAMPLES", 200)
        yield __import__("planted")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return demo_model()


def run(
    planted: ModuleType,
    loaded: LoadedModel,
    space: SearchSpace = SPACE,
    *,
    trials: int = BUDGET,
    out: Path | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> TuneReport:
    data = planted.Planted()
    data.remember(loaded.model)
    chosen = SearchSettings(trials, **{"controls": 1, **(settings or {})})
    model = LocalModel(SMALL_DEMO, dtype="float32", shared=Shared(loaded))
    goal = goal_of("hr", "recall:0.05", data.measures)
    return tune_model(model, data, space, goal, chosen, out=out, **{"drift_images": 0, "seed": 3, **options})


@pytest.fixture(scope="module")
def found(planted: ModuleType, loaded: LoadedModel) -> TuneReport:
    before = weights_of(loaded.model)
    report = run(planted, loaded)
    assert not differing(before, loaded.model)
    return report


def test_a_planted_head_is_found_and_beats_the_default_edit_on_other_questions(
    found: TuneReport, planted: ModuleType
) -> None:
    assert found.size == 8 * 9 * 8
    assert len(found.trials) == len({trial.edit for trial in found.trials}) == BUDGET
    assert found.best is not None
    assert (found.best.edit.layers, found.best.edit.heads) == (str(planted.LAYER), str(planted.HEAD))
    assert found.verdict is Verdict.CONFIRMED
    assert found.confirmation is not None
    to_default = found.confirmation.to_default["custom.hr"]
    assert to_default.high is not None
    assert to_default.high < 0
    assert found.command is not None
    assert f"--layers {planted.LAYER} --heads {planted.HEAD} " in found.command
    assert found.best in found.pareto


def test_the_report_is_printed_and_plotted(found: TuneReport) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(TuneTables(found, every_trial=True))
    text = console.export_text()
    assert "Confirmed: trial" in text
    # A list of names and values would be printed if the table did not fit into 80 columns.
    assert "trial layers heads modes channel left hr % − base" in " ".join(text.split())
    assert "breaks a guard" not in text
    assert found.command is not None
    assert found.command in " ".join(text.split())
    # The unit of a guard is that of the column.
    assert "recall may be 5 points worse than the base's" in " ".join(text.split())
    assert ": confirmed on the other half -->" in tune_plot(found, "svg").decode()
    assert json.loads(json.dumps(found.as_dict()))["verdict"] == "confirmed"


def test_an_unconfirmed_edit_is_not_called_a_winner(found: TuneReport) -> None:
    assert found.confirmation is not None
    assert found.best is not None
    report = replace(found, confirmation=replace(found.confirmation, is_better=False))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(TuneTables(report))
    text = " ".join(console.export_text().split())
    assert "Not confirmed: on the other half, trial" in text
    assert f"measure arm − base trial {found.best.number} − it" in text
    plot = tune_plot(report, "svg").decode()
    assert f"<!-- Trial {found.best.number} ({found.best.edit.name}): not confirmed on the other half -->" in plot
    assert "best, not confirmed" in plot
    assert "winner" not in text + plot


def test_an_edit_that_breaks_a_guard_on_the_other_half_asks_for_a_stricter_one(found: TuneReport) -> None:
    assert found.confirmation is not None
    broken = replace(found.confirmation, broken=("custom.recall",))
    assert broken.verdict is Verdict.NOT_CONFIRMED
    better = conclusion(replace(found, confirmation=broken))
    assert better.endswith(
        "improves custom.hr, but breaks the guard of custom.recall. A stricter guard (--no-worse) would choose an "
        "edit that has a margin."
    )
    neither = conclusion(replace(found, confirmation=replace(broken, is_better=False)))
    assert "does not certainly improve custom.hr (see its interval) and breaks the guard of custom.recall." in neither
    assert "more images would narrow the interval" in neither


def test_broken_guards_are_marked_and_missing_guards_are_noted(found: TuneReport) -> None:
    trials = (*found.trials[:-1], replace(found.trials[-1], broken=("custom.recall",)))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(TuneTables(replace(found, trials=trials, goal=replace(found.goal, guards=())), every_trial=True))
    text = " ".join(console.export_text().split())
    assert f"× {trials[-1].number} " in text
    assert text.endswith(
        "×: breaks a guard. In brackets 95% intervals over images. left: share of each mode that is "
        "kept. drift: nats per token from the base, on a few images. Guard: none."
    )


def test_if_no_edit_helps_the_second_half_is_not_used(
    planted: ModuleType, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tune.jsonl"
    opened: list[object] = []
    unchanged = trial_worker.open_checkpoint
    monkeypatch.setattr(trial_worker, "open_checkpoint", lambda files: opened.append(files) or unchanged(files))
    report = run(planted, loaded, SearchSpace(("0", "1"), ks=(1,)), out=out)
    assert len(opened) == 1  # not once per trial
    assert (report.verdict, report.best, report.confirmation, report.command) == (Verdict.NOTHING, None, None, None)
    assert len(report.trials) == report.size == 2
    assert conclusion(report).startswith("No edit is better than none: none of 2 edits that were tried")
    assert "confirmation" not in out.read_text()


def test_an_interrupted_search_ends_with_the_same_result(
    planted: ModuleType, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(planted, loaded, trials=6, out=tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    out = tmp_path / "tune.jsonl"
    for kept, torn in ((3, b""), (11, b'{"key": "layers')):
        out.write_bytes(b"".join(lines[:kept]) + torn)
        report = run(planted, loaded, trials=6, out=out)
        again = [{**json.loads(line), "seconds": 0} for line in out.read_bytes().splitlines()]
        assert again == [{**json.loads(line), "seconds": 0} for line in lines]
        assert report.resumed == kept - 1
        assert [trial.edit for trial in report.trials] == [trial.edit for trial in whole.trials]
    # A finished search needs no model.
    monkeypatch.setattr(LocalModel, "session", None)
    assert run(planted, loaded, trials=6, out=out).resumed == len(lines) - 1
    with pytest.raises(UsageError, match="holds another experiment, with other space"):
        run(planted, loaded, SearchSpace(("0",)), trials=6, out=out)


def test_the_progress_of_a_resumed_search_starts_after_the_earlier_trials(
    planted: ModuleType, loaded: LoadedModel, tmp_path: Path
) -> None:
    """Otherwise the remaining time would be estimated from trials that took none."""
    out = tmp_path / "tune.jsonl"
    for trials, expected in ((3, [0, 1, 2, 3]), (5, [3, 4, 5]), (5, [5])):
        told: list[tuple[int, int]] = []
        watch = Watch(lambda done, total, told=told: told.append((done, total)))
        run(planted, loaded, trials=trials, out=out, watch=watch)
        assert told == [(done, trials) for done in expected]


def test_a_trial_with_too_much_drift_is_not_evaluated(planted: ModuleType, loaded: LoadedModel) -> None:
    report = run(
        planted, loaded, SearchSpace(("3",), ks=(4,)), settings={"most_drift": 1e-9}, drift_images=1, prunes=False
    )
    assert [trial.ended for trial in report.trials] == [Ended.TOO_FAR]
    assert report.trials[0].effect.drift is not None
    with pytest.raises(UsageError, match="no drift is measured"):
        run(planted, loaded, settings={"most_drift": 1.0})


def test_weights_that_are_not_restored_are_reported(
    planted: ModuleType, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights_of(loaded.model)
    monkeypatch.setattr(trial_worker.ModelEdit, "disable", lambda edit: None)
    with pytest.raises(QkeditError, match="not the original ones any more"):
        run(planted, loaded, SearchSpace(("3",), ks=(4,)), trials=1)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            parameter.copy_(before[name])


def test_protected_directions_and_spared_heads_are_choices_and_found_once(
    planted: ModuleType, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, found = {2: (0, 3), 3: tuple(range(8))}, []
    monkeypatch.setattr(trial_worker, "copying_heads", lambda model: found.append("heads") or shown)
    sink = trial_worker.sink_of
    monkeypatch.setattr(trial_worker, "sink_of", lambda model: found.append("sink") or sink(model))
    space = SearchSpace(("2", "3"), ks=(4,), protects=(0, 4), spares=("none", "induction"))
    report = run(planted, loaded, space, trials=8, prunes=False, sampler="grid")
    assert found == ["heads", "sink"]
    assert [(trial.edit.protect, trial.edit.spare) for trial in report.trials[:4]] == [
        (4, "induction"),
        (4, "none"),
        (0, "induction"),
        (0, "none"),
    ]
    for trial in report.trials:
        edit = trial.edit
        assert (trial.ended is Ended.NO_HEAD) == (edit.layers == "3" and edit.spare == "induction")
        if trial.ended is Ended.NO_HEAD:
            assert (trial.effect.energy_removed, trial.effect.drift, trial.values) == (None, None, {})
            continue
        protect = f"sink:{edit.protect}" if edit.protect else "none"
        with (
            patch("qkedit.runtime.editing.copying_heads", return_value=shown),
            edited(loaded.model, layers=edit.layers, protect=protect, spare=edit.spare, device="cpu") as made,
        ):
            heads = [head for record in made.records for head in record.heads]
        assert len(heads) == (6 if edit.spare == "induction" else 8)
        assert trial.effect.energy_removed == pytest.approx(fmean(head.energy_removed for head in heads), rel=1e-6)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(TuneTables(report, every_trial=True))
    text = console.export_text()
    assert "no head left" in text
    assert "2 trials not asked (every head is spared)." in " ".join(text.split())
    assert "sink:4" in text


def test_the_symmetric_channel_comes_first_and_only_the_full_one_protects(
    planted: ModuleType, loaded: LoadedModel
) -> None:
    space = SearchSpace(("0", "mid"), ks=(4,), channels=("full", "symmetric"), protects=(0, 8))
    edits = space.candidates()
    assert [(edit.channel, edit.protect) for edit in edits[:3]] == [("symmetric", 0), ("full", 8), ("full", 0)]
    assert len(space) == len(edits) == 6
    assert all(space.at(space.places(edit)) == edit for edit in edits)
    report = run(planted, loaded, space, trials=2)
    tried = [trial.edit for trial in report.trials]
    assert [(edit.channel, edit.protect) for edit in tried] == [("symmetric", 0), ("full", 0)]
    assert tried[0].layers == tried[1].layers != "0"
    for channels, protects in ((("symmetric",), (0, 8)), (("symmetric", "full"), (8,))):
        with pytest.raises(UsageError, match="symmetric channel cannot protect"):
            SearchSpace(("0",), channels=channels, protects=protects)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="there is no role 'copying'"):
        SearchSpace(("0",), spares=("copying",))  # type: ignore[arg-type]


def test_the_sampler_begins_with_all_heads_per_layer_and_prunes_weak_layers() -> None:
    space = SearchSpace(tuple(map(str, range(12))), ("all", "0", "1"), (1, 2))
    order = Sampler(space)
    past: list[PastTrial] = []
    while len(past) < order.startup_trials:
        edit = order.next(past)
        assert edit is not None
        past.append(PastTrial(edit, (float(len(past)), 1.0), False))
    assert sorted(trial.edit.layers for trial in past) == sorted(map(str, range(12)))
    assert {trial.edit.heads for trial in past} == {"all"}
    assert order.gives_up(past, [100.0])
    assert not order.gives_up(past, [0.0])
    assert order.next(past) == Sampler(space).next(past)
    assert [trial.edit for trial in past].count(order.next(past) or past[0].edit) == 0
    grid = Sampler(space, "grid", prunes=False)
    assert grid.next([]) == space.candidates()[0]


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "find_spec", lambda name: None)
    with pytest.raises(QkeditError, match=r"Optuna is not installed; run: pip install 'qkedit\[tune\]'"):
        Sampler(SPACE)
    assert Sampler(SPACE, "random", prunes=False).next([]) is not None


def test_invalid_options_are_named_before_a_missing_package(tmp_path: Path) -> None:
    assert qkedit("tune", "-b", "nonsense").sentence().startswith("there is no benchmark 'nonsense'")
    assert qkedit("eval", "-b", "nonsense").sentence().startswith("there is no benchmark 'nonsense'")
    sentence = qkedit("tune", SMALL_DEMO, "--k", "99", "--out", tmp_path / "t.jsonl").sentence()
    assert sentence == (
        "layer 0, k 99: the edit takes 64 of 64 modes of a head, so no index-matched control exists; take at most "
        "half of a head's modes with --k, or --controls 0."
    )
    assert not list(tmp_path.iterdir())


def test_the_printed_command_makes_the_edit() -> None:
    edit = Candidate("0-1, 3", "2", None, 0.25, "symmetric", 0.5)
    assert edit.command("my model") == (
        "qkedit steer 'my model' --layers '0-1, 3' --heads 2 --energy 0.25 --channel symmetric --retain 0.5 "
        "--out ./edited"
    )
    other = Candidate("3", "all", 2, None, "full", 0.0, 4, "induction", "folded")
    assert other.name == "layers 3, k 2, full, retain 0, folded, protect sink:4, spare induction"
    assert other.command("m") == (
        "qkedit steer m --layers 3 --k 2 --product folded --protect sink:4 --spare induction --out ./edited"
    )
    assert other.options().product == "folded"


def test_both_products_are_alternatives() -> None:
    space = SearchSpace(("2",), ks=(4,), products=("raw", "folded"))
    assert [edit.product for edit in space.candidates()] == ["raw", "folded"]
    assert all(space.at(space.places(edit)) == edit for edit in space.candidates())
    with pytest.raises(UsageError, match="there is no product 'fold'"):
        SearchSpace(("2",), products=("fold",))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["hr:x", "hr", "beauty:0.1", "hr:-1", "hr:2"])
def test_invalid_guards_are_refused(planted: ModuleType, text: str) -> None:
    with pytest.raises(UsageError):
        guards(text, planted.Planted().measures)


def test_a_short_name_must_be_unambiguous() -> None:
    known = {name: measures.Measure(name, name[:-3], "hr", "hr") for name in ("pope.random.hr", "pope.popular.hr")}
    assert measure_at("random.hr", known, "--objective").name == "pope.random.hr"
    with pytest.raises(UsageError, match="could mean 2 measures"):
        measure_at("hr", known, "--objective")
    # Measures of the demo's scenes have names of one word.
    with pytest.raises(UsageError, match=r"'nonsense' is not a measure; choose among .*chair_s"):
        measure_at("nonsense", measures.MEASURES, "--objective")


def test_the_command_takes_custom_questions_or_scenes(tmp_path: Path) -> None:
    rows = []
    for number in range(4):
        Image.new("RGB", (64, 64), (number * 60, 90, 120)).save(tmp_path / f"{number}.png")
        for truth in ("yes", "no"):
            question = {"image": f"{number}.png", "question": "Is there a cup?", "truth": truth}
            rows.append({"id": f"{number} {truth}", **question})
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--layers", "3", "--k", "1", "--channel", "full", "--retain", "0", "--controls", "0", "--trials", "1"]
    asked = [SMALL_DEMO, "-b", "custom", "--questions", tmp_path / "q.jsonl", "--images", tmp_path]
    words += ["--max-new-tokens", "2"]
    chosen = ["--objective", "accuracy", "--no-worse", "none", "--drift-images", "1"]
    result = qkedit("tune", *asked, *words, *chosen, "--json")
    assert result.code in (0, 3)
    assert result.document["verdict"] in ("nothing", "confirmed", "not confirmed")
    assert len(result.document["trials"]) == 1
    missing = qkedit("tune", *asked, *words)
    assert (missing.code, "no objective is named" in missing.stderr) == (2, True)
    words += ["--protect", "none,sink:4", "--spare", "none,induction", "--product", "raw,folded"]
    scenes = qkedit("tune", SMALL_DEMO, "--scenes", "4", *words, "--drift-images", "0", "--out", tmp_path / "s.jsonl")
    assert scenes.code in (0, 3)
    assert "1 trial of 8 edits" in scenes.stdout
    assert "'sunk' cannot be protected" in qkedit("tune", *words, "--protect", "none,sunk").stderr


def test_answers_are_scored_by_the_named_parser(tmp_path: Path) -> None:
    rows = [{"id": str(n), "image": f"{n}.png", "question": "Is there a cup?", "truth": "yes"} for n in range(4)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        Image.new("RGB", (8, 8)).save(tmp_path / str(row["image"]))
    identities, accuracies = [], []
    for parser in (None, "official", "vcd"):
        tasks = named_tasks(["custom"], (), tmp_path / "q.jsonl", None, parser=parser)
        data = BenchmarkData(tasks, tmp_path)
        units = (*data.choice, *data.confirmation)
        (score,) = data.scores(units, {f"custom {row['id']}": "Yes, no doubt." for row in rows}).values()
        identities.append(data.identity())
        accuracies.append(score.metrics["accuracy"])
    assert accuracies == [0, 0, 1]  # `official` reads "no" anywhere, `vcd` the first word
    # A file of results by one parser is not resumed with another; those without a named one keep their identity.
    assert [one.pop("rules", None) for one in identities] == [None, {"custom": "official"}, {"custom": "vcd"}]
    assert identities[0] == identities[1] == identities[2]
    words = ["tune", "demo", "-b", "custom", "--questions", tmp_path / "q.jsonl", "--images", tmp_path]
    assert "'nonsense'" in qkedit(*words, "--parser", "nonsense").sentence()
    assert qkedit(*words, "--variant", "words").sentence().startswith("--variant: ")
    assert qkedit("tune", "--parser", "vcd").sentence().startswith("--benchmark: no benchmark is named")


def test_a_trade_off_that_breaks_a_guard_is_drawn_as_one_that_does(found: TuneReport) -> None:
    assert found.best in found.pareto
    broken = replace(found.best, broken=("custom.recall",))
    trials = tuple(broken if trial is found.best else trial for trial in found.trials)
    drawn = {label: shown for label, (shown, *_) in groups(replace(found, trials=trials, best=None)).items()}
    assert broken in drawn["breaks a guard"]
    assert broken not in (*drawn["trade-off"], *drawn["keeps the guards"])
