"""Run a model from Python: the commands `generate` and `kv-coherence`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.prompts import CAPTION_PROMPT

if TYPE_CHECKING:
    from PIL.Image import Image

    from qkedit.plugins.core.protocol import Plugin
    from qkedit.plugins.measures.kv_coherence import CoherenceReport
    from qkedit.runtime.generation import Answer
    from qkedit.runtime.loading import LoadedModel


def generate(
    model: str | Path | LoadedModel,
    images: Sequence[str | Path | Image],
    prompt: str,
    *,
    plugins: Sequence[Plugin] = (),
    max_new_tokens: int = 128,
    **loading: Any,
) -> Answer:
    """Answer one prompt about images by greedy search.

    Args:
        model: a directory, a hub id, an alias or `demo`; or the result of `load`, to load once for many prompts.
        images: image files, or images of Pillow.
        prompt: the question, without a chat template.
        plugins: the plug-ins to attach during the call, such as `qkedit.SCR()`; plug-ins attached to the directory on
            the command line do not act here.
        max_new_tokens: the maximum length of the answer.
        loading: `revision`, `device`, `dtype` and other arguments of `load`, if `model` is a name.

    Returns:
        The answer; its `report` is that of the plug-ins.

    Raises:
        QkeditError: the model cannot be loaded, an image cannot be read, or the plug-ins do not fit the model.

    Example:
        >>> qkedit.generate("demo", [picture], "Please describe this image in detail.").text
    """
    from qkedit.images import read_image
    from qkedit.runtime.generation import respond
    from qkedit.runtime.loading import LoadedModel, load

    loaded = model if isinstance(model, LoadedModel) else load(str(model), **loading)
    pictures = [read_image(Path(image)) if isinstance(image, str | Path) else image for image in images]
    return respond(loaded, pictures, prompt, plugins, max_new_tokens=max_new_tokens)


def kv_coherence(
    model: str | Path | LoadedModel,
    images: Sequence[str | Path | Image],
    *,
    prompt: str = CAPTION_PROMPT,
    plugins: Sequence[Plugin] = (),
    **loading: Any,
) -> CoherenceReport:
    """Measure how well a model's keys form a picture of the image, after plug-ins.

    KV-coherence is the mean cosine of adjacent keys minus that of all pairs.

    Args:
        model: as for `generate`.
        images: as for `generate`.
        prompt: the text behind the images.
        plugins: the plug-ins that act before the measurement.
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

    answer = generate(model, images, prompt, plugins=[*plugins, KeyCoherence()], max_new_tokens=1, **loading)
    assert answer.report is not None
    found = answer.report.plugins[KeyCoherence.name]
    assert isinstance(found, CoherenceReport)
    return found
