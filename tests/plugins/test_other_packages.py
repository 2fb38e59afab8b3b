"""Test a plug-in of another package: by its entry point, on the command line, in files and in Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import qkedit
from qkedit.demo import SMALL_DEMO
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.drift import drift
from qkedit.evaluation.runs.local_model import LocalModel
from qkedit.plugins import registry, settings
from qkedit.plugins.core.decoding import DecodingEdit, Generation
from qkedit.plugins.core.report import PluginReport
from qkedit.runtime.generation import load, respond
from tests.packages import installed

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
def mute(tmp_path: Path) -> Iterator[None]:
    """Install a package `muting` with a plug-in, one that fails on import, and one that is not a plug-in."""
    points = {
        "mute": "muting:Mute",
        "broken": "muting.missing:Plugin",
        "nothing": "muting:dataclass",
        "scr": "muting:Mute",
    }
    with installed(tmp_path, "muting", {"muting.py": PACKAGE}, points):
        yield


@pytest.mark.usefixtures("mute")
def test_a_plugin_of_a_package_is_listed_and_has_options() -> None:
    assert registry.plugin_names() == (*registry.PLUGINS, "broken", "mute", "nothing")
    assert [option.name for option in registry.plugin_options("mute")] == ["token"]
    (named,) = settings.parse_plugins(["mute:token=7"]) or ()
    (plugin,) = settings.make_plugins([named])
    assert plugin.token == 7
    with pytest.raises(UsageError, match="mute has no option 'tokn'; did you mean 'token'"):
        settings.parse_plugins(["mute:tokn=7"])


@pytest.mark.usefixtures("mute")
def test_a_package_cannot_replace_our_plugins() -> None:
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
def test_unusable_plugins_are_named(name: str, message: str) -> None:
    with pytest.raises(QkeditError, match=message):
        registry.plugin_class(name)


@pytest.mark.usefixtures("mute")
def test_a_decoding_plugin_acts_with_and_without_a_prefill_plugin() -> None:
    from PIL import Image

    demo = load(SMALL_DEMO)
    picture, prompt = Image.new("RGB", (64, 64), "navy"), "Please describe this image in detail."
    plain = respond(demo, [picture], prompt, max_new_tokens=6).text
    # A noun of the model's own answer that is one token.
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
        assert answer.report.images == 1
    # After detaching, the answer contains it again.
    assert respond(demo, [picture], prompt, max_new_tokens=6).text == plain


@pytest.mark.usefixtures("mute")
def test_drift_follows_the_base_through_muted_tokens(tmp_path: Path) -> None:
    """The probabilities equal those of the base; the answer with the plug-in does not."""
    from PIL import Image

    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "navy").save(picture)
    prompt = "Please describe this image in detail."
    demo = load(SMALL_DEMO, dtype="float32")
    plain = respond(demo, [Image.open(picture)], prompt, max_new_tokens=5).text
    spoken = demo.processor.tokenizer(plain, add_special_tokens=False)["input_ids"][2]
    plugins = settings.parse_plugins([f"mute:token={spoken}"]) or ()
    found = drift(SMALL_DEMO, SMALL_DEMO, [picture], prompt=prompt, plugins=plugins, max_new_tokens=5, dtype="float32")
    (image,) = found.images
    assert (max(image.kl), all(image.agrees)) == (0, True)
    assert image.base == plain != image.edited


@pytest.mark.usefixtures("mute")
def test_warnings_of_decoding_are_also_counted_without_images() -> None:
    from tests.evaluation.runs.test_local_model import ask

    model = LocalModel(SMALL_DEMO, dtype="float32", plugins=settings.parse_plugins(["mute", "scr"]) or ())
    with model.session() as session:
        list(session.answers([ask(0), ask(1)]))
        assert session.warnings == ["mute warned at 1 batches, at the first: a token was muted"]
    with LocalModel(SMALL_DEMO, dtype="float32", plugins=(settings.PluginSettings("scr"),)).session() as session:
        list(session.answers([ask(0)]))
        assert session.warnings == []


def test_two_plugins_cannot_set_one_argument() -> None:
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

    demo = load(SMALL_DEMO)
    with qkedit.attach(demo.model, Plugin()) as attached:
        inputs = demo.processor(text="a", return_tensors="pt")
        demo.model.generate(**inputs, max_new_tokens=1)
        assert attached.report()[0].plugins == {"greedy": PluginReport()}
        assert attached.report()[0].prompts == 1
        with pytest.raises(UsageError, match="num_beams is set by the request"):
            demo.model.generate(**inputs, max_new_tokens=1, num_beams=2)
    assert "generate" not in vars(demo.model)
