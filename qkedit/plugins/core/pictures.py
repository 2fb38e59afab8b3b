"""The pictures of a request and their files, for plug-ins that show the model other pictures.

`generate` receives only tensors. The code that makes them from pictures stores the pictures with the prompt's tokens,
so that a plug-in can process the same prompts with other pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image

# The attribute of the tensor `input_ids`, the only input that reaches `generate` as the same object.
_PICTURES = "_qkedit_pictures"


@dataclass(frozen=True)
class Pictures:
    """The pictures of a batch of prompts.

    Attributes:
        images: the pictures of each prompt, in order; none for a prompt of text.
        inputs_with: a function that returns the model inputs of the same prompts with other pictures, as many for each
            prompt, padded on the left.
        questions: the text of each prompt, without the model's template; empty if they are not known.
    """

    images: Sequence[Sequence[Image]]
    inputs_with: Callable[[Sequence[Sequence[Image]]], Mapping[str, Any]]
    questions: Sequence[str] = ()


def remember_pictures(inputs: Mapping[str, Any], pictures: Pictures) -> None:
    """Store the pictures of model inputs with their tensor `input_ids`, which is passed to `generate`."""
    setattr(inputs["input_ids"], _PICTURES, pictures)


def pictures_of(inputs: Mapping[str, Any]) -> Pictures | None:
    """Return the pictures of model inputs; None if none were stored."""
    # `inputs` is another name of `generate` for the tokens.
    return getattr(inputs.get("input_ids", inputs.get("inputs")), _PICTURES, None)


def reads_pictures(plugin: Any) -> bool:
    """Return whether a plug-in's settings say, by `reads_pictures`, that it reads a request's stored pictures.

    A server closes the pictures of other requests before they wait for the model.
    """
    return bool(getattr(plugin, "reads_pictures", False))


@runtime_checkable
class ChecksFiles(Protocol):
    """A plug-in's settings that depend on the files of pictures."""

    def check_files(self, files: Iterable[Path] | None) -> None:
        """Raise UsageError for pictures that the plug-in cannot be used with.

        Args:
            files: the files of the pictures; None for pictures that come without files, as those of a server do.
        """
        ...


def check_files(plugins: Iterable[Any], files: Iterable[Path] | None) -> None:
    """Let every plug-in that depends on files of pictures check them; see `ChecksFiles`. Raises UsageError."""
    known = None if files is None else tuple(files)
    for plugin in plugins:
        if isinstance(plugin, ChecksFiles):
            plugin.check_files(known)


@runtime_checkable
class DependsOnFiles(Protocol):
    """A plug-in's settings that name files whose content decides about answers."""

    def files_for(self, pictures: Iterable[Path]) -> Iterable[Path]:
        """Return the further files that answers about these pictures depend on, always in the same order."""
        ...


def files_for(plugins: Iterable[Any], pictures: Iterable[Path]) -> list[Path]:
    """Return the files that answers about pictures depend on by plug-ins; see `DependsOnFiles`. Raises UsageError."""
    known = tuple(pictures)
    return [file for plugin in plugins if isinstance(plugin, DependsOnFiles) for file in plugin.files_for(known)]
