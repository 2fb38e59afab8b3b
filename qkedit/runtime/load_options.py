"""The options of `load` for devices, attention and quantisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qkedit.errors import UsageError, first_sentence, read_failure
from qkedit.strict_text import parse_json

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
# The package that each implementation needs. Without it transformers would download compiled code from the hub.
ATTENTION = {
    "eager": None,
    "sdpa": None,
    "flex_attention": None,
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
}


def _bits(bits: int) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)

    return make


def _torchao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


# For each name, the package it needs and the function that makes the settings.
QUANTIZATIONS: dict[str, tuple[str, Callable[[], Any]]] = {
    "bnb-4bit": ("bitsandbytes", _bits(4)),
    "bnb-8bit": ("bitsandbytes", _bits(8)),
    "torchao-int8": ("torchao", _torchao_int8),
}
# The package for each `quant_method` in a settings file.
_PACKAGES = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "quanto": "optimum", "hqq": "hqq"}


@dataclass(frozen=True)
class Placement:
    """The options of loading a model in the form of transformers; None leaves a choice to transformers.

    Attributes:
        device_map: `auto`, `balanced`, `balanced_low_0`, `sequential`, a mapping of modules to devices, or a JSON file
            with such a mapping.
        attn_implementation: `eager`, `sdpa`, `flex_attention`, `flash_attention_2` or `flash_attention_3`.
        quantization: `bnb-4bit`, `bnb-8bit` or `torchao-int8`, or a JSON file with a `quantization_config` of
            transformers.
    """

    device_map: str | Mapping[str, Any] | None = None
    attn_implementation: str | None = None
    quantization: str | None = None

    def arguments(self, config: Any, where: str) -> dict[str, Any]:
        """Return the arguments of `from_pretrained` other than the device.

        Args:
            config: the config of the model.
            where: the user's name for the model.

        Raises:
            UsageError: an option is unknown or needs a package that is not installed, a file cannot be read, or the
                model is stored quantised.
        """
        found: dict[str, Any] = {}
        if self.device_map is not None:
            found["device_map"] = _device_map(self.device_map)
        if self.attn_implementation is not None:
            _check_attention(self.attn_implementation)
            found["attn_implementation"] = self.attn_implementation
        if self.quantization is not None:
            if getattr(config, "quantization_config", None) is not None:
                raise UsageError(f"{where} is stored quantised", where="--quantization", remedy="leave the option out")
            found["quantization_config"] = _quantization(self.quantization)
        return found

    def recorded(self) -> dict[str, Any]:
        """Return the chosen options for the record of a run, with the contents of files instead of their names."""
        chosen = {
            "device_map": None if self.device_map is None else _device_map(self.device_map),
            "attn_implementation": self.attn_implementation,
            "quantization": self.quantization
            if self.quantization is None or self.quantization in QUANTIZATIONS
            else _settings_of(self.quantization, "--quantization", ""),
        }
        return {name: value for name, value in chosen.items() if value is not None}


def recorded_loading(device: str, dtype: str, placement: Placement) -> dict[str, Any]:
    """Return the part of a run's record that describes how its model was loaded.

    Args:
        device: as PyTorch names it; which of several equal ones does not matter.
        dtype: of the weights; `auto` for what is stored.
        placement: the other choices.
    """
    return {"dtype": dtype, "device": device.partition(":")[0], **placement.recorded()}


def _device_map(chosen: str | Mapping[str, Any]) -> Any:
    if not isinstance(chosen, str):
        return dict(chosen)
    if chosen in DEVICE_MAPS:
        return chosen
    return _settings_of(
        chosen, "--device-map", f"give {', '.join(DEVICE_MAPS)}, or a JSON file of modules and devices"
    )


def _check_attention(name: str) -> None:
    if name not in ATTENTION:
        raise UsageError(
            f"{name!a} is not an implementation of attention",
            where="--attn-implementation",
            remedy=f"give {', '.join(ATTENTION)}",
        )
    if package := ATTENTION[name]:
        _check_package(package, name, "--attn-implementation", "or leave the option out")


def _quantization(name: str) -> Any:
    if name in QUANTIZATIONS:
        package, make = QUANTIZATIONS[name]
        _check_package(package, name, "--quantization", "or choose another")
        return make()
    settings = _settings_of(name, "--quantization", f"give {', '.join(QUANTIZATIONS)}, or a JSON file of settings")
    if package := _PACKAGES.get(str(settings.get("quant_method")), ""):
        _check_package(package, str(settings["quant_method"]), "--quantization", "or choose another")
    from transformers.quantizers import AutoQuantizationConfig

    try:
        return AutoQuantizationConfig.from_dict(settings)
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise UsageError(
            f"{name} does not hold settings that transformers accepts ({first_sentence(error)})",
            where="--quantization",
            remedy='write a quantization_config such as {"quant_method": "bitsandbytes", "load_in_4bit": true}',
        ) from error


def _settings_of(file: str, option: str, remedy: str) -> dict[str, Any]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"{file!a} is unknown", where=option, remedy=remedy)
    try:
        settings = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} cannot be read ({read_failure(error)})", where=option, remedy="correct it"
        ) from error
    if not isinstance(settings, dict) or not settings:
        raise UsageError(f"{file} does not hold a JSON object", where=option, remedy="correct it")
    return settings


def _check_package(package: str, name: str, option: str, otherwise: str) -> None:
    if find_spec(package) is None:
        installed = package.replace("flash_attn_interface", "flash-attn (version 3)").replace("_", "-")
        raise UsageError(
            f"{name} needs {installed}, which is not installed", where=option, remedy=f"install it, {otherwise}"
        )
