"""Load a model of transformers that looks at pictures for a plug-in: at their depth, for example."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qkedit.checkpoint.hub.snapshot import model_directory
from qkedit.checkpoint.pretrained import from_pretrained, pretrained_weights
from qkedit.errors import QkeditError, first_line


def load_image_model(
    processor: Any,
    model: Any,
    name: str,
    kind: str,
    remedy: str,
    *,
    fits: Callable[[Any], bool] = lambda config: True,
    spare: str = "",
    **settings: Any,
) -> tuple[Any, Any]:
    """Return a processor and a model on the CPU, ready for inference.

    Args:
        processor: a class of transformers' processors, such as `AutoImageProcessor`.
        model: a class of transformers' models.
        name: a hub id, or a directory that holds both.
        kind: the kind of model in an error, with its article.
        remedy: what to give instead.
        fits: whether a config is that of such a model.
        spare: the beginning of the names of weights that are not used, and a checkpoint may lack.
        settings: further arguments of the model's `from_pretrained`.

    Raises:
        QkeditError: they are of another kind, cannot be loaded, lack weights, or need a package that is not
            installed.
    """
    from transformers import AutoConfig

    directory = model_directory(name)
    try:
        if not fits(from_pretrained(AutoConfig, directory, where=name)):
            raise QkeditError(f"is not {kind}", where=name, remedy=remedy)
        return (
            from_pretrained(processor, directory, where=name),
            pretrained_weights(model, directory, where=name, spare=spare, **settings).eval(),
        )
    except ImportError as error:
        raise lacks_package(name, error) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise QkeditError(f"cannot be loaded as {kind} ({first_line(error)})", where=name, remedy=remedy) from error


def model_files(name: str) -> list[Path]:
    """Return the weights and settings of such a model, sorted. Raises CheckpointError if there is none."""
    directory = model_directory(name)
    return sorted(file for ending in ("safetensors", "json", "txt") for file in directory.glob(f"*.{ending}"))


def lacks_package(name: str, error: Exception) -> QkeditError:
    """Return the error for an image processor whose package is missing; transformers' message names the package."""
    return QkeditError(
        f"its image processor needs a package that is not installed ({first_line(error)})",
        where=name,
        remedy="install torchvision with `pip install 'qkedit[runtime]'`",
    )
