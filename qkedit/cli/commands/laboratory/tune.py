"""`qkedit tune`: search for the edit that helps on the user's model and images, and confirm it on other images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkedit.cli.delivery import deliver, plot_file
from qkedit.cli.flags.evaluation import (
    ParserOption,
    QuestionsOption,
    VariantOption,
    benchmark_flag,
    check_benchmarks,
    named_tasks,
    required_data,
)
from qkedit.cli.flags.flag import flag, utf8
from qkedit.cli.flags.laboratory import WorldOption
from qkedit.cli.flags.loading import LoadingFlags
from qkedit.cli.flags.model import ModelFlags
from qkedit.cli.flags.plugins import chosen_plugins
from qkedit.cli.flags.tuning import ChoiceFlags, SearchFlags, SpaceFlags
from qkedit.cli.output import GO_ON, Output, command
from qkedit.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from qkedit.laboratory.tuning.data import TuningData
    from qkedit.laboratory.tuning.result import TuneReport

QUESTIONS = "Questions: your own, or the demo's scenes without --benchmark"


def tune(
    context: typer.Context,
    *,
    model: ModelFlags,
    benchmark: Annotated[list[str] | None, benchmark_flag(QUESTIONS)] = None,
    data: Annotated[
        Path | None, flag("--data", panel=QUESTIONS, help="The directory with the benchmark's published files.")
    ] = None,
    questions: QuestionsOption = None,
    parser: ParserOption = None,
    variant: VariantOption = None,
    images: Annotated[Path | None, flag("--images", panel=QUESTIONS, help="The directory of the images.")] = None,
    limit: Annotated[
        int | None, flag("--limit", panel=QUESTIONS, help="Only the first questions of each split.", min=1)
    ] = None,
    prompt: Annotated[
        str | None,
        flag("--prompt", panel=QUESTIONS, help="Prompt instead of the benchmark's, as for eval.", callback=utf8),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        flag("--max-new-tokens", panel=QUESTIONS, help="Largest number of tokens per answer, as for eval.", min=1),
    ] = None,
    batch_size: Annotated[
        int, flag("--batch-size", panel=QUESTIONS, help="Number of questions per batch.", min=1)
    ] = 8,
    scenes: Annotated[int, flag("--scenes", panel=QUESTIONS, help="Number of the demo's scenes.")] = 200,
    scene_seed: Annotated[int, flag("--scene-seed", panel=QUESTIONS, help="Seed of the demo's scenes.")] = 2_000_000,
    world: WorldOption = None,
    space: SpaceFlags,
    choice: ChoiceFlags,
    search: SearchFlags,
    out: Annotated[
        Path | None,
        flag("--out", "-o", help="Write results to this file (JSON lines); an interrupted search resumes from it."),
    ] = None,
    plot: Annotated[Path | None, flag("--plot", help="Write a plot of the trade-offs: .png, .svg or .pdf.")] = None,
    detail: Annotated[bool, flag("--detail", help="Show every trial, not only the best.")] = False,
    loading: LoadingFlags,
) -> None:
    """Search for the edit that helps on your model and images, and confirm it.

    The model is loaded once, edits are made in memory, and images are drawn into
    two halves: edits are chosen on one; the best one, random controls, steer's
    default edit and the base answer the other. A guard limits what other measures
    may lose; by default no recall may fall by more than 2 points. Exit code 0: an
    edit is confirmed, and its command is printed; 3: no edit was found that is
    better than none.

    Example: qkedit tune qwen2-vl -b custom --questions q.jsonl --images ./photos --objective hr --out tune.jsonl
    """
    with command(context, loading.architectures) as output:
        from qkedit.cli.progress import counting_bar, in_words
        from qkedit.demo import DEMO
        from qkedit.demo.worlds import world_name_for
        from qkedit.evaluation.runs.local_model import LocalModel
        from qkedit.laboratory.eval_set import SceneRange
        from qkedit.laboratory.tuning.data import BenchmarkData
        from qkedit.laboratory.tuning.scenes import SceneData
        from qkedit.laboratory.tuning.search import Watch
        from qkedit.laboratory.tuning.tune import goal_of, tune_model
        from qkedit.report.files import check_target
        from qkedit.report.plots import check_plot

        check_benchmarks(benchmark or ())
        if plot is not None:
            check_plot(plot, "--plot")
        if out is not None:
            check_target(out, (".jsonl",), "--out")
        name = model.name(context) if model.is_named or benchmark else DEMO
        # Scenes are asked in float32, as by `sweep`: small models gain nothing from 16 bits on a CPU.
        dtype = "float32" if loading.dtype == "auto" and not benchmark else loading.dtype
        local = LocalModel(
            name,
            model.revision,
            chosen_plugins(None, name),
            loading.chosen_device(),
            dtype,
            batch_size,
            loading.trust_remote_code,
            loading.chat_template,
            loading.placement(context),
        )
        settings, wanted = search.settings(choice), space.space()
        asked: TuningData
        if benchmark:
            if images is None:
                raise UsageError("no directory of images is given", where="--images", remedy="name their directory")
            given = required_data(data, questions)
            tasks = named_tasks(benchmark, (), given, max_new_tokens, parser=parser, variant=variant)
            asked = BenchmarkData(tasks, images, prompt=prompt, limit=limit, seed=search.seed)
        elif any(one is not None for one in (data, questions, images, parser, variant)):
            raise UsageError("no benchmark is named", where="--benchmark", remedy="name one, such as custom")
        else:
            asked = SceneData(SceneRange(scenes, scene_seed, world=world_name_for(name, world)))
        goal = goal_of(choice.objective, choice.no_worse, asked.measures)
        if out is not None:
            output.after_interruption = f"{GO_ON} from what {out} holds"

        def estimated(seconds: float) -> None:
            output.progress(f"about {in_words(seconds)} for the other trials and the confirmation")

        with counting_bar(output, "trials") as trials:
            report = tune_model(
                local,
                asked,
                wanted,
                goal,
                settings,
                sampler=search.sampler,  # type: ignore[arg-type]  # checks the name itself
                seed=search.seed,
                prunes=search.prune,
                drift_images=search.drift_images,
                out=out,
                watch=Watch(trials, estimated),
            )
        for sentence in report.warnings:
            output.warn(sentence)
        _print(output, report, plot, out, detail)


def _print(output: Output, report: TuneReport, plot: Path | None, out: Path | None, detail: bool) -> None:
    from qkedit.laboratory.tuning.result import Verdict
    from qkedit.report.experiments.tune_plot import tune_plot
    from qkedit.report.experiments.tune_table import TuneTables

    not_found = None
    if report.verdict is not Verdict.CONFIRMED:
        not_found = VerificationError(
            "no edit is confirmed to improve it and to keep the guards",
            where=report.goal.objective.name,
            remedy="leave the model as it is, or search another space or with more images",
        )
    files = plot_file(plot, partial(tune_plot, report))
    deliver(output, report.as_dict(), TuneTables(report, detail), files, done=[out], check=not_found)
