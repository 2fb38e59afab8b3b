"""Test plug-ins on a model spread over devices: their tensors must be on the device of the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit import DSCR, SCR
from qkedit.plugins.measures.kv_coherence import KeyCoherence
from tests.plugins import tiny_requests
from tests.plugins.dscr.dscr_requests import UNCROPPED, depth_maps, images_in
from tests.plugins.tiny_requests import request, two_prompts
from tests.plugins.transformers.test_prefill import assert_same
from tests.pretended_devices import PretendedDevices, placed, spread


def next_logits(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Return the logits of the prompt's last token and of one decoding step, `[2, batch, vocabulary]`."""
    with torch.no_grad():
        output = model(**inputs, use_cache=True)
        step = model(input_ids=torch.full_like(inputs["input_ids"][:, :1], 50), past_key_values=output.past_key_values)
    return torch.stack([output.logits[:, -1], step.logits[:, -1]])


@pytest.mark.parametrize("devices", [("cuda:0", "cuda:1"), ("mps", "mps")], ids=["two GPUs", "no float64"])
@pytest.mark.parametrize(
    ("family", "plugin"),
    [
        ("qwen3-vl", "all"),
        ("qwen3-vl", "before rotation"),
        ("llava-next", "scr"),
        ("llava-next", "over the question"),
        ("gemma3", "uniform"),
        ("gemma3", "over the question"),
        ("chameleon", "all"),
        ("paligemma", "dscr"),
    ],
)
def test_logits_are_the_same_on_other_devices(family: str, plugin: str, devices: tuple[str, str]) -> None:
    first, second = devices
    given = request(family, two_prompts(family)[:1])
    maps = depth_maps(images_in(given))
    plugins: dict[str, tuple[Any, ...]] = {
        "scr": (SCR(measure=True),),
        "uniform": (SCR(selection="uniform", remember=True),),
        "dscr": (DSCR(depth=maps, processor=UNCROPPED),),
        "over the question": (DSCR(depth=maps, refine="both", when="image", processor=UNCROPPED),),
        "before rotation": (DSCR(depth=maps, space="pre-rotation", processor=UNCROPPED), KeyCoherence()),
        "all": (SCR(), DSCR(depth=maps, processor=UNCROPPED), KeyCoherence()),
    }
    model = tiny_requests.model.__wrapped__(family)
    with qkedit.attach(model, *plugins[plugin]):
        expected = next_logits(model, given.inputs)
    decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
    layers = {f"{decoder}.layers.{layer}": first if layer < 2 else second for layer in range(4)}
    spread(model, {"": first, **layers, f"{decoder}.norm": second})
    with PretendedDevices(), qkedit.attach(model, *plugins[plugin]) as attached:
        inputs = {name: placed(value, torch.device(first)) for name, value in given.inputs.items()}
        found = next_logits(model, inputs)
        assert found.device == torch.device(first)
        (report,) = attached.report()
    assert set(report.plugins) == {own.name for own in plugins[plugin]}
    assert_same(found.as_subclass(Tensor), expected)
