"""The flags of loading a model to run it: device, precision, remote code."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.groups import FlagGroup
from qkedit.cli.flags.model import ArchitecturesOption, DeviceOption
from qkedit.cli.settings import on_command_line
from qkedit.errors import UsageError

if TYPE_CHECKING:
    from qkedit.runtime.load_options import Placement

LOADING = "How to load the model"

TrustOption = Annotated[
    bool,
    flag("--trust-remote-code", help="Run the checkpoint's own Python code; for a hub model give its commit too."),
]
ChatTemplateOption = Annotated[
    str | None,
    flag("--chat-template", help="A Jinja file that replaces the model's chat template, or none for the bare prompt."),
]
DtypeOption = Annotated[
    str, flag("--dtype", help="Data type of the weights: auto (as stored), float32, bfloat16 or float16.")
]
DeviceMapOption = Annotated[
    str | None,
    flag(
        "--device-map",
        panel=LOADING,
        help="Spread the model over devices: auto, balanced, balanced_low_0, sequential or a JSON file.",
    ),
]
AttentionOption = Annotated[
    str | None,
    flag(
        "--attn-implementation",
        panel=LOADING,
        help="Attention: eager, sdpa, flex_attention, flash_attention_2 or flash_attention_3.",
    ),
]
QuantizationOption = Annotated[
    str | None,
    flag(
        "--quantization",
        panel=LOADING,
        help="Quantise the weights in memory: bnb-4bit, bnb-8bit, torchao-int8 or a JSON file of settings.",
    ),
]


@dataclass(frozen=True)
class LoadingFlags(FlagGroup):
    """The flags of loading a model."""

    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    trust_remote_code: TrustOption = False
    chat_template: ChatTemplateOption = None
    device_map: DeviceMapOption = None
    attn_implementation: AttentionOption = None
    quantization: QuantizationOption = None
    architectures: ArchitecturesOption = None

    def arguments(self, context: typer.Context) -> dict[str, Any]:
        """Return the arguments of `load` other than the model. Raises UsageError if they contradict each other."""
        return {
            "device": self.chosen_device(),
            "dtype": self.dtype,
            "trust_remote_code": self.trust_remote_code,
            "chat_template": self.chat_template,
            **vars(self.placement(context)),
        }

    def chosen_device(self) -> str:
        """Return the device by its PyTorch name. Raises UsageError if it does not exist."""
        from qkedit.steering.engine.device import choose_device

        return str(choose_device(self.device))

    def recorded(self, context: typer.Context) -> dict[str, Any]:
        """Return these choices for a command's JSON, as `eval` records them."""
        from qkedit.runtime.load_options import recorded_loading

        return recorded_loading(self.chosen_device(), self.dtype, self.placement(context))

    def placement(self, context: typer.Context) -> Placement:
        """Return the placement. Raises UsageError if both a device and a device map are given."""
        from qkedit.runtime.load_options import Placement

        named = [name for name in ("device", "device_map") if on_command_line(context, name)]
        if self.device_map is not None and len(named) == 2:
            raise UsageError(
                "both set the device of the model", where="--device and --device-map", remedy="give one of them"
            )
        return Placement(self.device_map, self.attn_implementation, self.quantization)


# The flags that say how transformers loads a model; another engine has its own.
LOADING_FLAGS = tuple(field.name for field in fields(LoadingFlags) if field.name != "architectures")
