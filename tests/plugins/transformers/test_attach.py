"""Test attaching, detaching, reports, and refusals in one sentence."""

import os
from shutil import which

import pytest
import torch
from accelerate import disk_offload, dispatch_model

import qkedit
from qkedit import DSCR, SCR
from qkedit.errors import QkeditError, UnsupportedForm, UsageError
from qkedit.plugins.transformers import attach as attach_module
from tests import tiny_models
from tests.plugins.dscr.dscr_requests import depth_maps
from tests.plugins.probes import Probe
from tests.plugins.tiny_requests import IMAGE, Prompt, model, request, two_prompts
from tests.plugins.transformers.test_prefill import GREEDY, assert_same, generated


def one(family="llava"):
    return request(family, two_prompts(family)[:1])


def fresh(family):
    """Return a new model that a test may change."""
    return model.__wrapped__(family)


def state_of(tiny):
    """Return everything that an attachment might change: attributes and hooks of modules, and weights."""
    return {
        name: (
            {key: value for key, value in vars(module).items() if callable(value)},
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in tiny.named_modules()
    }, {name: tensor.clone() for name, tensor in tiny.state_dict().items()}


@pytest.mark.parametrize("family", ["llava", "qwen3-vl", "chameleon"])
def test_detaching_restores_the_model_exactly(family):
    tiny, given = model(family), one(family)
    plain = generated(family, given.inputs)
    modules, weights = state_of(tiny)
    attached = qkedit.attach(tiny, SCR())
    assert not torch.equal(torch.stack(tiny.generate(**given.inputs, **GREEDY).logits), plain)
    attached.detach()
    attached.detach()
    after, tensors = state_of(tiny)
    assert after == modules
    assert all(torch.equal(weights[name], tensors[name]) for name in weights)
    assert torch.equal(generated(family, given.inputs), plain)


def test_an_attachment_can_be_entered_again():
    attached = qkedit.attach(model("llava"), SCR())
    attached.detach()
    with attached:
        model("llava").generate(**one().inputs, **GREEDY)
    with attached:
        model("llava").generate(**one().inputs, **GREEDY)
    assert len(attached.report()) == 2
    assert "forward" not in vars(model("llava").model)


def test_prompts_without_images_are_not_edited():
    ids = torch.tensor([[1, 50, 60, 70]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    plain = generated("llava", text)
    probe = Probe(refine="end", layers=(0,))
    assert torch.equal(generated("llava", text, probe), plain)
    assert probe.calls == probe.prefills == []


def test_decoding_steps_are_not_edited():
    probe = Probe(layers=(0, 1))
    generated("llava", one().inputs, probe, max_new_tokens=6)
    length = one().ids.shape[1]
    assert [call for call in probe.calls if call[0] == "layer"] == [
        ("layer", 0, (0, length)),
        ("layer", 1, (0, length)),
    ]


def test_reports_are_stored_per_request_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(attach_module, "REPORTS_KEPT", 2)
    prompts = two_prompts("llava")
    with qkedit.attach(model("llava"), SCR(), Probe()) as attached:
        assert attached.report() == ()
        for batch in (prompts[:1], prompts, prompts[1:]):
            model("llava").generate(**request("llava", batch).inputs, **GREEDY)
    reports = attached.report()
    assert [(report.prompts, report.images, report.cells) for report in reports] == [(2, 3, 108), (1, 2, 72)]
    assert reports[0].image_tokens == 108
    assert set(reports[0].plugins) == set(reports[0].seconds) == {"scr", "probe"}
    assert all(seconds >= 0 for seconds in reports[0].seconds.values())


def test_two_attachments_to_one_model_are_refused():
    with qkedit.attach(model("llava"), SCR()):
        with pytest.raises(UsageError, match="already attached to the model"):
            qkedit.attach(model("llava"), Probe())
        with qkedit.attach(model("qwen2-vl"), Probe()):
            pass
    qkedit.attach(model("llava"), Probe()).detach()


@pytest.mark.parametrize(("plugins", "message"), [((), "no plug-in"), ((Probe(), Probe()), "not distinct")])
def test_an_empty_or_repeated_list_of_plugins_is_refused(plugins, message):
    with pytest.raises(UsageError, match=message):
        qkedit.attach(model("llava"), *plugins)


def test_invalid_settings_leave_the_model_unchanged():
    with pytest.raises(UsageError, match="layers 0 to 3"):
        qkedit.attach(model("llava"), SCR(layers="0-4"))
    assert "forward" not in vars(model("llava").model)


def test_an_exception_during_generation_leaves_the_model_usable():
    tiny, given = model("llava"), one()
    modules, _ = state_of(tiny)

    def stop(hidden):
        raise RuntimeError("in a layer")

    def fail(scores, sequences=None):
        raise RuntimeError("while decoding")

    plain = generated("llava", given.inputs)
    with qkedit.attach(tiny, Probe(layers=(1,), change=stop)), pytest.raises(RuntimeError, match="in a layer"):
        tiny.generate(**given.inputs, **GREEDY)
    with qkedit.attach(tiny, SCR()) as attached:
        with pytest.raises(RuntimeError, match="while decoding"):
            tiny.generate(**given.inputs, **GREEDY, logits_processor=[fail])
        first = torch.stack(tiny.generate(**given.inputs, **GREEDY).logits)
        assert len(attached.report()) == 2
    assert state_of(tiny)[0] == modules
    assert torch.equal(generated("llava", given.inputs), plain)
    assert torch.equal(generated("llava", given.inputs, SCR()), first)


def test_videos_are_refused():
    given = request("qwen2-vl", [Prompt((2, 4))])
    inputs = {**given.inputs, "pixel_values_videos": torch.zeros(16, 384), "video_grid_thw": torch.tensor([[1, 4, 4]])}
    with qkedit.attach(model("qwen2-vl"), SCR()), pytest.raises(UsageError, match=r"not on videos.*frames as images"):
        model("qwen2-vl")(**inputs)


def test_requests_without_a_known_prompt_are_refused():
    tiny, given = model("llava"), one()
    embeddings = tiny.get_input_embeddings()(given.ids)
    with qkedit.attach(tiny, SCR()):
        with pytest.raises(UsageError, match="pass input_ids"):
            tiny(inputs_embeds=embeddings, pixel_values=given.inputs["pixel_values"])
        with torch.no_grad():
            ids = torch.tensor([[1, 50, 60]])
            cache = tiny(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(UsageError, match="empty cache"):
            tiny(**{**given.inputs, "attention_mask": None}, past_key_values=cache)
        with pytest.raises(UsageError, match="no text follows an image"):
            tiny(**image_at_the_end(given))
        tiny.train()
        try:
            with pytest.raises(UsageError, match=r"call model.eval\(\)"):
                tiny(**given.inputs)
        finally:
            tiny.eval()


def image_at_the_end(given):
    end = int((given.ids[0] == IMAGE).nonzero()[-1]) + 1
    return {**given.inputs, "input_ids": given.ids[:, :end], "attention_mask": given.inputs["attention_mask"][:, :end]}


def test_images_encoded_before_attaching_are_refused():
    tiny, given = model("llava"), one()
    encoded = {"image": tiny.model.get_image_features(given.inputs["pixel_values"], return_dict=True)}
    rest = {name: value for name, value in given.inputs.items() if name != "pixel_values"}
    with qkedit.attach(tiny, SCR()), torch.no_grad():
        with pytest.raises(UsageError, match="made before the plug-ins were attached"):
            tiny(**rest, mm_encoder_outputs=encoded)
        again = {"image": tiny.model.get_image_features(given.inputs["pixel_values"], return_dict=True)}
        torch.testing.assert_close(tiny(**rest, mm_encoder_outputs=again).logits, tiny(**given.inputs).logits)
        assert isinstance(tiny.model.get_image_features(given.inputs["pixel_values"], return_dict=False), tuple)


def test_a_model_that_bypasses_its_decoder_is_an_error(monkeypatch):
    tiny, given = model("llava"), one()
    with qkedit.attach(tiny, SCR()):
        decoder = tiny.model.language_model
        monkeypatch.setattr(decoder, "forward", type(decoder).forward.__get__(decoder))
        with pytest.raises(QkeditError, match="did not act"):
            tiny.generate(**given.inputs, **GREEDY)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), UsageError, "Linear is not a model of transformers"),
        (lambda: tiny_models.model("llama", "float32"), UnsupportedForm, "is unknown"),
        (lambda: tiny_models.model("mllama", "float32"), UnsupportedForm, "do not form a grid"),
        (lambda: model("llava").model, UnsupportedForm, "does not consist of"),
    ],
)
def test_models_without_support_for_plugins_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        qkedit.attach(build(), SCR())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, at first use
def test_a_compiled_model_is_refused():
    with pytest.raises(UsageError, match="compiled model"):
        qkedit.attach(torch.compile(model("llava"), backend="eager"), SCR())
    for part in ("", "model", "model.language_model"):
        in_place, forward_alone = fresh("llava"), fresh("llava")
        in_place.get_submodule(part).compile(backend="eager")
        own = forward_alone.get_submodule(part)
        own.forward = torch.compile(own.forward, backend="eager")
        for compiled in (in_place, forward_alone):
            with pytest.raises(UsageError, match="compiled model"):
                qkedit.attach(compiled, SCR())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(
                which("g++") is None or not os.environ.get("SLOW_TESTS"),
                reason="takes a minute of g++; set SLOW_TESTS",
            ),
        ),
    ],
)
def test_layers_compiled_separately_are_edited(backend):
    """Compile before attaching and by an unedited request: later requests must still be edited."""
    given, tiny = one(), fresh("llava")
    with torch.no_grad():
        with qkedit.attach(tiny, SCR()):
            expected = tiny(**given.inputs).logits
        plain = tiny(**given.inputs).logits
        tiny.get_decoder().layers[1].compile(backend=backend)
        assert_same(tiny(**given.inputs).logits, plain)
        with qkedit.attach(tiny, SCR()) as attached:
            for _ in range(2):
                assert_same(tiny(**given.inputs).logits, expected)
        assert_same(tiny(**given.inputs).logits, plain)
    assert len(attached.report()) == 2
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["llava", "chameleon"])
def test_calling_the_inner_model_directly_is_edited(family):
    tiny, given = model(family), one(family)
    with torch.no_grad(), qkedit.attach(tiny, SCR()) as attached:
        whole = tiny(**given.inputs, output_hidden_states=True).hidden_states[-1]
        assert_same(tiny.model(**given.inputs).last_hidden_state, whole)
        assert len(attached.report()) == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_steps_without_images_compile_once_as_one_graph():
    tiny = model("llava")
    text = {"input_ids": torch.tensor([[1, 50, 60, 70]]), "use_cache": False}
    with torch.no_grad(), qkedit.attach(tiny, SCR()):
        compiled = torch.compile(tiny, backend="eager", fullgraph=True)
        assert_same(compiled(**text).logits, tiny(**text).logits)
        tiny(**one().inputs)
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(**text)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_model_compiled_after_attaching_is_edited():
    tiny, given = model("llava"), one()
    expected = generated("llava", given.inputs, SCR())
    with qkedit.attach(tiny, SCR()) as attached, torch.no_grad():
        compiled = torch.compile(tiny, backend="eager", dynamic=True)
        found = compiled(**given.inputs).logits[:, -1]
        assert_same(found, expected[0])
        assert len(attached.report()) == 1
    torch._dynamo.reset()


