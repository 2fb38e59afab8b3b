"""Test that a server binds plug-ins once, and each request runs with those that it names."""

from __future__ import annotations

import torch

import qkedit
from qkedit.laboratory.arms import RIVALS
from qkedit.plugins.settings import PluginSettings, make_plugins
from qkedit.serving.plugin_switch import PluginSwitch
from tests.plugins.greedy import generated, one_image_each
from tests.plugins.tiny_requests import model, request


def test_each_request_runs_with_the_methods_that_it_names() -> None:
    vlm, given = model("llava"), request("llava", one_image_each("llava")[:1]).inputs
    # The sentence of ICD needs the tokenizer of a model's directory, and OPERA's search returns no logits.
    left_out = ("icd", "opera")
    settings = {name: PluginSettings(name, options) for name, options in RIVALS.items() if name not in left_out}
    switch = PluginSwitch(vlm, list(settings.values()))
    own, _ = generated("llava", given)
    for names in [*((name,) for name in settings), ("deco", "vcd"), ("vaf", "m3id")]:
        with qkedit.attach(vlm, *make_plugins([settings[name] for name in names])):
            expected, logits = generated("llava", given)
        with switch.on(names) as report:
            answer, edited = generated("llava", given)
            found = report()
        assert torch.equal(answer, expected)
        assert all(torch.equal(one, other) for one, other in zip(edited, logits, strict=True))
        assert found is not None
        assert set(found.plugins) == set(names)
        with switch.on(()):
            assert torch.equal(generated("llava", given)[0], own)
