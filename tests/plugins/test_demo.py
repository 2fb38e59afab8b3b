"""Test plug-ins on the embedded checkpoint with its own processor and chat template."""

import pytest
import torch
from PIL import Image

import qkedit
from qkedit import SCR
from qkedit.demo import SMALL_DEMO, demo_checkpoint


@pytest.fixture(scope="module")
def demo():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(demo_checkpoint(SMALL_DEMO), dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(demo_checkpoint(SMALL_DEMO))


def test_a_chat_with_two_images_of_different_sizes_is_edited(demo):
    model, processor = demo
    images = [Image.effect_noise((96, 60), 80).convert("RGB"), Image.new("RGB", (50, 120), "red")]
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": "describe"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    settings = {"max_new_tokens": 8, "do_sample": False}
    plain = model.generate(**inputs, **settings)
    with qkedit.attach(model, SCR()) as attached:
        edited = model.generate(**inputs, **settings)
        with torch.no_grad():
            edited_logits = model(**inputs).logits
    with torch.no_grad():
        assert (edited_logits - model(**inputs).logits).abs().max() > 1e-3
    assert torch.equal(model.generate(**inputs, **settings), plain)
    assert edited.shape[0] == 1
    report = attached.report()[0]
    assert (report.images, report.cells) == (2, 128)
    assert report.plugins["scr"].grids == 2
    ratios = report.plugins["scr"].norm_ratio
    assert list(ratios) == [0, 1, 2, 3]
    # Eight neighbours grow by a tenth in each layer: norms grow from layer to layer, but are bounded.
    assert 1.0 < ratios[0] < ratios[3] < 1.6
