"""Test how prompts are taken from an engine's row of tokens, and how plug-ins edit a step, on a small engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkedit.integrations.vllm import step
from qkedit.integrations.vllm.prompts import PromptBatch, WholePrompt, attention_rows
from qkedit.integrations.vllm.step import StepEditor
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.prefill import Prefill, Span
from qkedit.plugins.core.protocol import RequestEdit
from qkedit.plugins.core.recorded_attention import AttentionRecorder, Reading

WIDTH, HEADS, KEY_HEADS, SIZE = 8, 4, 2, 2
# Two prompts among the seven tokens of a step; those of other requests are at 0 and 4.
PROMPTS = PromptBatch((WholePrompt("a", 1, (7, 8, 9), ({},)), WholePrompt("b", 5, (6, 5), ({},))))
OTHERS = [0, 4]


def test_prompts_are_batched_from_a_row_of_tokens_and_put_back() -> None:
    states = torch.arange(1.0, 8)[:, None]
    assert PROMPTS.batched(states)[..., 0].tolist() == [[2, 3, 4], [0, 6, 7]]
    assert PROMPTS.input_ids.tolist() == [[7, 8, 9], [-1, 6, 5]]
    back = PROMPTS.put_back(10 * PROMPTS.batched(states), states)
    assert back[:, 0].tolist() == [1, 20, 30, 40, 5, 60, 70]
    assert states[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("first", [0, 3, 5])
def test_attention_of_the_last_rows_equals_that_of_torch(first: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(6, HEADS, SIZE), torch.randn(6, KEY_HEADS, SIZE), torch.randn(6, KEY_HEADS, SIZE)
    wanted = nn.functional.scaled_dot_product_attention(
        *(states.transpose(0, 1)[None] for states in (query, key, value)), is_causal=True, enable_gqa=True, scale=0.3
    )[0].transpose(0, 1)
    torch.testing.assert_close(attention_rows(query, key, value, first, 0.3), wanted[first:])


class Implementation:
    """Attention of every prompt of the step, with a cache that is the step's own keys and values."""

    scale = 0.5

    def forward(
        self, attention: Any, query: Tensor, key: Tensor, value: Tensor, cache: Any, metadata: Any, output: Tensor
    ) -> Tensor:
        cache["keys"], cache["values"] = key.clone(), value.clone()
        for prompt in PROMPTS.prompts:
            own = slice(prompt.first, prompt.first + len(prompt.tokens))
            output[own] = attention_rows(query[own], key[own], value[own], 0, self.scale)
        return output


class Layer(nn.Module):
    """A decoder layer as vLLM has it: state and residual are two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, (HEADS + 2 * KEY_HEADS) * SIZE, bias=False)
        self.self_attn = nn.Module()
        self.self_attn.attn = SimpleNamespace(impl=Implementation(), cache={})  # type: ignore[assignment]

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        heads = self.project(residual).unflatten(-1, (-1, SIZE))
        query, key, value = heads.split([HEADS, KEY_HEADS, KEY_HEADS], dim=1)
        attention: Any = self.self_attn.attn
        output = torch.zeros_like(query)
        attention.impl.forward(attention, query, key, value, attention.cache, None, output)
        return output.flatten(1), residual


class Engine:
    """Two layers, and the plug-ins' editor."""

    def __init__(self, edit: Any) -> None:
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Layer(), Layer()])
        model = SimpleNamespace(config=SimpleNamespace(model_type="llava"))
        parts = VLMModules(model, model, model, self.layers, (0, 1))  # type: ignore[arg-type]
        self.editor = StepEditor(
            parts, {"edit": SimpleNamespace(start=edit)}, self._update_cache, lambda scores: scores
        )
        self.embeddings = torch.randn(7, WIDTH)

    def forward(self, embeddings: Tensor) -> Tensor:
        hidden, residual = embeddings, None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        assert residual is not None
        return hidden + residual

    def edited(self) -> Tensor:
        found: Tensor = self.editor.run(PROMPTS, self.forward, self.embeddings)
        return found

    def cache(self, layer: int) -> dict[str, Tensor]:
        attention: Any = self.layers[layer].self_attn
        found: dict[str, Tensor] = attention.attn.cache
        return found

    @staticmethod
    def _update_cache(attention: Any, keys: Tensor, values: Tensor) -> None:
        attention.cache["keys"], attention.cache["values"] = keys, values


