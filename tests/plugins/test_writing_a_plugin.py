"""Test the plug-ins of docs/writing-a-plugin.md, installed as another package, in every command."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import qkedit
from qkedit.demo import SMALL_DEMO
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.evaluation.drift import drift
from qkedit.plugins.settings import PluginSettings, make_plugins
from qkedit.runtime.generation import load, request_inputs
from qkedit.serving.plugin_switch import PluginSwitch
from tests.cli.command import qkedit as run
from tests.integrations import lmms_eval_interface
from tests.packages import installed
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "writing-a-plugin.md").read_text("utf-8")
FILES = {name: text for name, text in re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)}
PROJECT = tomllib.loads(FILES.pop("pyproject.toml"))["project"]
SHORT = ("--max-new-tokens", "12", "--device", "cpu", "--dtype", "float32")
# A strength at which the answer ends at its first token.
AT_ONCE = "brief:strength=1000"
PROMPT = "Please describe this image in detail."


@pytest.fixture(autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    files = {"image_plugins/__init__.py": "", **FILES}
    points = PROJECT["entry-points"]["qkedit.plugins"]
    with installed(tmp_path_factory.mktemp("installed"), PROJECT["name"], files, points):
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scenes")
    write_scenes(list(make_scenes(2, seed=1, world=SMALL)), directory)
    return directory


@pytest.fixture(scope="module")
def picture(scenes: Path) -> Path:
    return min((scenes / "images").iterdir())


def test_the_document_has_both_kinds_of_plugins_with_their_options() -> None:
    assert set(FILES) == {"image_plugins/dim.py", "image_plugins/brief.py"}
    assert sum(text.count("\n") for text in FILES.values()) < 150
    listed = {plugin["name"]: plugin["options"] for plugin in run("plugins", "list", "--json").document["plugins"]}
    assert [option["name"] for option in listed["dim"]] == ["layers", "factor"]
    assert [option["name"] for option in listed["brief"]] == ["strength"]


def test_dim_scales_only_states_of_image_tokens(picture: Path) -> None:
    demo = load(SMALL_DEMO, dtype="float32")
    inputs = request_inputs(demo, [Image.open(picture).convert("RGB")], PROMPT)
    dim = importlib.import_module("image_plugins.dim").Dim
    layers = demo.model.get_decoder().layers
    seen = []
    hook = layers[3].register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    with torch.no_grad():
        demo.model(**inputs)
        with qkedit.attach(demo.model, dim(layers="2", factor=0.5)) as attached:
            demo.model(**inputs)
    hook.remove()
    image = inputs["input_ids"] == demo.model.config.image_token_id
    assert torch.equal(seen[1][image], seen[0][image] * 0.5)
    assert torch.equal(seen[1][~image], seen[0][~image])
    report = attached.report()[0].plugins["dim"]
    assert (report.tokens, report.layers) == (int(image.sum()), (2,))  # type: ignore[attr-defined]


def test_the_plugins_work_in_generate(picture: Path) -> None:
    request = ("generate", SMALL_DEMO, "--image", picture, "--prompt", PROMPT, "--json", *SHORT)
    plain = run(*request).document
    both = run(*request, "--plugin", "dim:layers=2-5,factor=0", "--plugin", AT_ONCE).document
    assert plain["tokens"] > 1
    assert both["tokens"] == 1
    assert both["report"]["plugins"]["brief"] == {"warnings": [], "steps": 1}
    assert both["report"]["plugins"]["dim"]["layers"] == [2, 3, 4, 5]
    wrong = run(*request, "--plugin", "dim:factor=2")
    assert (wrong.code, wrong.document["error"]["where"]) == (2, "dim factor")


def test_the_plugins_work_in_generate_without_an_image() -> None:
    """Without images, a decoding plug-in acts, and a prefill plug-in does not."""
    request = ("generate", SMALL_DEMO, "--prompt", "hello", "--json", *SHORT)
    assert run(*request, "--plugin", AT_ONCE).document["tokens"] == 1
    refused = run(*request, "--plugin", "dim")
    assert (refused.code, refused.document["error"]["what"]) == (2, "plug-ins act on images")


def test_the_plugins_work_in_eval(scenes: Path, tmp_path: Path) -> None:
    asked = ("eval", SMALL_DEMO, "-b", "pope.random", "--data", scenes, "--images", scenes / "images", "--limit", "3")
    answers = {}
    for names, plugins in {
        (): ("--plugin", "none"),
        ("dim", "brief"): ("--plugin", "dim", "--plugin", AT_ONCE),
    }.items():
        out = tmp_path / "-".join(("out", *names))
        document = run(*asked, *SHORT, "--out", out, *plugins, "--json").document
        assert document["asked"] == 3
        assert tuple(plugin["name"] for plugin in document["run"]["plugins"]) == names
        lines = (out / "answers" / "pope.random.jsonl").read_text().splitlines()
        answers[names] = [json.loads(line)["answer"] for line in lines]
    assert all(answers[()])
    assert answers["dim", "brief"] == ["", "", ""]


def test_the_plugins_work_in_serve(picture: Path) -> None:
    demo = load(SMALL_DEMO, dtype="float32")
    switch = PluginSwitch(demo.model, [PluginSettings("dim"), PluginSettings("brief", {"strength": 1000.0})])
    inputs = request_inputs(demo, [Image.open(picture).convert("RGB")], PROMPT)
    for names in (("brief",), ("dim", "brief"), ("dim",)):
        with switch.on(names) as report:
            output = demo.model.generate(**inputs, max_new_tokens=3, do_sample=False)
            reported = report()
        assert reported is not None
        assert set(reported.plugins) == set(names)
        assert json.dumps(reported.as_dict())
        new = output.shape[1] - inputs["input_ids"].shape[1]
        assert new == (1 if "brief" in names else 3)
    with switch.on([]) as report:
        demo.model.generate(**inputs, max_new_tokens=1)
        assert report() is None


def test_the_plugins_work_in_drift(picture: Path) -> None:
    at_once = PluginSettings("brief", {"strength": 1000.0})
    found = drift(
        SMALL_DEMO, SMALL_DEMO, [picture], prompt=PROMPT, plugins=[at_once], max_new_tokens=5, dtype="float32"
    )
    (image,) = found.images
    assert (max(image.kl), all(image.agrees)) == (0, True)
    assert (image.base != "", image.edited) == (True, "")


def test_the_plugins_work_in_lmms_eval(picture: Path) -> None:
    from tests.integrations.test_lmms_eval import GREEDY, model, requests

    with pytest.MonkeyPatch.context() as patch:
        lmms_eval_interface.provide(patch)
        harness = importlib.import_module("qkedit.integrations.lmms_eval")
        documents = [{"text": PROMPT, "image": Image.open(picture).convert("RGB")}]
        made = model(harness, documents, plugins=f"dim+{AT_ONCE}")
        (found,) = made.generate_until(requests([GREEDY]))
        made.clean()
    sys.modules.pop("qkedit.integrations.lmms_eval", None)
    assert (found.text, found.token_counts.output_tokens) == ("", 1)


def test_logits_processors_of_the_caller_run_last(picture: Path) -> None:
    demo = load(SMALL_DEMO, dtype="float32")
    end = demo.model.generation_config.eos_token_id
    chosen = []

    def never_end(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen.append(int(scores.argmax()))
        return scores.index_fill(1, torch.tensor([end]), -torch.inf)

    inputs = request_inputs(demo, [Image.open(picture).convert("RGB")], PROMPT)
    with qkedit.attach(demo.model, *make_plugins([PluginSettings("brief", {"strength": 1000.0})])):
        output = demo.model.generate(**inputs, max_new_tokens=3, do_sample=False, logits_processor=[never_end])
    assert chosen == [end] * 3
    assert output.shape[1] == inputs["input_ids"].shape[1] + 3
