"""Load a model of transformers that looks at pictures for a plug-in: at their depth, for example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qkedit.checkpoint.hub.snapshot import model_directory
from qkedit.checkpoint.pretrained import check_torchvision, from_pretrained, pretrained_weights
from qkedit.errors import QkeditError, first_sentence, memory_that_ran_out


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
    with explained_failure(f"cannot be loaded as {kind}", name, remedy):
        if not fits(from_pretrained(AutoConfig, directory, where=name)):
            raise QkeditError(f"is not {kind}", where=name, remedy=remedy)
        return (
            from_pretrained(processor, directory, where=name),
            pretrained_weights(model, directory, where=name, spare=spare, **settings).eval(),
        )


@contextmanager
def explained_failure(fact: str, name: str, remedy: str) -> Iterator[None]:
    """Explain the failure of a library on a model's files, or on a picture that the model is shown.

    Raises:
        QkeditError: for every failure except a lack of memory, which is raised unchanged.
    """
    try:
        yield
    except QkeditError:
        raise
    except (ImportError, NameError) as error:  # the message names the missing module
        raise lacks_package(name, error) from error
    # Libraries fail on invalid files in many ways, which all mean the same.
    except Exception as error:
        if memory_that_ran_out(error):
            raise
        check_torchvision(error, name)
        raise QkeditError(f"{fact} ({first_sentence(error)})", where=name, remedy=remedy) from error


def model_files(name: str) -> list[Path]:
    """Return the weights and settings of such a model, sorted. Raises CheckpointError if there is none."""
    directory = model_directory(name)
    return sorted(file for ending in ("safetensors", "json", "txt") for file in directory.glob(f"*.{ending}"))


def lacks_package(name: str, error: Exception) -> QkeditError:
    """Return the error for an image processor whose package is missing; transformers' message names the package."""
    return QkeditError(
        f"its image processor needs a package that is not installed ({first_sentence(error)})",
        where=name,
        remedy="install torchvision with `pip install 'qkedit[runtime]'`",
    )
