"""Test tasks of lmms-eval on a model with plug-ins: by its interface, and with lmms-eval itself if it is installed."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.errors import QkeditError, UsageError
from qkedit.images import as_rgb
from qkedit.laboratory.arms import RIVALS
from qkedit.plugins.config_file import attach_to
from qkedit.plugins.contrast.image_contrast import ImageContrast
from qkedit.plugins.scr.plugin import SCR
from qkedit.plugins.settings import PluginSettings, make_plugins
from qkedit.plugins.transformers.attach import attach
from qkedit.runtime.generation import Prompt, load, prompt_text, respond, respond_batch
from tests.integrations import lmms_eval_interface
from tests.paths import ROOT

GREEDY = {"max_new_tokens": 5, "temperature": 0, "do_sample": False}


@pytest.fixture
def harness() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        lmms_eval_interface.provide(patch)
        yield importlib.import_module("qkedit.integrations.lmms_eval")
    sys.modules.pop("qkedit.integrations.lmms_eval", None)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 70, 4), dtype=np.uint8), "RGBA")


DOCUMENTS = [{"text": f"what is in picture {number}", "image": picture(number)} for number in range(4)]


def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    shown = [] if document["image"] is None else [{"type": "image", "url": document["image"]}]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": document["text"]}]}]


def requests(settings: list[dict[str, Any]]) -> list[Any]:
    from lmms_eval.api.instance import Instance

    return [
        Instance(
            request_type="generate_until",
            arguments=("context", messages, given, number, "task", "test"),
            idx=0,
            metadata={"task": "task", "doc_id": number, "repeats": 1},
        )
        for number, given in enumerate(settings)
    ]


def model(harness: ModuleType, documents: list[dict[str, Any]] = DOCUMENTS, **arguments: Any) -> Any:
    made = harness.Qkedit(**{"pretrained": SMALL_DEMO, "dtype": "float32", "device": "cpu", **arguments})
    made.task_dict = {"task": {"test": documents}}
    return made


def test_the_entry_point_names_the_class(harness: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"qkedit": "qkedit.integrations.lmms_eval:manifest"}
    manifest = harness.manifest()
    assert (manifest.model_id, manifest.simple_class_path) == ("qkedit", None)
    module, _, name = manifest.chat_class_path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert found is harness.Qkedit
    assert not found.is_simple


def test_answers_equal_those_of_the_model_in_order(harness: ModuleType) -> None:
    """Batches of two are split where settings change, after the first and the third request."""
    settings = [GREEDY, {**GREEDY, "max_new_tokens": 3}, {**GREEDY, "max_new_tokens": 3}, GREEDY]
    made = model(harness, batch_size="2")
    found = made.generate_until(requests(settings))
    demo = load(SMALL_DEMO, dtype="float32")
    for document, given, result in zip(DOCUMENTS, settings, found, strict=True):
        expected = respond(demo, [as_rgb(document["image"])], document["text"], max_new_tokens=given["max_new_tokens"])
        assert (result.text, result.token_counts.output_tokens) == (expected.text, expected.tokens)


def test_texts_without_images_and_system_turns_use_the_template(harness: ModuleType) -> None:
    demo = load(SMALL_DEMO, dtype="float32")
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "first"},
                {"type": "image", "url": picture(0)},
                {"type": "image", "url": picture(1)},
                {"type": "text", "text": "second"},
            ],
        },
    ]
    prompt = harness.conversation(demo, turns)
    assert prompt.text == demo.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert [image.mode for image in prompt.images] == ["RGB", "RGB"]

    documents = [DOCUMENTS[0], {"text": "and without", "image": None}, DOCUMENTS[2]]
    found = model(harness, documents, batch_size=3).generate_until(requests([GREEDY] * 3))
    alone = Prompt(prompt_text(demo, "and without", 0))
    assert found[1].text == respond_batch(demo, [alone], max_new_tokens=5)[0].text


def test_the_bare_prompt_has_no_template(harness: ModuleType) -> None:
    demo = load(SMALL_DEMO, dtype="float32", chat_template="none")
    prompt = harness.conversation(demo, messages(DOCUMENTS[0]))
    assert prompt.text == f"<image>{DOCUMENTS[0]['text']}"


def test_plugins_are_attached_and_removed(harness: ModuleType) -> None:
    made = model(harness, plugins="'scr:layers=0-2,sources=4'", batch_size=4)
    demo = made.loaded
    found = made.generate_until(requests([GREEDY] * 4))
    made.clean()
    assert made.loaded is None
    with pytest.raises(QkeditError, match="unloaded"):
        made.generate_until(requests([GREEDY]))
    plugin = SCR(layers="0-2", sources=4)
    for document, result in zip(DOCUMENTS, found, strict=True):
        # Attaching again would fail if the plug-ins were still attached.
        answer = respond(demo, [as_rgb(document["image"])], document["text"], [plugin], max_new_tokens=5)
        assert result.text == answer.text


def test_every_image_gets_its_second_image(harness: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "grey.png"
    Image.new("RGB", (30, 30), "grey").save(file)
    made = model(harness, plugins=f"image-contrast:second={file}", batch_size=2)
    demo = made.loaded
    found = made.generate_until(requests([GREEDY] * 2))
    made.clean()
    for document, result in zip(DOCUMENTS, found, strict=False):
        shown = [as_rgb(document["image"])]
        alone = respond(demo, shown, document["text"], [ImageContrast(file)], max_new_tokens=5)
        assert result.text == alone.text


@pytest.mark.parametrize("name", RIVALS)
def test_every_other_method_works_in_padded_batches_with_several_images(harness: ModuleType, name: str) -> None:
    """A batch with one, two and no images equals `generate` with the plug-in on single prompts."""
    shown = [[picture(0)], [picture(1), picture(2)], []]
    texts = ["what is here", "what is in these two pictures, and how do they differ", "and without"]
    turns = [
        [
            {
                "role": "user",
                "content": [*({"type": "image", "url": p} for p in pictures), {"type": "text", "text": text}],
            }
        ]
        for pictures, text in zip(shown, texts, strict=True)
    ]
    made = model(
        harness, plugins=":".join([name, *(f"{key}={value}" for key, value in RIVALS[name].items())]), batch_size=3
    )
    demo = made.loaded
    asked = requests([{**GREEDY, "max_new_tokens": 3}] * 3)
    asked = [replace_turns(one, given) for one, given in zip(asked, turns, strict=True)]
    found = made.generate_until(asked)
    made.clean()
    with attach(demo.model, *make_plugins([PluginSettings(name, RIVALS[name])])):
        for result, given in zip(found, turns, strict=True):
            (alone,) = respond_batch(demo, [harness.conversation(demo, given)], max_new_tokens=3)
            assert result.text == alone.text


def replace_turns(request: Any, turns: list[dict[str, Any]]) -> Any:
    """Return a request with given turns instead of those of its document."""
    _, _, *rest = request.arguments
    return dataclasses.replace(request, arguments=("context", lambda document: turns, *rest))


def attached(made: Any) -> list[str]:
    made.generate_until(requests([GREEDY]))
    forwards = vars(made.loaded.model.get_decoder()).get("forward")
    return [] if forwards is None else ["some"]


def test_plugins_are_named_or_attached(harness: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = shutil.copytree(demo_checkpoint(SMALL_DEMO), tmp_path / "model")
    attach_to(directory, [PluginSettings("scr", {"layers": "0-1"})])
    depth = tmp_path / "depth.npy"
    np.save(depth, np.linspace(0, 1, 50)[:, None].repeat(70, 1))
    both = tmp_path / "both.json"
    both.write_text(json.dumps({"schema": 1, "plugins": [{"name": "scr"}]}))
    for text, expected in {
        None: ["scr"],
        "none": [],
        f"scr+dscr:depth={depth}": ["scr", "dscr"],
        str(both): ["scr"],
    }.items():
        assert [plugin.name for plugin in harness._plugins(text, str(directory))] == expected
    assert attached(model(harness, pretrained=str(directory))) == ["some"]
    assert "does not record plug-ins" in caplog.text
    caplog.clear()
    assert attached(model(harness, pretrained=str(directory), plugins="none")) == []
    assert caplog.text == ""
    with pytest.raises(UsageError, match="did you mean 'scr'"):
        model(harness, plugins="scrr")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False, "until": ()}),
        (
            {"max_new_tokens": 8, "temperature": 0, "top_p": 1.0, "num_beams": 3, "do_sample": True, "until": None},
            {"max_new_tokens": 8, "do_sample": False, "num_beams": 3, "until": ()},
        ),
        (
            {"max_gen_toks": 9, "temperature": 0.7, "top_p": 0.9, "top_k": None, "until": ["\n\n"]},
            {"max_new_tokens": 9, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "until": ("\n\n",)},
        ),
        ({"do_sample": True, "until": "END"}, {"max_new_tokens": 1024, "do_sample": True, "until": ("END",)}),
        ({"image_aspect_ratio": "pad"}, {"max_new_tokens": 1024, "do_sample": False, "until": ()}),
    ],
)
def test_generation_settings_are_converted(
    harness: ModuleType, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert harness.generation_settings(given) == expected


@pytest.mark.parametrize(
    ("stops", "expected"), [((), "Yes. No END"), (("END",), "Yes. No "), (("No", "."), "Yes"), (("?",), "Yes. No END")]
)
def test_answers_end_at_stop_texts(harness: ModuleType, stops: tuple[str, ...], expected: str) -> None:
    assert harness._until("Yes. No END", stops) == expected


def test_unsupported_requests_are_refused(harness: ModuleType) -> None:
    made = model(harness)
    for kind in ("video", "audio"):
        made.task_dict["task"]["test"] = [{"text": "x", "image": None}]
        asked = requests([GREEDY])
        shown = [{"role": "user", "content": [{"type": kind, "url": "x"}]}]
        asked[0].arguments = ("", lambda document, shown=shown: shown, GREEDY, 0, "task", "test")
        with pytest.raises(UsageError, match=f"the task has {kind}"):
            made.generate_until(asked)
    for refused in (made.loglikelihood, made.generate_until_multi_round):
        with pytest.raises(QkeditError, match="choose tasks that generate answers"):
            refused([])
    for size in ("auto", 0, "-1"):
        with pytest.raises(UsageError, match="not a batch size"):
            model(harness, batch_size=size)


TASK = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
task: scenes_pope
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: label
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false}}
process_results: !function utils.results
metric_list: [{{metric: exact, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
from PIL import Image

def visual(document):
    return [Image.open({images!r} + "/" + document["image"])]

def text(document, lmms_eval_specific_kwargs=None):
    return document["text"]

def results(document, answers):
    return {{"exact": float(answers[0] == document["label"])}}
"""


