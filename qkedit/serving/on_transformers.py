"""Run requests on transformers: load a model with its processor, answer one prompt about some images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.checkpoint.presets import DEMO, presets_by_alias
from qkedit.checkpoint.snapshot import model_directory
from qkedit.demo import demo_checkpoint
from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.attach import RequestReport, attach

if TYPE_CHECKING:
    from PIL.Image import Image

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadedModel:
    """A model and its processor, ready to answer."""

    name: str
    model: Any
    processor: Any


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: the answer without the prompt.
        tokens: how many it has.
        seconds: from the prepared inputs to the whole answer.
        report: what plug-ins did; None without plug-ins.
    """

    text: str
    tokens: int
    seconds: float
    report: RequestReport | None = None


def load(model: str, *, revision: str | None = None, device: str = "cpu", dtype: str = "auto") -> LoadedModel:
    """Load a model.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        revision: of a model on the hub.
        device: where it runs, as PyTorch names it.
        dtype: of its weights; `auto` for what is stored.

    Raises:
        UsageError: the dtype is not known.
        QkeditError: transformers cannot load the model or its processor.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if dtype not in DTYPES:
        raise UsageError(f"{dtype!r} is no dtype", where="--dtype", remedy=f"give {', '.join(DTYPES)}")
    directory = model_directory(_place(model), revision)
    try:
        processor = AutoProcessor.from_pretrained(directory)
        loaded = AutoModelForImageTextToText.from_pretrained(
            directory,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map=device,
            use_safetensors=True,
        )
    except ImportError as error:
        raise QkeditError(
            f"it needs a package that is not installed ({_first_line(error)})",
            where=model,
            remedy="install it with `pip install 'qkedit[runtime]'`",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise QkeditError(
            f"transformers cannot load it ({_first_line(error)})",
            where=model,
            remedy="name a vision-language model with its processor's files",
        ) from error
    return LoadedModel(model, loaded.eval(), processor)


def read_image(file: Path) -> Image:
    """Open a picture. Raises UsageError for a file that is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise UsageError("is no picture", where=str(file), remedy="give a PNG, JPEG or WebP file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"cannot be read ({_first_line(error)})", where=str(file), remedy="check the file") from error


def prompt_text(processor: Any, prompt: str, images: int) -> str:
    """Return the text that a processor takes for a question about so many images: its chat template if it has one."""
    if getattr(processor, "chat_template", None):
        content: list[dict[str, Any]] = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text
    placeholder = getattr(processor, "image_token", "<image>")
    return placeholder * images + ("\n" if images else "") + prompt


def request_inputs(loaded: LoadedModel, images: Sequence[Image], prompt: str) -> Mapping[str, Any]:
    """Return the model's inputs for a question about some images, in its chat template if it has one."""
    processor = loaded.processor
    text = prompt_text(processor, prompt, len(images))
    pictures = {"images": list(images)} if images else {}
    inputs: Mapping[str, Any] = processor(text=text, return_tensors="pt", **pictures).to(
        loaded.model.device, loaded.model.dtype
    )
    return inputs


def respond(
    loaded: LoadedModel,
    images: Sequence[Image],
    prompt: str,
    plugins: Sequence[Any] = (),
    *,
    max_new_tokens: int = 128,
) -> Answer:
    """Answer one prompt by greedy search, with plug-ins attached for as long as it takes.

    Raises:
        UsageError: the plug-ins do not fit the model, or act on images and there is none.
    """
    import torch

    inputs = request_inputs(loaded, images, prompt)
    length = inputs["input_ids"].shape[1]
    with attach(loaded.model, *plugins) if plugins else nullcontext() as attached, torch.no_grad():
        start = time.perf_counter()
        output = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        seconds = time.perf_counter() - start
    new = output[0, length:]
    text = loaded.processor.decode(new, skip_special_tokens=True).strip()
    reports = attached.report() if attached is not None else ()
    return Answer(text, len(new), seconds, reports[-1] if reports else None)


def _place(model: str) -> str:
    """Return which model a name stands for: a path, or the hub id of an alias.

    Raises:
        UsageError: an alias is also the name of a directory here.
    """
    path, preset = Path(model).expanduser(), presets_by_alias().get(model.lower())
    is_demo = model.lower() == DEMO
    if path.is_dir() and (is_demo or preset):
        raise UsageError(
            "the name stands for a known model and for a directory here",
            where=model,
            remedy=f"write ./{model} for the directory" + (f", or {preset.hub_id} for the model" if preset else ""),
        )
    if is_demo:
        return str(demo_checkpoint())
    return preset.hub_id if preset else str(path)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
