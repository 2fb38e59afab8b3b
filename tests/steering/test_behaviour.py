"""Test edited checkpoints in transformers: the attention scores of an edited head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qkedit.api.editing import steer
from qkedit.demo import SMALL_DEMO, demo_checkpoint
from tests.spectral.oracle import modes
from tests.steering.checkpoints import same_bits
from tests.steering.conftest import TinyCheckpoint

LAYER, HEAD, MODES, RETAIN = 1, 3, 2, 0.5
HEADS = 4


@dataclass(frozen=True)
class Attention:
    """The inputs and outputs of one layer's projections in float64 numpy; heads are the first axis of q and k."""

    states: Any  # [tokens, D]
    queries: Any  # [H, tokens, d_h], before rotation
    keys: Any  # [H_kv, tokens, d_h]

    def logits(self, head: int) -> Any:
        """Return `q_i · k_j` at relative offset 0, before rotation and the factor 1/√d_h."""
        return self.queries[head] @ self.keys[head // (len(self.queries) // len(self.keys))].T


def load(directory: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()


def attention(model: Any, layer: int, ids: Tensor) -> tuple[Attention, Tensor]:
    """Run the model on text, and return one layer's projections and the logits of the model."""
    seen: dict[str, Tensor] = {}
    module = model.get_decoder().layers[layer].self_attn
    hooks = [
        projection.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: output[0], "states": inputs[0][0]})
        )
        for name, projection in (("queries", module.q_proj), ("keys", module.k_proj))
    ]
    with torch.no_grad():
        out = model(input_ids=ids).logits
    for hook in hooks:
        hook.remove()

    def heads(projected: Tensor) -> Any:
        return projected.unflatten(-1, (-1, module.head_dim)).transpose(0, 1).double().numpy()

    return Attention(seen["states"].double().numpy(), heads(seen["queries"]), heads(seen["keys"])), out


# Qwen2 decoders have biases on their keys, Llama decoders have none.
@pytest.mark.parametrize("family", ["qwen2-vl", "internvl", "llava", "idefics3"])
def test_logits_lose_the_dominant_modes_and_their_part_of_the_key_bias(
    family: str, tiny: TinyCheckpoint, tmp_path: Path
) -> None:
    base, out = tiny(family, "float32"), tmp_path / "edited"
    steer(base, out=out, layers=str(LAYER), heads=str(HEAD), k=MODES, retain=RETAIN, fsync=False)
    original, edited = load(base), load(out)
    ids = torch.arange(10, 30).unsqueeze(0)
    before, logits_before = attention(original, LAYER, ids)
    after, logits_after = attention(edited, LAYER, ids)
    np.testing.assert_array_equal(before.states, after.states)

    modules = [model.get_decoder().layers[LAYER].self_attn for model in (original, edited)]
    size = modules[0].head_dim
    rows, key = slice(HEAD * size, (HEAD + 1) * size), HEAD // (HEADS // len(before.keys))
    query, new_query = (module.q_proj.weight.detach().double().numpy()[rows] for module in modules)
    key_rows = modules[0].k_proj.weight.detach().double().numpy()[key * size : (key + 1) * size]
    suppressed = (1 - RETAIN) * modes(query.T @ key_rows).cut(MODES)
    expected = before.logits(HEAD) - before.states @ suppressed @ before.states.T
    bias = modules[0].k_proj.bias
    assert (bias is not None) == (family in ("qwen2-vl", "internvl"))
    if bias is not None:
        key_bias = bias.detach().double().numpy()[key * size : (key + 1) * size]
        added = before.states @ (new_query - query).T @ key_bias
        assert np.abs(added).max() > 1e-2, "the test needs a bias with an effect"
        expected += added[:, None]  # the same for every key token
    scale = np.abs(before.logits(HEAD)).max()
    np.testing.assert_allclose(after.logits(HEAD), expected, atol=2e-6 * scale)
    assert np.abs(after.logits(HEAD) - before.logits(HEAD)).max() > 0.05 * scale

    for other in set(range(HEADS)) - {HEAD}:
        # Not bit by bit: the order of sums in a matrix product may depend on its other rows.
        np.testing.assert_allclose(after.logits(other), before.logits(other), atol=1e-6 * scale)
    assert logits_after.isfinite().all()
    assert not torch.allclose(logits_after, logits_before, atol=1e-4)


def test_all_weights_except_edited_queries_are_equal_in_the_loaded_model(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    base, out = tiny("qwen2.5-vl"), tmp_path / "edited"
    steer(base, out=out, layers=str(LAYER), k=MODES, fsync=False)
    before, after = load(base).state_dict(), load(out).state_dict()
    assert set(before) == set(after)
    changed = [name for name in before if not same_bits(before[name], after[name])]
    assert len(changed) == 1
    assert changed[0].endswith(f"layers.{LAYER}.self_attn.q_proj.weight")


def test_the_edited_demo_describes_an_image(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    steer(SMALL_DEMO, out=tmp_path / "edited", layers="2-5", fsync=False)
    processor = AutoProcessor.from_pretrained(tmp_path / "edited")
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = processor(images=Image.new("RGB", (56, 56), "red"), text=prompt, return_tensors="pt")
    scores = []
    for directory in (demo_checkpoint(SMALL_DEMO), tmp_path / "edited"):
        model = AutoModelForImageTextToText.from_pretrained(directory).eval()
        with torch.no_grad():
            scores.append(model(**inputs).logits)
            answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert answer.shape[-1] > inputs["input_ids"].shape[-1]
    assert scores[1].isfinite().all()
    assert not torch.equal(*scores)
