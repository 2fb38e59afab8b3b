"""Run a model from Python: the commands `generate` and `kv-coherence`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qkedit.prompts import CAPTION_PROMPT

if TYPE_CHECKING:
    from PIL.Image import Image

    from qkedit.plugins.measures.kv_coherence import CoherenceReport
    from qkedit.plugins.requested import Plugins
    from qkedit.runtime.generation import Answer
    from qkedit.runtime.loading import LoadedModel

    Images = str | Path | Image | Sequence[str | Path | Image]


def generate(
    model: str | Path | LoadedModel,
    images: Images,
    prompt: str,
    *,
    plugins: Plugins = (),
    edits: Sequence[str | Path] = (),
    max_new_tokens: int = 128,
    **loading: Any,
) -> Answer:
    """Answer one prompt about images by greedy search.

    Args:
        model: a directory, a hub id, an alias or `demo`; or the result of `load`, to load once for many prompts.
        images: one or several image files, or images of Pillow.
        prompt: the question, without a chat template.
        plugins: the plug-ins to attach during the call, such as `qkedit.SCR()`, or by text as for `evaluate`; those
            that are attached to the directory on the command line do not act here.
        edits: directories of edits, applied to the loaded weights during the call.
        max_new_tokens: the maximum length of the answer.
        loading: `revision`, `device`, `dtype` and other arguments of `load`, if `model` is a name.

    Returns:
        The answer; its `report` is that of the plug-ins.

    Raises:
        QkeditError: the model cannot be loaded, an image cannot be read, or the plug-ins do not fit the model.

    Example:
        >>> qkedit.generate("demo", [picture], "Please describe this image in detail.").text
    """
    from contextlib import nullcontext

    from qkedit.images import read_image
    from qkedit.plugins.requested import requested_plugins
    from qkedit.runtime.editing import edit
    from qkedit.runtime.generation import respond

    one = isinstance(images, str | Path) or hasattr(images, "convert")
    given = cast("Sequence[Any]", [images] if one else images)
    pictures = [read_image(Path(image)) if isinstance(image, str | Path) else image for image in given]
    loaded = _loaded(model, loading)
    made = requested_plugins(plugins, loaded.name)
    with edit(loaded, list(edits)) if edits else nullcontext():
        return respond(loaded, pictures, prompt, made, max_new_tokens=max_new_tokens)


def _loaded(model: str | Path | LoadedModel, loading: Mapping[str, Any]) -> LoadedModel:
    from qkedit.errors import UsageError
    from qkedit.runtime.loading import LoadedModel, load

    if isinstance(model, LoadedModel):
        if loading:
            raise UsageError("the model is loaded already", where=", ".join(loading), remedy="give them to `load`")
        return model
    if not isinstance(model, str | Path):
        raise UsageError(
            f"{type(model).__name__} comes without its processor",
            where="model",
            remedy="give its name, or what `qkedit.load` returns",
        )
    return load(str(model), **loading)


def kv_coherence(
    model: str | Path | LoadedModel,
    images: Images,
    *,
    prompt: str = CAPTION_PROMPT,
    plugins: Plugins = (),
    **loading: Any,
) -> CoherenceReport:
    """Measure how well a model's keys form a picture of the image, after plug-ins.

    KV-coherence is the mean cosine of adjacent keys minus that of all pairs.

    Args:
        model: as for `generate`.
        images: as for `generate`.
        prompt: the text after the images.
        plugins: the plug-ins that act before the measurement, as for `generate`.
        loading: as for `generate`.

    Returns:
        The measures of every layer, and the keys of the first image.

    Raises:
        QkeditError: as for `generate`.

    Example:
        >>> before, after = (qkedit.kv_coherence(demo, [picture], plugins=own) for own in ((), [qkedit.DSCR()]))
        >>> [layer.coherence for layer in after.layers]
    """
    from qkedit.plugins.measures.kv_coherence import CoherenceReport, KeyCoherence
    from qkedit.plugins.requested import requested_plugins

    loaded = _loaded(model, loading)
    measured = [*requested_plugins(plugins, loaded.name), KeyCoherence()]
    answer = generate(loaded, images, prompt, plugins=measured, max_new_tokens=1)
    assert answer.report is not None
    found = answer.report.plugins[KeyCoherence.name]
    assert isinstance(found, CoherenceReport)
    return found
