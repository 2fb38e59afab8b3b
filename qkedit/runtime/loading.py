"""Load a model with its processor on transformers, ready to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkedit.checkpoint.hub.snapshot import model_directory
from qkedit.checkpoint.pretrained import (
    check_own_code,
    check_torchvision,
    check_trusted_code,
    from_pretrained,
    pretrained_weights,
)
from qkedit.checkpoint.resolve import place_of
from qkedit.errors import QkeditError, UsageError, first_sentence, read_failure
from qkedit.runtime.chat_template import NONE, ChatTemplate, Turn, render, template_of
from qkedit.runtime.generation_settings import check_generation_settings
from qkedit.runtime.load_options import Placement
from qkedit.runtime.size_check import refuse_much_larger

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadedModel:
    """A model and its processor, ready to answer.

    Attributes:
        name: the user's name for the model.
        model: the model of transformers.
        processor: the processor of transformers.
        chat_template: a template in Jinja, or `none`, instead of the model's own.
    """

    name: str
    model: Any
    processor: Any
    chat_template: str | None = None

    @property
    def template(self) -> ChatTemplate | None:
        """Return the chat template; None for the bare prompt. Raises TemplateFault if it is missing or broken."""
        family = self.model.config.model_type
        return template_of(self.processor, family, where=self.name, chosen=self.chat_template)

    @property
    def template_record(self) -> dict[str, Any] | None:
        """Return the chat template for the record of a run."""
        template = self.template
        return None if template is None else template.as_dict()

    def text(self, turns: Sequence[Turn]) -> str:
        """Render a conversation as text for the processor; see `chat_template.render`."""
        return render(self.processor, self.template, turns, where=self.name)


def load(
    model: str,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    trust_remote_code: bool | None = None,
    chat_template: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> LoadedModel:
    """Load a model.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        revision: the revision of a model on the hub.
        device: the device to run on, by its PyTorch name.
        dtype: the dtype of the weights; `auto` for the stored one.
        trust_remote_code: whether the checkpoint's own Python code may run; None if users cannot permit it.
        chat_template: a file with a template in Jinja, or `none` for the bare prompt, instead of the model's own.
        device_map: the distribution over devices, in place of `device`: `auto`, `balanced`, `balanced_low_0`,
            `sequential`, a mapping of modules to devices, or a JSON file with one.
        attn_implementation: `eager`, `sdpa`, `flex_attention`, `flash_attention_2` or `flash_attention_3`; by default
            the choice of transformers.
        quantization: the quantisation of the weights, to evaluate a model that is otherwise too large: `bnb-4bit`,
            `bnb-8bit`, `torchao-int8`, or a JSON file with a `quantization_config` of transformers.

    Raises:
        UsageError: an option is unknown or needs a package that is not installed, the template's file cannot be read,
            or code on the hub would run from a revision that is not a commit.
        QkeditError: transformers cannot load the model or its processor, or not without their own code; weights are
            missing; or the chat template or the generation settings are broken.
    """
    import torch

    try:
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    except ImportError as error:  # transformers imports torchvision with its processors
        check_torchvision(error, model)
        raise

    if dtype not in DTYPES:
        raise UsageError(f"{dtype!r} is not a dtype", where="--dtype", remedy=f"give {', '.join(DTYPES)}")
    jinja = read_template(chat_template)
    directory = directory_of(model, revision, trust_remote_code=bool(trust_remote_code))
    placement = Placement(device_map, attn_implementation, quantization)
    own: dict[str, Any] = {"where": model, "trust_remote_code": trust_remote_code}
    try:
        config = from_pretrained(AutoConfig, directory, **own)
        chosen = {"device_map": device} | placement.arguments(config, model)
        processor = _completed(from_pretrained(AutoProcessor, directory, **own), config, model)
        template_of(processor, config.model_type, where=model, chosen=jinja)  # before the weights are read
        refuse_much_larger(config, directory, where=model, trust_remote_code=bool(trust_remote_code))
        loaded = pretrained_weights(
            AutoModelForImageTextToText,
            directory,
            **own,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            **chosen,
        )
    except (QkeditError, MemoryError):
        raise
    except ImportError as error:
        raise QkeditError(
            f"it needs a package that is not installed ({first_sentence(error)})",
            where=model,
            remedy="install it with `pip install 'qkedit[runtime]'`",
        ) from error
    # transformers and its tokenizers fail on invalid files in many ways, which all mean the same.
    except Exception as error:
        raise QkeditError(
            f"transformers cannot load it ({first_sentence(error)})",
            where=model,
            remedy="name a vision-language model with its processor's files, such as preprocessor_config.json",
        ) from error
    check_generation_settings(loaded.generation_config, model)
    return LoadedModel(model, loaded.eval(), processor, jinja)


def read_template(chosen: str | None) -> str | None:
    """Read the template from a file; `none` and None are returned as they are. Raises UsageError."""
    if chosen is None or chosen == NONE:
        return chosen
    try:
        text = Path(chosen).expanduser().read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{chosen} cannot be read ({read_failure(error)})",
            where="--chat-template",
            remedy=f"name a file in Jinja, or {NONE} for the bare prompt",
        ) from error
    if not text.strip():
        raise UsageError(f"{chosen} is empty", where="--chat-template", remedy=f"write {NONE} for the bare prompt")
    return text


def _completed(processor: Any, config: Any, model: str) -> Any:
    """Complete a processor from its model's config with settings that older versions did not save.

    Raises:
        QkeditError: the processor is only a tokenizer, to which transformers falls back.
    """
    if not hasattr(processor, "image_processor"):
        raise QkeditError(
            "its processor's files are missing or of another version: they do not contain an image processor",
            where=model,
            remedy="put preprocessor_config.json and processor_config.json from the model's page next to its weights",
        )
    # Before 2024-05 the model itself inserted LLaVA's image tokens, so the processor did not know their number.
    if getattr(processor, "patch_size", 0) is None and hasattr(processor, "vision_feature_select_strategy"):
        vision = config.vision_config
        processor.patch_size = vision.patch_size
        processor.num_additional_image_tokens = int(vision.model_type == "clip_vision_model")  # its class token
        if processor.vision_feature_select_strategy is None:
            processor.vision_feature_select_strategy = getattr(config, "vision_feature_select_strategy", "default")
    return processor


def directory_of(model: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """Return the directory of a model's files, downloading them if necessary.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        revision: of a model on the hub.
        trust_remote_code: whether its own Python code will run, and so must be downloaded too.

    Raises:
        UsageError: the name is unknown, or code would run from a branch or a tag.
        CheckpointError: the hub does not have the model or is unreachable.
        QkeditError: code from another repository would run.
    """
    found = place_of(model)
    place = found.directory or str(found.hub_id)
    if not trust_remote_code:
        return model_directory(place, revision)
    check_trusted_code(place, revision)
    directory = model_directory(place, revision, with_code=True)
    check_own_code(directory)
    return directory
