"""Test that every Python function accepts plug-ins as text, like the command line, or as objects."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

import qkedit
from qkedit.cli.flags.plugins import chosen_plugins
from qkedit.demo import SMALL_DEMO
from qkedit.plugins.registry import plugin_names
from qkedit.plugins.requested import requested_plugins, requested_settings
from qkedit.plugins.settings import PluginSettings, make_plugins

LLAVA = "llava-hf/llava-1.5-7b-hf"
NEED_AN_OPTION = {"image-contrast", "image-sum", "oa-vcd", "agla"}


def test_text_has_the_meaning_of_the_command_line() -> None:
    """The published settings of the model are the defaults, which differ from SCR's."""
    texts = ["scr:sources=16", "dscr:blend=0.5"]
    assert requested_settings(texts, LLAVA) == chosen_plugins(texts, LLAVA)
    (scr,) = requested_settings("scr", LLAVA)
    assert scr.options == {"layers": "0-11", "diagnosis": "8-16"}
    (made,) = requested_plugins("scr", LLAVA)
    assert made == qkedit.SCR(layers="0-11", diagnosis="8-16")
    assert requested_settings(["none"], LLAVA) == requested_settings([], LLAVA) == ()


@pytest.mark.parametrize("name", [name for name in plugin_names() if name not in NEED_AN_OPTION])
def test_plugins_are_recorded_with_options_that_differ_from_defaults(name: str) -> None:
    (plugin,) = make_plugins([PluginSettings(name)])
    assert requested_settings(plugin, SMALL_DEMO) == (PluginSettings(name, {}),)
    assert requested_plugins(plugin, SMALL_DEMO) == [plugin]


def test_recorded_options_make_an_equal_plugin() -> None:
    plugins = [qkedit.SCR(layers="2-4", factor=1.5, remember=True), qkedit.DSCR(blend=0.5)]
    settings = requested_settings(plugins, LLAVA)
    assert settings[0] == PluginSettings("scr", {"layers": "2-4", "factor": 1.5, "remember": True})
    assert make_plugins(settings) == plugins


@pytest.mark.parametrize(
    ("plugins", "sentence"),
    [
        ([3], "plugins: 3 is not a plug-in"),
        (["scr", qkedit.SCR()], "plugins: scr is named twice"),
        (["scrr"], "there is no plug-in 'scrr'; did you mean 'scr'"),
        (qkedit.DSCR(processor=print), "plugins, dscr: processor holds a builtin_function_or_method, which a run"),
    ],
)
def test_unusable_plugins_are_one_sentence(plugins: Any, sentence: str) -> None:
    with pytest.raises(qkedit.QkeditError, match=sentence):
        requested_settings(plugins, SMALL_DEMO)


def test_generate_accepts_text_one_image_and_edits(tmp_path: Any) -> None:
    demo, picture = qkedit.load(SMALL_DEMO), Image.new("RGB", (64, 64), "navy")
    picture.save(tmp_path / "a.png")
    report = qkedit.steer(SMALL_DEMO, out=tmp_path / "delta", layers="all", k=8, layout="delta", fsync=False)
    question = "Please describe this image in detail."
    by_text = qkedit.generate(demo, picture, question, plugins="scr", max_new_tokens=4)
    by_plugin = qkedit.generate(demo, [tmp_path / "a.png"], question, plugins=[qkedit.SCR()], max_new_tokens=4)
    assert by_text.text == by_plugin.text
    assert by_text.report is not None
    assert set(by_text.report.plugins) == {"scr"}
    plain = qkedit.generate(demo, picture, question, max_new_tokens=8)
    edited = qkedit.generate(demo, str(tmp_path / "a.png"), question, edits=[report.out], max_new_tokens=8)
    with qkedit.edit(demo, report.out):
        assert qkedit.generate(demo, picture, question, max_new_tokens=8).text == edited.text
    assert edited.text != plain.text
    with pytest.raises(qkedit.QkeditError, match=r"^model: .* comes without its processor; give its name, or what"):
        qkedit.generate(demo.model, picture, question)  # type: ignore[arg-type]
    with pytest.raises(qkedit.QkeditError, match=r"^dtype: the model is loaded already"):
        qkedit.generate(demo, picture, question, dtype="float32")
