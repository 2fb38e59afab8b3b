"""Test the grammar of plug-in settings, and the file next to a model's weights."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.demo import DEMOS, demo_checkpoint
from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.config_file import PLUGINS_FILE, attach_to, attached_to, detach_from, users_directory
from qkedit.plugins.paper_defaults import preset_of, with_paper_defaults
from qkedit.plugins.registry import PLUGINS
from qkedit.plugins.settings import (
    PluginSettings,
    dump_plugins,
    make_plugins,
    parse_document,
    parse_plugins,
    parse_words,
    plugin_options,
    with_absolute_paths,
)


def options_of(text: str) -> dict[str, Any]:
    (plugin,) = parse_plugins([text]) or ()
    return dict(plugin.options)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("scr", {}),
        ("scr:", {}),
        ("scr:layers=0-11", {"layers": "0-11"}),
        ("scr:layers=0,3,5-8,sources=16", {"layers": "0,3,5-8", "sources": 16}),
        ("scr:layers=5,factor=2", {"layers": "5", "factor": 2.0}),
        (
            "scr:remember=true,selection=uniform,layers=none",
            {"remember": True, "selection": "uniform", "layers": None},
        ),
        ("dscr:depth=a,b-c.npy", {"depth": "a,b-c.npy"}),
        ("dscr:lost-cells=skip,blend=0.25,depth=5", {"lost_cells": "skip", "blend": 0.25, "depth": "5"}),
        ("dscr:depth=dir/x=y.npy", {"depth": "dir/x=y.npy"}),
    ],
)
def test_settings_are_parsed_from_text(text: str, options: dict[str, Any]) -> None:
    parsed = options_of(text)
    assert parsed == options
    assert {key: type(value) for key, value in parsed.items()} == {key: type(value) for key, value in options.items()}
    make_plugins(parse_plugins([text]) or ())


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["scrr"], "did you mean 'scr'"),
        (["unheard-of"], "choose among scr, dscr"),
        ([""], "no plug-in ''"),
        (["scr:leyers=3"], "did you mean 'layers'"),
        (["scr:sources=many"], "a whole number"),
        (["scr:sources=1.5"], "a whole number"),
        (["scr:sources=true"], "a whole number"),
        (["scr:factor=nan"], "a number"),
        (["scr:factor=inf"], "a number"),
        (["scr:remember=1"], "true or false"),
        (["scr:selection=best"], "attention, uniform"),
        (["scr:sources=1,sources=2"], "twice"),
        (["scr:11"], "is not an option"),
        (["scr:=3"], "is not an option"),
        (["scr", "scr:layers=2"], "named twice"),
        (["none", "scr"], "none is combined with"),
        (["dscr:processor=x"], "no option 'processor'"),
        (["no/such/file.json"], "No such file"),
    ],
)
def test_invalid_text_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_plugins(texts)


def test_none_means_an_empty_list_of_plugins() -> None:
    assert parse_plugins([]) is None
    assert parse_plugins(["none"]) == ()


def test_settings_are_parsed_from_a_command_line() -> None:
    parsed = parse_words(["scr", "--layers", "0-3,5", "--factor=1.2", "dscr:blend=0.5", "--lost-cells", "skip"])
    assert parsed == (
        PluginSettings("scr", {"layers": "0-3,5", "factor": 1.2}),
        PluginSettings("dscr", {"blend": 0.5, "lost_cells": "skip"}),
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "3"], "there is no plug-in before"),
        (["scr", "--layers"], "no value"),
        (["scr", "--layers", "--factor=2"], "no value"),
        (["scr", "--no-such", "3"], "no option 'no_such'"),
    ],
)
def test_invalid_command_lines_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_words(words)


SCR_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "layers": st.sampled_from(["0-11", "3", "0,2,5-7", "all", None]),
        "sources": st.integers(1, 10**6),
        "factor": st.floats(1, 1e6),
        "selection": st.sampled_from(["attention", "uniform"]),
        "remember": st.booleans(),
    },
)


@given(SCR_OPTIONS, st.booleans())
def test_text_words_and_documents_give_equal_settings(options: dict[str, Any], with_dscr: bool) -> None:
    plugins = [PluginSettings("scr", options), *([PluginSettings("dscr", {"depth": "x.npy"})] if with_dscr else [])]
    assert list(parse_document(json.loads(dump_plugins(plugins)), "file")) == plugins
    written = ",".join(
        f"{key}={str(value).lower() if isinstance(value, bool) or value is None else value}"
        for key, value in options.items()
    )
    assert options_of(f"scr:{written}") == options


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        plugins = parse_plugins([text])
    except UsageError:
        return
    assert all(plugin.name in PLUGINS for plugin in plugins or ())


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "is not a list of plug-ins"),
        ({"plugins": []}, "is not a list of plug-ins"),
        ({"schema": 2, "plugins": []}, "later qkedit"),
        ({"schema": 1, "plugins": {}}, "is not a list of plug-ins"),
        ({"schema": 1, "plugins": [], "more": 1}, "is not a list of plug-ins"),
        ({"schema": 1, "plugins": ["scr"]}, "is not a list of plug-ins"),
        ({"schema": 1, "plugins": [{"name": 3}]}, "is not a list of plug-ins"),
        ({"schema": 1, "plugins": [{"name": "scr", "options": []}]}, "is not a list of plug-ins"),
        ({"schema": 1, "plugins": [{"name": "scr", "extra": 1}]}, "is not a list of plug-ins"),
        ({"schema": 1, "plugins": [{"name": "scr", "options": {"sources": "16"}}]}, "a whole number"),
        ({"schema": 1, "plugins": [{"name": "scr", "options": {"layers": [1]}}]}, "text"),
        ({"schema": 1, "plugins": [{"name": "scr"}, {"name": "scr"}]}, "named twice"),
    ],
)
def test_invalid_documents_are_refused(document: object, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_document(document, "here.json")
    assert "here.json" in str(caught.value)


def test_settings_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "both.json"
    plugins = (PluginSettings("scr", {"layers": "0-3"}), PluginSettings("dscr", {"depth": "x.npy"}))
    file.write_bytes(dump_plugins(plugins))
    assert parse_plugins([str(file)]) == plugins
    with pytest.raises(UsageError, match="named twice"):
        parse_plugins([str(file), "scr"])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": NaN}', '{"schema": 1e999}', r'{"schema": 1, "plugins": ["\ud800"]}', "9" * 400]
)
def test_a_file_that_is_not_of_settings_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "theirs.json"
    file.write_text(text)
    with pytest.raises(UsageError, match="is not valid JSON"):
        parse_plugins([str(file)])


def test_a_path_that_is_not_utf8_is_written_and_read(tmp_path: Path) -> None:
    plugins = (PluginSettings("dscr", {"depth": os.fsdecode(b"caf\xe9.npy")}),)
    file = tmp_path / "both.json"
    file.write_bytes(dump_plugins(plugins))
    assert parse_plugins([str(file)]) == plugins


def test_listed_options_equal_those_of_the_class() -> None:
    listed = {option.name: option.default for option in plugin_options("dscr")}
    assert "processor" not in listed
    assert listed["blend"] == 1.0
    assert {option.name for option in plugin_options("scr")} >= {"layers", "diagnosis", "sources", "factor"}


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "depth.npy").touch()
    monkeypatch.chdir(tmp_path)
    absolute = with_absolute_paths(PluginSettings("dscr", {"depth": "depth.npy", "refine": "both"}))
    assert absolute.options == {"depth": str(tmp_path / "depth.npy"), "refine": "both"}
    hub = PluginSettings("dscr", {"depth": "depth-anything/Depth-Anything-V2-Small-hf"})
    assert with_absolute_paths(hub) == hub


@pytest.mark.parametrize(
    "model", ["qwen2-vl", "Qwen/Qwen2-VL-7B-Instruct", "/models/Qwen2-VL-7B-Instruct", "./Qwen2-VL-7B-Instruct/"]
)
def test_published_layers_are_the_defaults(model: str) -> None:
    plugins = [PluginSettings("scr", {"diagnosis": "4-5"}), PluginSettings("dscr")]
    scr, dscr = with_paper_defaults(plugins, model)
    assert scr.options == {"layers": "0-15", "diagnosis": "4-5"}
    assert dscr == plugins[1]


def test_an_edited_model_is_recognised_by_its_manifest(tmp_path: Path) -> None:
    assert preset_of(str(tmp_path)) is None
    base, model = ({"model": name, "revision": None} for name in ("edited", "llava-hf/llava-1.5-7b-hf"))
    manifest = {"base": base, "history": [{"base": model}]}
    (tmp_path / "qkedit.json").write_text(json.dumps(manifest))
    preset = preset_of(str(tmp_path))
    assert preset is not None
    assert preset.hub_id == "llava-hf/llava-1.5-7b-hf"
    (tmp_path / "qkedit.json").write_text("[1]")
    assert preset_of(str(tmp_path)) is None


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


def test_plugins_are_attached_replaced_and_detached(model: Path) -> None:
    assert attached_to(model) == ()
    scr, dscr = PluginSettings("scr", {"layers": "0-3"}), PluginSettings("dscr")
    assert attach_to(model, [scr]) == (scr,)
    assert attach_to(model, [dscr]) == (scr, dscr)
    again = PluginSettings("scr", {"layers": "0-1"})
    assert attach_to(model, [again]) == (again, dscr)
    assert attached_to(model) == (again, dscr)
    assert json.loads((model / PLUGINS_FILE).read_bytes()) == {
        "schema": 1,
        "plugins": [{"name": "scr", "options": {"layers": "0-1"}}, {"name": "dscr", "options": {}}],
    }
    assert sorted(os.listdir(model)) == ["config.json", "model.safetensors", PLUGINS_FILE]
    assert detach_from(model, ["scr"]) == ("scr",)
    with pytest.raises(UsageError, match="scr is not attached"):
        detach_from(model, ["scr"])
    assert attached_to(model) == (dscr,)
    assert detach_from(model, ["dscr"]) == ("dscr",)
    assert sorted(os.listdir(model)) == ["config.json", "model.safetensors"]
    assert detach_from(model) == ()


def test_the_file_has_the_permissions_of_other_files(model: Path) -> None:
    attach_to(model, [PluginSettings("scr")])
    assert stat.S_IMODE((model / PLUGINS_FILE).stat().st_mode) == stat.S_IMODE((model / "config.json").stat().st_mode)


def test_a_broken_file_is_named_and_can_be_removed(model: Path) -> None:
    (model / PLUGINS_FILE).write_text("{")
    with pytest.raises(QkeditError, match="correct or remove the file") as caught:
        attach_to(model, [PluginSettings("scr")])
    assert caught.value.exit_code == 1
    assert (model / PLUGINS_FILE).read_text() == "{"
    assert detach_from(model) == (PLUGINS_FILE,)
    assert attached_to(model) == ()


def test_a_failed_write_keeps_the_earlier_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach_to(model, [PluginSettings("scr")])
    before = sorted(os.listdir(model)), (model / PLUGINS_FILE).read_bytes()

    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(QkeditError, match="cannot write the file: no space left"):
        attach_to(model, [PluginSettings("dscr")])
    assert (sorted(os.listdir(model)), (model / PLUGINS_FILE).read_bytes()) == before


def test_directories_that_are_not_models_of_the_user_are_refused(model: Path, tmp_path: Path) -> None:
    assert users_directory(str(model)) == model
    link = tmp_path / "link"
    link.symlink_to(model)
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "config.json").symlink_to(model / "config.json")
    for name, words in {
        "org/name": "is not a directory",
        "qwen2-vl": "is not a directory",
        "demo": "is not a directory",
        str(link): "symbolic link",
        f"{link}/": "symbolic link",
        str(snapshot): "a cache",
        str(blobs): "a cache",
        str(tmp_path): "does not hold config.json",
        str(model / "config.json"): "is not a directory",
    }.items():
        with pytest.raises(UsageError, match=words):
            users_directory(name)
    for name in DEMOS:
        with pytest.raises(UsageError, match="is a demo model"):
            users_directory(str(demo_checkpoint(name)))
