"""Test mixing keys before their rotation, with a rotary module that works in place and that two layers share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkedit.errors import UnsupportedForm
from qkedit.integrations.vllm.prompts import PromptBatch, WholePrompt
from qkedit.integrations.vllm.rotations import StepRotations

HEADS, SIZE = 2, 4
PROMPTS = PromptBatch((WholePrompt("a", 1, (7, 8, 9), ({},)), WholePrompt("b", 5, (6, 5), ({},))))
POSITIONS = torch.tensor([9, 0, 1, 2, 9, 0, 1])


class Rotary(nn.Module):
    """Rotates the first two dimensions of every head by the token's position, in place, as vLLM's kernels do."""

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        for states in (query, key):
            heads = states.view(len(states), -1, SIZE)
            cosine, sine = positions.cos()[:, None], positions.sin()[:, None]
            first, second = heads[..., 0].clone(), heads[..., 1].clone()
            heads[..., 0], heads[..., 1] = first * cosine - second * sine, first * sine + second * cosine
        return query, key


def layer(rotary: nn.Module | None) -> Any:
    attention: Any = nn.Module()
    attention.attn = SimpleNamespace(head_size=SIZE)
    if rotary is not None:
        attention.rotary_emb = rotary
    return SimpleNamespace(self_attn=attention)


def test_a_mix_of_unrotated_keys_is_rotated_as_the_layer_rotates_keys() -> None:
    torch.manual_seed(0)
    rotary = Rotary()
    parts: Any = SimpleNamespace(layers=[layer(rotary), layer(rotary)])
    rotations = StepRotations(parts, PROMPTS, [0, 1])
    keys = torch.randn(2, 7, HEADS * SIZE)
    rows, columns = torch.tensor([0, 1]), torch.tensor([[0, 2], [1, 2]])  # the second prompt is padded by one column
    places = torch.tensor([[1, 3], [5, 6]])
    with rotations.watched():
        for index in (0, 1):
            cached = keys[index].clone()
            rotary(POSITIONS, torch.zeros(7, 2 * HEADS * SIZE), cached)
            rotation = rotations.of(index, rows, columns)
            assert torch.equal(rotation.back(cached), keys[index].view(7, HEADS, SIZE)[places])
            torch.testing.assert_close(rotation.forth(rotation.back(cached)), cached.view(7, HEADS, SIZE)[places])
            mix = torch.randn(2, 2, HEADS, SIZE)
            turned = torch.polar(torch.ones(2, 2, HEADS), POSITIONS[places].float()[..., None].expand(2, 2, HEADS))
            wanted = torch.view_as_real(torch.view_as_complex(mix[..., :2].contiguous()) * turned)
            torch.testing.assert_close(rotation.forth(mix), torch.cat([wanted, mix[..., 2:]], dim=-1))
    assert not rotary._forward_pre_hooks


def test_a_layer_without_a_rotary_module_is_refused() -> None:
    parts: Any = SimpleNamespace(layers=[layer(None)])
    with pytest.raises(UnsupportedForm, match="layer 0 has no rotary embedding that is known"):
        StepRotations(parts, PROMPTS, [0])
