"""What the laboratory's commands have in common: their flags, and which model on which device they use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

from qkedit.checkpoint.presets import DEMO
from qkedit.cli import completion
from qkedit.cli.options import MODE, flag

if TYPE_CHECKING:
    import typer

    from qkedit.laboratory.worker import ModelSpec

SCENES = "Scenes and controls"

ScenesOption = Annotated[int, flag("--scenes", panel=SCENES, help="How many synthetic scenes.")]
SceneSeedOption = Annotated[
    int,
    flag(
        "--scene-seed",
        panel=SCENES,
        help="Seed of the scenes; the demo model was not trained on those of the default.",
    ),
]
SeedsOption = Annotated[int, flag("--seeds", panel=SCENES, help="Random controls per edit, one for each seed from 0.")]
DtypeOption = Annotated[
    str,
    flag(
        "--dtype",
        panel=MODE,
        help="Data type of the weights in memory: float32, bfloat16, float16 or auto (as stored).",
        autocompletion=completion.dtypes,
    ),
]
WorkersOption = Annotated[
    int | None,
    flag(
        "--workers",
        panel=MODE,
        help="Processes, each with a copy of the model. By default one per CPU core, or one per GPU.",
    ),
]


def model_and_workers(
    context: typer.Context,
    argument: str | None,
    option: str | None,
    revision: str | None,
    device: str,
    dtype: str,
    workers: int | None,
) -> tuple[ModelSpec, int]:
    """Return the model to experiment on, the demo's when none is named, and how many processes share the work.

    Raises:
        UsageError: the model is named twice, there is no such device, or the number of workers is not positive.
    """
    from qkedit.cli.options import one_model
    from qkedit.errors import UsageError
    from qkedit.laboratory.worker import ModelSpec
    from qkedit.steering.engine.device import choose_device

    model = DEMO if argument is None and option is None else one_model(context, argument, option)
    chosen = choose_device(device)
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if chosen.type == "cpu" else 1
    if workers < 1:
        raise UsageError(f"{workers} workers do nothing", where="--workers", remedy="give 1 or more")
    return ModelSpec(model, revision, dtype, str(chosen)), workers
