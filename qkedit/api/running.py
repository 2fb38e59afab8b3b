"""Run a model from Python: what `generate` does, with plug-ins and edits in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from qkedit.plugins.core.protocol import Plugin
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
        model: a directory, a hub id, an alias or `demo`; or what `load` returned, to load once for many prompts.
        images: picture files, or pictures of Pillow.
        prompt: the question, without a chat template.
        plugins: attached for as long as it takes, such as `qkedit.SCR()`; those attached to the directory on the
            command line do not act here.
        max_new_tokens: longest answer.
        loading: `revision`, `device`, `dtype` and what else `load` takes, where a model is named.

    Returns:
        The answer, with what the plug-ins did in `report`.

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
