"""Test that prompts in a batch get the same answers as single prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qkedit.demo import SMALL_DEMO
from qkedit.plugins.scr.plugin import SCR
from qkedit.runtime.generation import (
    LoadedModel,
    ProcessorFault,
    Prompt,
    batch_inputs,
    load,
    prompt_text,
    respond_batch,
)
from tests.serving import tiny_processors

QUESTIONS = ("is there a cup in the image", "describe it", "what stands here and what is there please")


def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = ((60, 80), (96, 40), (48, 48))
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def prompts(loaded: LoadedModel) -> list[Prompt]:
    return [
        Prompt(prompt_text(loaded, question, 1), (image,)) for question, image in zip(QUESTIONS, images(), strict=True)
    ]


@pytest.fixture(scope="module", params=[SMALL_DEMO, *tiny_processors.FAMILIES])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return load(SMALL_DEMO, dtype="float32") if request.param == SMALL_DEMO else tiny_processors.loaded(request.param)


@pytest.mark.parametrize("plugins", [(), (SCR(layers="0-2"),)], ids=["plain", "scr"])
def test_answers_of_a_batch_equal_those_of_single_prompts(loaded: LoadedModel, plugins: tuple[Any, ...]) -> None:
    alone = [respond_batch(loaded, [prompt], plugins, max_new_tokens=8)[0] for prompt in prompts(loaded)]
    together = respond_batch(loaded, prompts(loaded), plugins, max_new_tokens=8)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    for answer in together:
        assert (answer.report is not None) == bool(plugins)
        assert answer.report is None or answer.report.prompts == len(QUESTIONS)


def test_logits_of_a_batch_equal_those_of_single_prompts(loaded: LoadedModel) -> None:
    """Compare logits, since texts may agree by chance."""
    settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}

    def logits(asked: list[Prompt]) -> torch.Tensor:
        inputs = batch_inputs(loaded, asked)
        return torch.stack(loaded.model.generate(**inputs, **settings).logits)

    alone = torch.cat([logits([prompt]) for prompt in prompts(loaded)], dim=1)
    together = logits(prompts(loaded))
    assert (alone[:, 0] - alone[:, 1]).abs().max() > 1e-2 * alone.abs().max()
    torch.testing.assert_close(together, alone, atol=1e-5 * float(alone.abs().max()), rtol=1e-4)


def test_shorter_prompts_are_padded_on_the_left(loaded: LoadedModel) -> None:
    asked = prompts(loaded)
    mask = batch_inputs(loaded, asked)["attention_mask"]
    lengths = [batch_inputs(loaded, [prompt])["input_ids"].shape[1] for prompt in asked]
    assert len(set(lengths)) > 1
    assert mask.sum(dim=1).tolist() == lengths
    assert torch.equal(mask, mask.sort(dim=1).values)


def test_answers_of_a_batch_end_at_their_own_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declare a token of the answers as their end token, so that they end at different positions."""
    loaded = tiny_processors.loaded("llava-next")
    asked = prompts(loaded)
    inputs = [batch_inputs(loaded, [prompt]) for prompt in asked]
    rows = [
        loaded.model.generate(**one, max_new_tokens=12, do_sample=False)[0, one["input_ids"].shape[1] :].tolist()
        for one in inputs
    ]
    end = next(token for token in rows[0] if rows[0].index(token) > 0)
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [2, end])
    expected = [row[: row.index(end) + 1] if end in row else row for row in rows]
    answers = respond_batch(loaded, asked, max_new_tokens=12)
    assert [answer.tokens for answer in answers] == [len(row) for row in expected]
    assert len({len(row) for row in expected}) > 1
    decoded = [loaded.processor.decode(row, skip_special_tokens=True).strip() for row in expected]
    assert [answer.text for answer in answers] == decoded


class _OneByOne:
    """A processor that does not accept batches."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.asked: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, text: list[str], **settings: Any) -> Any:
        self.asked.append(len(text))
        if len(text) > 1:
            raise ValueError("one text at a time")
        return self._processor(text=text, **settings)


def test_a_processor_without_batches_is_called_per_prompt() -> None:
    demo = load(SMALL_DEMO, dtype="float32")
    processor = _OneByOne(demo.processor)
    answers = respond_batch(
        LoadedModel(SMALL_DEMO, demo.model, processor), prompts(demo), [SCR(layers="0-2")], max_new_tokens=4
    )
    assert processor.asked == [3, 1, 1, 1]
    assert [answer.report.prompts for answer in answers if answer.report] == [1, 1, 1]
    expected = respond_batch(demo, prompts(demo), [SCR(layers="0-2")], max_new_tokens=4)
    assert [answer.text for answer in answers] == [answer.text for answer in expected]


def test_invalid_inputs_of_a_processor_are_an_error() -> None:
    demo = load(SMALL_DEMO, dtype="float32")
    with pytest.raises(ProcessorFault, match="image"):
        respond_batch(demo, [Prompt("no placeholder", (images()[0],))], max_new_tokens=2)


def test_a_start_token_of_the_template_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with the tokens of transformers' `apply_chat_template`."""
    demo = load(SMALL_DEMO, dtype="float32")
    plain = demo.processor.chat_template
    begin = demo.processor.tokenizer.bos_token
    assert begin
    for template in (plain, "{{ bos_token }}" + plain):
        monkeypatch.setattr(demo.processor, "chat_template", template)
        inputs = batch_inputs(demo, prompts(demo)[:1])
        content = [{"type": "image", "image": images()[0]}, {"type": "text", "text": QUESTIONS[0]}]
        expected = demo.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert torch.equal(inputs["input_ids"], expected["input_ids"])
