"""The common flags of the laboratory's commands, and their model and device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from qkedit.cli.flags.flag import MODE, flag
from qkedit.cli.flags.groups import FlagGroup
from qkedit.cli.flags.model import DeviceOption, ModelFlags
from qkedit.errors import UsageError

if TYPE_CHECKING:
    import typer

    from qkedit.laboratory.eval_set import SceneRange
    from qkedit.laboratory.worker import ModelSpec

SCENES = "Scenes and controls"

ScenesOption = Annotated[int, flag("--scenes", panel=SCENES, help="Number of synthetic scenes.")]
SceneSeedOption = Annotated[
    int,
    flag(
        "--scene-seed",
        panel=SCENES,
        help="Seed of the scenes; the demo models were not trained on those of the default seed.",
    ),
]
WorldOption = Annotated[
    str | None,
    flag(
        "--world",
        panel=SCENES,
        help="World of the scenes: small or crowded; by default small for demo-small, else crowded.",
    ),
]
SeedsOption = Annotated[int, flag("--seeds", panel=SCENES, help="Random controls per edit, one for each seed from 0.")]
DtypeOption = Annotated[
    str,
    flag(
        "--dtype",
        panel=MODE,
        help="Data type of the weights in memory: float32, bfloat16, float16 or auto (as stored).",
    ),
]
WorkersOption = Annotated[
    int | None,
    flag(
        "--workers",
        panel=MODE,
        help="Number of processes, each with a copy of the model. By default one per CPU core, or one per GPU.",
    ),
]


@dataclass(frozen=True)
class ExperimentFlags(FlagGroup):
    """The scenes and controls of an experiment, and how its model is run."""

    scenes: ScenesOption = 500
    scene_seed: SceneSeedOption = 2_000_000
    world: WorldOption = None
    seeds: SeedsOption = 5
    device: DeviceOption = "auto"
    dtype: DtypeOption = "float32"
    workers: WorkersOption = None

    def scene_range(self, model: str) -> SceneRange:
        """Return the scenes for a model. Raises UsageError for a world, a number or a seed that does not exist."""
        from qkedit.demo.worlds import world_name_for
        from qkedit.laboratory.eval_set import SceneRange

        return SceneRange(self.scenes, self.scene_seed, world=world_name_for(model, self.world))

    def model_and_workers(self, context: typer.Context, model: ModelFlags) -> tuple[ModelSpec, int]:
        """Return the model of the experiment, by default the demo's, and the number of processes.

        Raises:
            UsageError: the model is named twice, the device does not exist, or the number of workers is not positive.
        """
        from qkedit.demo import DEMO
        from qkedit.laboratory.worker import ModelSpec
        from qkedit.steering.engine.device import choose_device

        name = model.name(context) if model.is_named else DEMO
        device = choose_device(self.device)
        workers = self.workers
        if workers is None:
            workers = len(os.sched_getaffinity(0)) if device.type == "cpu" else 1
        if workers < 1:
            raise UsageError(f"{workers} is not positive", where="--workers", remedy="give 1 or more")
        return ModelSpec(name, model.revision, self.dtype, str(device)), workers
