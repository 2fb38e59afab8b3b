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
from qkedit.errors import QkeditError, UsageError, first_line
from qkedit.runtime.chat_template import NONE, ChatTemplate, Turn, render, template_of
from qkedit.runtime.generation_settings import check_generation_settings
from qkedit.runtime.load_options import Placement
from qkedit.runtime.size_check import refuse_much_larger

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadedModel:
    """A model and its processor, ready to answer.

    Attributes:
        name: what the user calls it.
        model: of transformers.
        processor: of transformers.
        chat_template: in Jinja, or `none`, instead of the model's own.
    """

    name: str
    model: Any
    processor: Any
    chat_template: str | None = None

    @property
    def template(self) -> ChatTemplate | None:
        """Its chat template, None for the bare prompt. Raises TemplateFault if it has none, or a broken one."""
        family = self.model.config.model_type
        return template_of(self.processor, family, where=self.name, chosen=self.chat_template)

    @property
    def template_record(self) -> dict[str, Any] | None:
        """What a record of a run says of its chat template."""
        template = self.template
        return None if template is None else template.as_dict()

    def text(self, turns: Sequence[Turn]) -> str:
        """Return a conversation as the text that its processor takes; see `chat_template.render`."""
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
        revision: of a model on the hub.
        device: where it runs, as PyTorch names it.
        dtype: of its weights; `auto` for what is stored.
        trust_remote_code: whether Python code of the checkpoint's own may run; None where users cannot allow it.
        chat_template: a file with a template in Jinja, or `none` for the bare prompt, instead of the model's own.
        device_map: spread the model over devices, in place of `device`: `auto`, `balanced`, `balanced_low_0`,
            `sequential`, devices by the names of modules, or a JSON file of those.
        attn_implementation: `eager`, `sdpa`, `flex_attention`, `flash_attention_2` or `flash_attention_3`; by default
            what transformers chooses.
        quantization: load the weights quantised, to evaluate a model that is too large otherwise: `bnb-4bit`,
            `bnb-8bit`, `torchao-int8`, or a JSON file with a `quantization_config` of transformers.

    Raises:
        UsageError: an option is not known or needs a package that is not installed, the template's file cannot be
            read, or code on the hub is to run from a revision that is not a commit.
        QkeditError: transformers cannot load the model or its processor, or not without code of their own; weights are
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
            f"it needs a package that is not installed ({first_line(error)})",
            where=model,
            remedy="install it with `pip install 'qkedit[runtime]'`",
        ) from error
    # What a file holds fails in transformers and its tokenizers in many ways, and each of them means the same.
    except Exception as error:
        raise QkeditError(
            f"transformers cannot load it ({first_line(error)})",
            where=model,
            remedy="name a vision-language model with its processor's files",
        ) from error
    check_generation_settings(loaded.generation_config, model)
    return LoadedModel(model, loaded.eval(), processor, jinja)


def read_template(chosen: str | None) -> str | None:
    """Return the template of a file; `none` and nothing stay what they are. Raises UsageError for no such file."""
    if chosen is None or chosen == NONE:
        return chosen
    try:
        text = Path(chosen).expanduser().read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{chosen} cannot be read ({first_line(error)})",
            where="--chat-template",
            remedy=f"name a file in Jinja, or {NONE} for the bare prompt",
        ) from error
    if not text.strip():
        raise UsageError(f"{chosen} is empty", where="--chat-template", remedy=f"write {NONE} for the bare prompt")
    return text


def _completed(processor: Any, config: Any, model: str) -> Any:
    """Return a processor with what older versions did not save, which its model's config tells.

    Raises:
        QkeditError: it is a tokenizer alone, which transformers falls back on.
    """
    if not hasattr(processor, "image_processor"):
        raise QkeditError(
            "its processor's files are missing or of another version: nothing in them prepares images",
            where=model,
            remedy="put preprocessor_config.json and processor_config.json of the model's page beside its weights",
        )
    # Before 2024-05 the model itself made room for LLaVA's image tokens, so the processor did not know how many.
    if getattr(processor, "patch_size", 0) is None and hasattr(processor, "vision_feature_select_strategy"):
        vision = config.vision_config
        processor.patch_size = vision.patch_size
        processor.num_additional_image_tokens = int(vision.model_type == "clip_vision_model")  # its class token
        if processor.vision_feature_select_strategy is None:
            processor.vision_feature_select_strategy = getattr(config, "vision_feature_select_strategy", "default")
    return processor


def directory_of(model: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """Return where a model's files are, downloaded if need be.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        revision: of a model on the hub.
        trust_remote_code: whether its own Python code is to run, and so is downloaded too.

    Raises:
        UsageError: nothing of that name is known, or code is to run from a branch or a tag.
        CheckpointError: the hub has no such model, or cannot be reached.
        QkeditError: code is to run that is in another repository.
    """
    found = place_of(model)
    place = found.directory or str(found.hub_id)
    if not trust_remote_code:
        return model_directory(place, revision)
    check_trusted_code(place, revision)
    directory = model_directory(place, revision, with_code=True)
    check_own_code(directory)
    return directory
