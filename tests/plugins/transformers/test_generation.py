"""Test that plug-ins act only in the prefill, for any code that runs the model."""

import json
import threading

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import qkedit
from qkedit import SCR
from qkedit.errors import UsageError
from tests.plugins.probes import Probe
from tests.plugins.scr import scr_oracle
from tests.plugins.scr.test_scr import EDITED, FACTOR, SETTINGS, expected
from tests.plugins.tiny_requests import ALL, IMAGE, Prompt, model, request, two_prompts
from tests.plugins.transformers.test_prefill import GREEDY, assert_same, generated


@pytest.mark.parametrize("family", ALL)
def test_a_factor_of_one_changes_no_bit(family):
    given = request(family, two_prompts(family))
    with qkedit.attach(model(family), SCR(factor=1.0, layers="all")) as attached, torch.no_grad():
        edited = model(family)(**given.inputs).logits
    with torch.no_grad():
        assert torch.equal(edited, model(family)(**given.inputs).logits)
    assert attached.report()[0].plugins["scr"].sources > 0


@pytest.mark.parametrize("family", ["qwen2-vl", "llava", "gemma3", "chameleon"])
def test_every_step_reads_the_edited_prompt(family):
    """Compare each step with the formulas over prompt and answer so far, without a cache."""
    prompt = two_prompts(family)[1]
    alone, pairs, _, _ = expected(family, prompt)
    steps = generated(family, alone.inputs, SCR(**SETTINGS))
    inputs = dict(alone.inputs)
    answer = []
    for step in range(3):
        found, _ = scr_oracle.logits(model(family), inputs, pairs, FACTOR, EDITED)
        assert_same(steps[step, 0], found[-1])
        answer.append(int(steps[step, 0].argmax()))
        for name, filler in (
            ("input_ids", answer[-1]),
            ("attention_mask", 1),
            ("mm_token_type_ids", 0),
            ("token_type_ids", 0),
        ):
            if name in inputs:
                inputs[name] = torch.cat([inputs[name], torch.full_like(inputs[name][:, :1], filler)], dim=1)
    assert IMAGE not in answer


@pytest.mark.parametrize("family", ["qwen3-vl", "llava-next", "idefics3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 5},
        {"cache_implementation": "static"},
    ],
    ids=json.dumps,
)
def test_the_first_logits_are_equal_for_every_way_to_generate(family, settings):
    """Compare with the edited forward pass, for every beam and answer."""
    given = request(family, two_prompts(family))
    with torch.no_grad(), qkedit.attach(model(family), SCR()):
        forward = model(family)(**given.inputs).logits[:, -1]
    plain = generated(family, given.inputs)[0]
    first = generated(family, given.inputs, SCR(), Probe(refine="end"), **settings)[0]
    repeats = first.shape[0] // forward.shape[0]
    assert_same(first, forward.repeat_interleave(repeats, dim=0))
    assert (first - plain.repeat_interleave(repeats, dim=0)).abs().max() > 1e-3


def test_streamed_tokens_equal_the_answer():
    class Tokens(BaseStreamer):
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen.append(value.flatten().tolist())

        def end(self):
            self.seen.append("end")

    given = request("llava", two_prompts("llava")[:1])
    streamer = Tokens()
    with qkedit.attach(model("llava"), SCR()):
        model("llava").generate(**given.inputs, max_new_tokens=4, do_sample=False, streamer=streamer)
    tokens = generated("llava", given.inputs, SCR())[:, 0].argmax(dim=-1).tolist()
    assert [token for put in streamer.seen[1:-1] for token in put] == tokens


