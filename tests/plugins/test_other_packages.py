"""A plug-in of another package: found by its entry point, on the command line, in files and in Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import qkedit
from qkedit.errors import QkeditError, UsageError
from qkedit.plugins import registry, settings
from qkedit.plugins.core.decoding import DecodingEdit, Generation
from qkedit.plugins.core.report import PluginReport
from qkedit.runtime.generation import load, respond

PACKAGE = """
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qkedit.plugins.core.decoding import DecodingEdit
from qkedit.plugins.core.report import PluginReport


@dataclass(frozen=True, kw_only=True)
class MuteReport(PluginReport):
    steps: int


@dataclass(frozen=True)
class Mute:
    \"\"\"Never say one token.\"\"\"

    token: int = 0
    name: ClassVar[str] = "mute"

    def bind(self, modules):
        return self

    def start_decoding(self, generation):
        return Muted(self.token)


class Muted(DecodingEdit):
    def __init__(self, token):
        self.token, self.steps = token, 0

    def logits_processors(self):
        return [self]

    def __call__(self, input_ids, scores):
        self.steps += 1
        scores = scores.clone()
        scores[:, self.token] = float("-inf")
        return scores

    def report(self):
        return MuteReport(steps=self.steps, warnings=("a token was muted",))
"""


@pytest.fixture
def mute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package `muting` with a plug-in, one that breaks, and one that is none."""
    (tmp_path / "muting.py").write_text(PACKAGE)
    metadata = tmp_path / "muting-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: muting\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[qkedit.plugins]\nmute = muting:Mute\nbroken = muting.missing:Plugin\nnothing = muting:dataclass\n"
        "scr = muting:Mute\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry._of_other_packages.cache_clear()
    yield
    registry._of_other_packages.cache_clear()
    sys.modules.pop("muting", None)


@pytest.mark.usefixtures("mute")
def test_it_is_listed_and_takes_options_as_ours_do() -> None:
    assert registry.plugin_names() == ("scr", "dscr", "broken", "mute", "nothing")
    assert [option.name for option in registry.plugin_options("mute")] == ["token"]
    (named,) = settings.parse_plugins(["mute:token=7"]) or ()
    (plugin,) = settings.make_plugins([named])
    assert plugin.token == 7
    with pytest.raises(UsageError, match="mute has no option 'tokn'; did you mean 'token'"):
        settings.parse_plugins(["mute:tokn=7"])


@pytest.mark.usefixtures("mute")
def test_none_takes_the_place_of_ours() -> None:
    assert registry.plugin_class("scr") is qkedit.SCR


@pytest.mark.usefixtures("mute")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "the plug-in broken of the package muting cannot be imported"),
        ("nothing", "the plug-in nothing of the package muting is not a dataclass"),
        ("mut", "there is no plug-in 'mut'; did you mean 'mute'"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, message: str) -> None:
    with pytest.raises(QkeditError, match=message):
        registry.plugin_class(name)


@pytest.mark.usefixtures("mute")
def test_it_acts_on_decoding_with_and_without_a_prefill_plugin() -> None:
    from PIL import Image

    demo = load("demo")
    picture, prompt = Image.new("RGB", (64, 64), "navy"), "Please describe this image in detail."
    plain = respond(demo, [picture], prompt, max_new_tokens=6).text
    # A noun that the model says by itself, as one token.
    spoken = demo.processor.tokenizer(plain, add_special_tokens=False)["input_ids"][2]
    word = demo.processor.tokenizer.decode([spoken]).strip()
    (mute,) = settings.make_plugins(settings.parse_plugins([f"mute:token={spoken}"]) or ())
    for others in ([], [qkedit.SCR(layers="0-3")]):
        answer = respond(demo, [picture], prompt, [*others, mute], max_new_tokens=6)
        assert word in plain.split()
        assert word not in answer.text.split()
        assert answer.report is not None
        assert set(answer.report.plugins) == {"mute", *(plugin.name for plugin in others)}
        assert answer.report.warnings == ("a token was muted",)
        assert answer.report.plugins["mute"].steps == answer.tokens  # type: ignore[attr-defined]
        assert answer.report.images == len(others)
    # Detached, the model says it again.
    assert respond(demo, [picture], prompt, max_new_tokens=6).text == plain


def test_an_argument_is_set_once() -> None:
    class Greedy(DecodingEdit):
        def arguments(self) -> dict[str, object]:
            return {"num_beams": 1}

    class Plugin:
        name = "greedy"

        def bind(self, modules: object) -> Plugin:
            return self

        def start_decoding(self, generation: Generation) -> DecodingEdit:
            assert torch.is_tensor(generation.inputs["input_ids"])
            return Greedy()

    demo = load("demo")
    with qkedit.attach(demo.model, Plugin()) as attached:
        inputs = demo.processor(text="a", return_tensors="pt")
        demo.model.generate(**inputs, max_new_tokens=1)
        assert attached.report()[0].plugins == {"greedy": PluginReport()}
        assert attached.report()[0].prompts == 1
        with pytest.raises(UsageError, match="num_beams is set by the request"):
            demo.model.generate(**inputs, max_new_tokens=1, num_beams=2)
    assert "generate" not in vars(demo.model)
