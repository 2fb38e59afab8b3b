"""Test that identity settings of each method keep the answers of the model and its random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import qkedit
from qkedit.plugins.amplified.plugin import MiddleLayer, PAIAttention
from qkedit.plugins.contrast.crops import CRoPS
from qkedit.plugins.contrast.settings import ICD, M3ID, SID, VCD, PAIContrast
from qkedit.plugins.early_exit.damo import DAMO
from qkedit.plugins.early_exit.deco import DeCo
from qkedit.plugins.vaf.plugin import VAF
from tests.plugins.contrast.test_contrast import Words
from tests.plugins.greedy import generated, one_image_each
from tests.plugins.tiny_requests import model, request

IDENTITIES: dict[str, Any] = {
    "vcd": VCD(alpha=0, beta=0),
    "icd": ICD(alpha=0, beta=0, sentence="be confused", tokenizer=Words()),
    "sid": SID(alpha=0, beta=0, keep=0.5),
    "m3id": M3ID(decay=0, beta=0),
    "pai-contrast": PAIContrast(gamma=1, beta=0),
    "pai-attention": PAIAttention(alpha=0),
    "middle-layer": MiddleLayer(alpha=0),
    "vaf": VAF(image=1, before=1),
    "crops": CRoPS(alpha=0, beta=0, decay=0, keep=0.5, keep_text=2, more_text=0),
    "deco": DeCo(alpha=0, top_p=1, top_k=10_000),
    "damo": DAMO(tau=1, beta1=0, beta2=0),
}


@pytest.mark.parametrize("method", IDENTITIES)
def test_identity_settings_keep_greedy_sampled_and_text_answers(method: str) -> None:
    """Use a family with multimodal positions, in which a text request resets the offset of an image."""
    vlm = model("qwen2-vl")
    given = request("qwen2-vl", one_image_each("qwen2-vl")).inputs
    text = {"input_ids": torch.tensor([[1, 50, 51, 52]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}

    def answers() -> list[torch.Tensor]:
        greedy, plain, again = (generated("qwen2-vl", inputs)[0] for inputs in (given, text, given))
        torch.manual_seed(7)
        sampled, _ = generated("qwen2-vl", given, do_sample=True, top_k=0)
        return [greedy, plain, again, sampled, torch.rand(3)]

    own = answers()
    with qkedit.attach(vlm, IDENTITIES[method]):
        found = answers()
    assert all(torch.equal(one, other) for one, other in zip(own, found, strict=True))
