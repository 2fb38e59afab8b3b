"""`qkedit drift`: measure how far an edit moves a model on the user's own images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.loading import LoadingFlags
from qkedit.cli.flags.model import BaseOption, ModelFlags
from qkedit.cli.flags.plugins import EditsOption, PluginsOption, PromptOption, chosen_plugins, joined
from qkedit.cli.output import aligned, command
from qkedit.errors import UsageError
from qkedit.prompts import CAPTION_PROMPT

if TYPE_CHECKING:
    from qkedit.evaluation.drift import Drift

WORST_SHOWN = 3


def drift(
    context: typer.Context,
    *,
    model: ModelFlags,
    base: BaseOption = None,
    images: Annotated[Path | None, flag("--images", help="A directory with pictures.")] = None,
    prompt: PromptOption = CAPTION_PROMPT,
    plugin: PluginsOption = None,
    edit: EditsOption = None,
    limit: Annotated[int, flag("--limit", help="Largest number of images, in the order of their names.", min=1)] = 100,
    max_new_tokens: Annotated[int, flag("--max-new-tokens", help="Largest number of tokens per answer.", min=1)] = 64,
    loading: LoadingFlags,
) -> None:
    """Measure how far an edit or plug-ins move a model on your own images.

    Without --base, an edited model is compared with the base in its manifest,
    and one with plug-ins or an --edit with itself without them, in one load.
    Two models are loaded one after the other.

    Example: qkedit drift ./edited --base ./Qwen2-VL-7B-Instruct --images ./photos
    """
    with command(context, loading.architectures) as output:
        from qkedit.cli.progress import counting_bar
        from qkedit.evaluation.drift import drift as measure
        from qkedit.evaluation.drift import pictures_in
        from qkedit.report.terminal_text import on_one_line
        from qkedit.steering.base import model_before

        name = model.name(context)
        plugins, edits = chosen_plugins(plugin, name), [str(place) for place in edit or ()]
        if images is None:
            raise UsageError("no images are given", where="--images", remedy="name a directory with pictures")
        before, base_revision = model_before(name, base, model.revision, alone=bool(plugins or edits))
        pictures, there = pictures_in(images, limit)
        with counting_bar(output, "answers") as on_image:
            found = measure(
                before,
                name,
                pictures,
                prompt=prompt,
                plugins=plugins,
                edits=edits,
                base_revision=base_revision,
                revision=model.revision,
                max_new_tokens=max_new_tokens,
                **loading.arguments(context),
                on_image=on_image,
            )
        if found.template != found.base_template:
            output.warn("the two models have different chat templates, so their prompts differ")
        fields = {
            "model": name,
            "base": before,
            "edits": edits,
            "plugins": [one.as_dict() for one in plugins],
            "loading": loading.recorded(context),
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
            "chat_template": found.template,
            "images": {"measured": len(pictures), "there": there},
            "results": [found.result()],
        }
        added = " + ".join([*edits, *([joined(plugins)] if plugins else [])])
        title = f"{name}{f' with {added}' if added else ''} against {before}"
        output.result(fields, f"{on_one_line(title)}, {len(pictures)} of {there} images\n\n{_described(found)}")


def _described(found: Drift) -> str:
    intervals = found.intervals()

    def value(name: str, form: str) -> str:
        between = intervals.get(name)
        interval = "" if between is None else f" ({between[0]:{form}} to {between[1]:{form}})"
        return f"{found.metrics[name]:{form}}{interval}"

    worst = found.worst[:WORST_SHOWN]
    lines = [
        ("kl", f"{value('kl', '.4g')} nats per token"),
        ("agreement", f"{value('agreement', '.3f')} of the next tokens"),
        ("overlap", f"{value('overlap', '.3f')}, F1 of the words of both answers"),
        ("identical", f"{value('identical', '.3f')} of the answers"),
    ]
    for place, image in enumerate(worst):
        found_there = f"{Path(image.image).name}: kl {image.mean_kl:.4g}, overlap {image.overlap:.3f}"
        lines.append(("farthest" if place == 0 else "then", found_there))
        # Answers follow the line of their own image.
        lines += [("  base", image.base), ("  edited", image.edited)]
    return aligned(lines)