@pytest.fixture(autouse=True)
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the grids of images, which other files test."""
    monkeypatch.setattr(step, "image_inputs", lambda family, items: {})
    monkeypatch.setattr(step, "image_grids", lambda config, ids, inputs: SimpleNamespace(length=ids.shape[1]))


class States(RequestEdit):
    """Adds one to the second column after the first layer."""

    edited_layers = frozenset({0})

    def edit_layer(self, layer: int, hidden: Tensor, span: Span) -> Tensor:
        assert (layer, span, hidden.shape) == (0, Span(0, 3), (2, 3, WIDTH))
        changed = hidden.clone()
        changed[:, 1] += 1
        return changed


@torch.no_grad()
def test_an_edit_of_states_changes_only_whole_prompts() -> None:
    engine = Engine(lambda prefill: States())
    hidden, residual = engine.layers[0](engine.embeddings, None)
    state = hidden + residual
    state[[2, 5]] += 1
    hidden, residual = engine.layers[1](torch.zeros_like(state), state)
    assert torch.equal(engine.edited(), hidden + residual)
    assert torch.equal(engine.forward(engine.embeddings)[OTHERS], engine.edited()[OTHERS])
    assert not any(layer._forward_hooks for layer in engine.layers)


class Keys(RequestEdit):
    """Doubles the key and the value of the column before the last one; the last token reads them."""

    refine_after = (2, 2)
    cached_layers = frozenset({1})

    def edit_cache_layer(self, index: int, layer: Any, rows: tuple[int, ...], length: int) -> None:
        assert (index, rows, length, layer.keys.shape) == (1, (0, 1), 2, (2, KEY_HEADS, 3, SIZE))
        layer.keys[:, :, 1] *= 2
        layer.values[:, :, 1] *= 2


@torch.no_grad()
def test_an_edit_of_the_cache_is_stored_and_changes_only_the_last_token() -> None:
    engine = Engine(lambda prefill: Keys())
    plain = engine.forward(engine.embeddings)
    keys, values = (engine.cache(1)[name].clone() for name in ("keys", "values"))
    found = engine.edited()
    for states, before in ((engine.cache(1)["keys"], keys), (engine.cache(1)["values"], values)):
        before[[2, 5]] *= 2
        assert torch.equal(states, before)
    moved = (found != plain).any(1).nonzero().flatten().tolist()
    assert moved == [3, 6]
    layer: Any = engine.layers[1]
    assert "forward" not in vars(layer.self_attn.attn.impl)

    hidden, residual = engine.layers[0](engine.embeddings, None)
    state = hidden + residual
    query = layer.project(state).unflatten(-1, (-1, SIZE))[:, :HEADS]
    read = attention_rows(query[1:4], engine.cache(1)["keys"][1:4], engine.cache(1)["values"][1:4], 2, 0.5)
    torch.testing.assert_close(found[3], state[3] + read.flatten())


@torch.no_grad()
def test_a_preview_records_attention_without_changing_the_step() -> None:
    readings = [
        Reading(0, torch.tensor([2]), torch.tensor([0, 1, 2])),
        Reading(1, torch.tensor([2]), torch.tensor([1, 2])),
    ]
    recorder = AttentionRecorder(frozenset({1}), readings, leave_after=1)
    seen: dict[int, Tensor] = {}

    def start(prefill: Prefill) -> RequestEdit:
        with prefill.recording(recorder):
            prefill.preview(1, lambda layer, state: seen.update({layer: state}))
        return RequestEdit()

    engine = Engine(start)
    plain = engine.forward(engine.embeddings)
    assert torch.equal(engine.edited(), plain)
    hidden, residual = engine.layers[0](engine.embeddings, None)
    assert seen.keys() == {0}  # it leaves as soon as the last attention is known
    assert torch.equal(seen[0], PROMPTS.batched(hidden + residual))
    layer: Any = engine.layers[1]
    heads = layer.project(hidden + residual).unflatten(-1, (-1, SIZE))
    for scores, own in zip(recorder.scores[1], (slice(1, 4), slice(5, 7)), strict=True):
        query, key = heads[own, :HEADS][-1], heads[own, HEADS : HEADS + KEY_HEADS]
        logits = torch.einsum("hd,khd->hk", query, key.repeat_interleave(2, dim=1)) * 0.5
        torch.testing.assert_close(scores, logits.softmax(-1).mean(0))


@torch.no_grad()
def test_a_failed_edit_is_counted_and_does_not_change_the_step() -> None:
    def fails(prefill: Prefill) -> RequestEdit:
        raise ValueError("no grid\nat all")

    engine = Engine(fails)
    assert torch.equal(engine.edited(), engine.forward(engine.embeddings))
    assert (engine.editor.counts["failed"], engine.editor.failure) == (2, "no grid")

    class FailsLater(Keys, States):
        def edit_layer(self, layer: int, hidden: Tensor, span: Span) -> Tensor:
            raise ValueError("states")

        def edit_cache_layer(self, index: int, layer: Any, rows: tuple[int, ...], length: int) -> None:
            layer.keys += 1
            raise ValueError("keys")

    engine = Engine(lambda prefill: FailsLater())
    torch.testing.assert_close(engine.edited(), engine.forward(engine.embeddings), rtol=0, atol=0)
    assert engine.editor.counts["failed"] == 2


@torch.no_grad()
def test_plug_ins_edit_the_other_prompts_of_a_step_if_one_fails() -> None:
    def start(prefill: Prefill) -> RequestEdit:
        if 5 in prefill.input_ids:
            raise ValueError("no depth")
        return Alone()

    class Alone(RequestEdit):
        edited_layers = frozenset({0})

        def edit_layer(self, layer: int, hidden: Tensor, span: Span) -> Tensor:
            assert hidden.shape == (1, 3, WIDTH)
            return hidden + 1

    engine = Engine(start)
    found, plain = engine.edited(), engine.forward(engine.embeddings)
    assert torch.equal(found[[0, 4, 5, 6]], plain[[0, 4, 5, 6]])
    assert (found[1:4] != plain[1:4]).all()
    assert (engine.editor.counts["edited"], engine.editor.counts["failed"]) == (1, 1)
    assert engine.editor.failure == "no depth"


class Scaled(RequestEdit):
    """Scales the keys of the first columns in the second layer, when they are in the cache."""

    cached_layers = frozenset({1})

    def __init__(self, factor: float, ends: tuple[int | None, ...]) -> None:
        self.factor, self.refine_after = factor, ends

    def edit_cache_layer(self, index: int, layer: Any, rows: tuple[int, ...], length: int) -> None:
        for row in rows:
            layer.keys[row, :, :length] *= self.factor


@torch.no_grad()
def test_edits_of_one_cache_are_applied_in_the_order_of_their_columns() -> None:
    """The first prompt is edited after column 1 and after column 2; the second, which is padded, after column 2."""
    engine = Engine(lambda prefill: Scaled(2.0, (1, 2)))
    engine.editor.plugins = {**engine.editor.plugins, "other": SimpleNamespace(start=lambda _: Scaled(3.0, (2, None)))}
    hidden, residual = engine.layers[0](engine.embeddings, None)
    layer: Any = engine.layers[1]
    query, key, value = (
        layer.project(hidden + residual).unflatten(-1, (-1, SIZE)).split([HEADS, KEY_HEADS, KEY_HEADS], dim=1)
    )
    first, twice = key.clone(), key.clone()
    first[1] *= 2
    twice[1] *= 6
    twice[2] *= 3
    twice[5] *= 2  # column 1 of the second prompt, before which there is padding
    state = hidden + residual
    output = (engine.edited() - state).unflatten(1, (HEADS, SIZE))
    torch.testing.assert_close(engine.cache(1)["keys"], twice)
    own = slice(1, 4)
    after_one = attention_rows(query[own], first[own], value[own], 1, 0.5)
    after_two = attention_rows(query[own], twice[own], value[own], 2, 0.5)
    torch.testing.assert_close(output[2], after_one[0])
    torch.testing.assert_close(output[3], after_two[0])
    torch.testing.assert_close(output[6], attention_rows(query[5:7], twice[5:7], value[5:7], 1, 0.5)[0])
    torch.testing.assert_close(output[1], attention_rows(query[own], key[own], value[own], 0, 0.5)[0])