@pytest.mark.parametrize("family", ["qwen2-vl", "glm4v", "llava"])
def test_a_request_during_another_changes_neither(family):
    """Models with multimodal rotary positions store a number of the latest prompt on the module."""
    prompts = two_prompts(family)
    first, second = (request(family, [prompt]) for prompt in prompts)
    plugins = SCR(), Probe(refine="end")
    alone = [generated(family, given.inputs, *plugins) for given in (first, second)]
    between = []

    class Interrupt(BaseStreamer):
        def put(self, value):
            if len(between) < 1 and value.numel() == 1:
                between.append(torch.stack(model(family).generate(**second.inputs, **GREEDY).logits))

        def end(self):
            pass

    with qkedit.attach(model(family), *plugins):
        interrupted = model(family).generate(**first.inputs, **GREEDY, streamer=Interrupt())
    assert torch.equal(torch.stack(interrupted.logits), alone[0])
    assert torch.equal(between[0], alone[1])


def test_requests_of_two_threads_equal_single_requests():
    """Generate in two threads at once."""
    family = "qwen2.5-vl"
    given = [request(family, [prompt]) for prompt in two_prompts(family)]
    text = {"input_ids": torch.tensor([[1, 50, 60, 70]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    requests = [given[0].inputs, given[1].inputs, text]
    alone = [generated(family, inputs, SCR()) for inputs in requests]
    found = [[], [], []]

    def run(number):
        for _ in range(4):
            found[number].append(torch.stack(model(family).generate(**requests[number], **GREEDY).logits))

    with qkedit.attach(model(family), SCR()) as attached:
        threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, results in enumerate(found):
        assert len(results) == 4
        for result in results:
            assert torch.equal(result, alone[number])
    assert len(attached.report()) == 8


def test_speculative_decoding_is_refused():
    given = request("llava", two_prompts("llava")[:1])
    with qkedit.attach(model("llava"), SCR()):
        with pytest.raises(UsageError, match="without an assistant"):
            model("llava").generate(**given.inputs, prompt_lookup_num_tokens=2, max_new_tokens=4)
        text = {"input_ids": torch.tensor([[1, 50, 60, 50]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
        assert model("llava").generate(**text, prompt_lookup_num_tokens=2, max_new_tokens=4).shape[1] > 4


def test_prefills_in_chunks_are_refused():
    given = request("llava", two_prompts("llava")[:1])
    with qkedit.attach(model("llava"), SCR()), pytest.raises(UsageError, match="prefill_chunk_size"):
        model("llava").generate(**given.inputs, prefill_chunk_size=30, max_new_tokens=2)


def test_generating_without_a_cache_is_refused():
    given = request("llava", two_prompts("llava")[:1])
    with qkedit.attach(model("llava"), SCR()), pytest.raises(UsageError, match="use a cache"):
        model("llava").generate(**given.inputs, use_cache=False, max_new_tokens=3)


def test_a_batch_may_have_prompts_without_images():
    prompts = [Prompt((2, (5, 6), 4), seed=1), Prompt((12,), seed=2)]
    plugins = SCR(), Probe(refine="image")
    both = generated("qwen2-vl", request("qwen2-vl", prompts).inputs, *plugins)
    assert_same(both[:, 1], generated("qwen2-vl", request("qwen2-vl", prompts[1:]).inputs)[:, 0])
    assert_same(both[:, 0], generated("qwen2-vl", request("qwen2-vl", prompts[:1]).inputs, *plugins)[:, 0])
    assert [call[1] for call in plugins[1].calls if call[0] == "cache"] == [(0,), (0,)]


def test_states_in_half_precision_are_scaled_in_float32():
    """A factor of one changes no bit."""
    tiny = model.__wrapped__("qwen2-vl").to(torch.bfloat16)
    given = request("qwen2-vl", two_prompts("qwen2-vl"))
    with torch.no_grad():
        plain = tiny(**given.inputs).logits
        with qkedit.attach(tiny, SCR(factor=1.0)):
            assert torch.equal(tiny(**given.inputs).logits, plain)
        with qkedit.attach(tiny, SCR()):
            edited = tiny(**given.inputs).logits
    assert edited.dtype == torch.bfloat16
    assert not torch.equal(edited, plain)
