"""Test concurrent requests to models that store positions of the last prompt (multimodal rotary embeddings)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import BadRequestError, OpenAI

from qkedit.errors import UsageError
from qkedit.plugins.scr.plugin import SCR
from qkedit.plugins.settings import PluginSettings, make_plugins
from qkedit.runtime.generation import respond
from qkedit.serving.openai_server import build_application
from qkedit.serving.plugin_switch import PluginSwitch
from qkedit.serving.requests.image_policy import ImagePolicy
from qkedit.serving.served_model import ServedModel, try_out
from tests.plugins.contrast.tiny_image_models import save_blip, save_vit
from tests.serving.served_models import picture, qwen
from tests.serving.server_process import ask, plugins, question, serving_in_a_thread, streamed

PROMPT = "what is there"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PluginSettings]:
    """Return the plug-ins of the server."""
    vit, blip = (save(tmp_path_factory.mktemp("model")) for save in (save_vit, save_blip))
    options = {
        "scr": {"layers": "0-1"},
        "sid": {"keep": 0.5, "alpha": 2.0},
        "oa-vcd": {"model": vit, "share": 0.5, "alpha": 2.0},
        "agla": {"model": blip, "layer": 1},
    }
    return {name: PluginSettings(name, given) for name, given in options.items()}


@pytest.fixture(scope="module")
def client(settings: dict[str, PluginSettings]) -> Iterator[OpenAI]:
    """Return a client of a tiny Qwen2-VL, which is served from a thread of this process."""
    served = ServedModel("tiny", qwen(), PluginSwitch(qwen().model, list(settings.values())))
    try_out(served)
    application = build_application(served, ImagePolicy())
    with serving_in_a_thread(application) as url:
        yield OpenAI(base_url=url, api_key="none", max_retries=0)


def test_a_server_starts_with_plugins_of_which_requests_choose() -> None:
    """Each of these works alone; `sid` and `vaf` do not work together, and one that cannot work is still refused."""
    options = [PluginSettings("sid", {"keep": 0.5}), PluginSettings("vaf", {})]
    served = ServedModel("tiny", qwen(), PluginSwitch(qwen().model, options))
    conflict = try_out(served)
    assert conflict == (
        "plug-ins: sid cannot act: another plug-in runs the prompt in parts; attach sid without vaf and dscr."
    )
    assert try_out(ServedModel("tiny", qwen(), PluginSwitch(qwen().model, options[:1]))) is None
    application = build_application(served, ImagePolicy())
    with serving_in_a_thread(application) as url:
        client = OpenAI(base_url=url, api_key="none", max_retries=0)
        for name in ("sid", "vaf"):
            assert ask(client, question(PROMPT, picture(1, 56, 56)), extra_body=plugins(name), max_tokens=4).choices
        with pytest.raises(BadRequestError, match="attach sid without vaf"):
            ask(client, question(PROMPT, picture(1, 56, 56)), max_tokens=4)


def test_a_server_with_an_unusable_plugin_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    options = [PluginSettings("vcd", {}), PluginSettings("vaf", {})]
    served = ServedModel("tiny", qwen(), PluginSwitch(qwen().model, options))

    def refuse(*_: object) -> None:
        raise UsageError("vcd cannot act")

    monkeypatch.setattr("qkedit.plugins.contrast.plugin.refuse_settings", refuse)
    with pytest.raises(UsageError, match="vcd cannot act"):
        try_out(served)


def test_concurrent_prompts_keep_their_positions(client: OpenAI) -> None:
    """Every third request has no image; the others have different grids."""

    def images(number: int) -> list[object]:
        return [] if number % 3 == 2 else [picture(number, 40 + 8 * number, 90 - 4 * number)]

    def expected(number: int) -> str:
        attached = [SCR(layers="0-1")] if number % 2 and images(number) else []
        return respond(qwen(), images(number), PROMPT, attached, max_new_tokens=8).text  # type: ignore[arg-type]

    def answer(number: int) -> str:
        names = plugins("scr") if number % 2 else plugins()
        settings = {"extra_body": names, "max_tokens": 8}
        if number % 4 == 0:
            return "".join(streamed(client, question(PROMPT, *images(number)), **settings)[0])  # type: ignore[arg-type]
        return ask(client, question(PROMPT, *images(number)), **settings).choices[0].message.content  # type: ignore[arg-type]

    alone = [expected(number) for number in range(12)]
    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(answer, range(12))) == alone
    assert len(set(alone)) > 8


@pytest.mark.parametrize("name", ["sid", "oa-vcd", "agla"])
def test_methods_with_a_branch_keep_positions_between_requests(
    client: OpenAI, settings: dict[str, PluginSettings], name: str
) -> None:
    """Streamed and whole answers, with a text request between, equal those of `generate` with the plug-in."""
    shown, asked = [picture(1, 70, 40)], "is there a red boat"
    (plugin,) = make_plugins([settings[name]])
    with_it = respond(qwen(), shown, asked, [plugin], max_new_tokens=8).text
    plain = respond(qwen(), shown, asked, [], max_new_tokens=8).text
    assert with_it != plain
    for named, expected in ((name, with_it), (None, plain), (name, with_it)):
        chosen = {"extra_body": plugins(*([named] if named else [])), "max_tokens": 8}
        pieces, _ = streamed(client, question(asked, *shown), **chosen)
        assert "".join(pieces) == expected
        assert len(pieces) > 2
        text = ask(client, question("and without"), extra_body=plugins(), max_tokens=2).choices[0].message.content
        assert text == respond(qwen(), [], "and without", [], max_new_tokens=2).text
        assert ask(client, question(asked, *shown), **chosen).choices[0].message.content == expected