def test_a_task_runs_in_lmms_eval_itself(tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval")
    pytest.importorskip("datasets")
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    write_scenes(list(make_scenes(1, 0, world=SMALL)), scenes)
    questions = scenes / "pope_random.json"
    rows = [json.loads(line) for line in questions.read_text("utf-8").splitlines()]
    task = tmp_path / "task"
    task.mkdir()
    (task / "scenes_pope.yaml").write_text(TASK.format(questions=questions))
    (task / "utils.py").write_text(UTILS.format(images=str(scenes / "images")))
    arguments = "pretrained=demo,plugins='scr:layers=0-2,sources=4',dtype=float32"
    command = ["-m", "lmms_eval", "--model", "qkedit", "--model_args", arguments, "--tasks", "scenes_pope"]
    command += ["--include_path", task, "--batch_size", "2", "--device", "cpu", "--output_path", tmp_path / "out"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    subprocess.run(
        [sys.executable, *map(str, command), "--log_samples"], check=True, env={**os.environ, **offline}, cwd=tmp_path
    )
    (samples,) = (tmp_path / "out").rglob("*_samples_scenes_pope.jsonl")
    demo = load(SMALL_DEMO, dtype="float32")
    for line in samples.read_text("utf-8").splitlines():
        sample = json.loads(line)
        row = rows[sample["doc_id"]]
        image = Image.open(scenes / "images" / row["image"])
        answer = respond(demo, [image], row["text"], [SCR(layers="0-2", sources=4)], max_new_tokens=4)
        assert "".join(sample["filtered_resps"]) == answer.text