def offloaded_whole(tiny, folder):
    disk_offload(tiny, folder, execution_device=torch.device("cpu"))


def dispatched(tiny, folder):
    """Put the decoder's second half on disk and the rest on the CPU, as `from_pretrained(device_map=…)` does."""
    places = {"model.visual": "cpu", "model.language_model.embed_tokens": "cpu", "model.language_model.norm": "cpu"}
    layers = {f"model.language_model.layers.{layer}": "cpu" if layer < 2 else "disk" for layer in range(4)}
    rest = {"model.language_model.rotary_emb": "cpu", "lm_head": "cpu"}
    dispatch_model(tiny, {**places, **layers, **rest}, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("spread_over", [offloaded_whole, dispatched])
def test_a_model_spread_over_devices_is_edited(spread_over, tmp_path):
    """Weights that accelerate loads from disk use the same hooks as a second device."""
    given = one("qwen2-vl")
    plugins = SCR(), DSCR(depth=depth_maps(1))
    expected = generated("qwen2-vl", given.inputs, *plugins)
    spread = fresh("qwen2-vl")
    spread_over(spread, str(tmp_path))
    assert any(parameter.device.type == "meta" for parameter in spread.parameters())
    before = {name: dict(vars(module)).get("forward") for name, module in spread.named_modules()}
    with qkedit.attach(spread, *plugins) as attached:
        found = torch.stack(spread.generate(**given.inputs, **GREEDY).logits)
    assert_same(found, expected)
    assert attached.report()[0].plugins["scr"].sources > 0
    assert before == {name: dict(vars(module)).get("forward") for name, module in spread.named_modules()}
