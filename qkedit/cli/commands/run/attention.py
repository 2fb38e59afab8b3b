"""`qkedit attention`: measure where a model's answers attend, and whether hallucinated mentions look at the image."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkedit.cli.delivery import deliver, plot_file
from qkedit.cli.flags.evaluation import SplitOption, VariantOption
from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.laboratory import WorldOption
from qkedit.cli.flags.loading import LoadingFlags
from qkedit.cli.flags.model import ModelFlags
from qkedit.cli.flags.plugins import EditsOption, ImagesOption, PluginsOption, PromptOption, chosen_plugins, joined
from qkedit.cli.output import command
from qkedit.errors import UsageError
from qkedit.prompts import CAPTION_PROMPT

if TYPE_CHECKING:
    from qkedit.evaluation.attention.prompt_images import AskedImages


def attention(
    context: typer.Context,
    *,
    model: ModelFlags,
    image: ImagesOption = None,
    images: Annotated[Path | None, flag("--images", help="A directory of images, with a prompt for each.")] = None,
    scenes: Annotated[
        int | None, flag("--scenes", help="This many scenes of the miniature world, with their objects.", min=1)
    ] = None,
    world: WorldOption = None,
    data: Annotated[
        Path | None, flag("--data", help="CHAIR's ground truth, as for score and eval, to find hallucinated mentions.")
    ] = None,
    split: SplitOption = None,
    variant: VariantOption = None,
    prompt: PromptOption = CAPTION_PROMPT,
    plugin: PluginsOption = None,
    edit: EditsOption = None,
    plot: Annotated[Path | None, flag("--plot", help="Write the shares by layer to this .png, .svg or .pdf.")] = None,
    limit: Annotated[int, flag("--limit", help="Largest number of images, in the order of their names.", min=1)] = 100,
    max_new_tokens: Annotated[int, flag("--max-new-tokens", help="Largest number of tokens per answer.", min=1)] = 128,
    batch_size: Annotated[int, flag("--batch-size", help="Number of prompts per batch.", min=1)] = 8,
    loading: LoadingFlags,
) -> None:
    """Measure where a model's answers attend: before the image, on it, after it, or at the answer so far.

    With ground truth, the tokens of true and of hallucinated mentions are shown, too, and the
    visual attention ratio with an AUROC: how well a low ratio tells hallucinated mentions.
    Several --image are in one prompt; --images asks about each image of a directory.

    Example: qkedit attention ./llava-1.5-7b-hf --images ./val2014 --data ./COCO --plot attention.png
    """
    with command(context, loading.architectures) as output:
        from qkedit.cli.progress import counting_bar
        from qkedit.demo.worlds import world_name_for
        from qkedit.evaluation.attention.measure import diagnose
        from qkedit.report.attention_plot import attention_plot
        from qkedit.report.attention_table import attention_report
        from qkedit.report.plots import check_plot

        name = model.name(context)
        plugins, edits = chosen_plugins(plugin, name), [str(place) for place in edit or ()]
        if plot is not None:
            check_plot(plot, "--plot")
        asked = _asked(image, images, scenes, world_name_for(name, world), data, split, variant, limit)
        with counting_bar(output, "answers") as on_answer:
            found = diagnose(
                name,
                asked,
                prompt=prompt,
                plugins=plugins,
                edits=edits,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                revision=model.revision,
                **loading.arguments(context),
                on_answer=on_answer,
            )
        fields = {
            "model": name,
            "edits": edits,
            "plugins": [one.as_dict() for one in plugins],
            "loading": loading.recorded(context),
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
            **found.as_dict(),
            "plot": None if plot is None else str(plot),
        }
        title = " + ".join([name, *edits, *([joined(plugins)] if plugins else [])])
        deliver(output, fields, attention_report(found), plot_file(plot, partial(attention_plot, found, title)))


def _asked(
    image: list[Path] | None,
    images: Path | None,
    scenes: int | None,
    world: str,
    data: Path | None,
    split: str | None,
    variant: str | None,
    limit: int,
) -> AskedImages:
    """Return the images to ask about. Raises UsageError for nothing, or for two things at once."""
    from qkedit.demo.scenes import HELD_OUT_SEED, make_scenes
    from qkedit.demo.worlds import world_named
    from qkedit.evaluation.attention.prompt_images import of_files, of_scenes
    from qkedit.evaluation.drift import pictures_in

    given = [option for option, value in (("--image", image), ("--images", images), ("--scenes", scenes)) if value]
    if len(given) != 1:
        what = "no images are given" if not given else f"{' and '.join(given)} exclude each other"
        raise UsageError(what, where="--images", remedy="give one of --image, --images and --scenes")
    if scenes is not None:
        if data is not None:
            raise UsageError("the objects of scenes are known", where="--data", remedy="leave it out")
        return of_scenes(make_scenes(scenes, HELD_OUT_SEED, world=world_named(world)))
    if data is None and (split is not None or variant is not None):
        raise UsageError("there is no ground truth", where="--data", remedy="name the directory with CHAIR's data")
    prompts = [image] if image else [[file] for file in pictures_in(images, limit)[0]] if images else []
    return of_files(prompts, data, split, variant or "official")
