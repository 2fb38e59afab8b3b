"""Test that packed training equals single requests and resumes, and that the committed weights are its result."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from qkedit.demo import DEMO, demo_checkpoint
from qkedit.demo.scenes import make_scenes
from qkedit.demo.world import World
from qkedit.demo.worlds import CROWDED, WORLDS
from tests.demo.training_modules import part, scripts_on_the_path
from tests.scripts.loading import SCRIPTS, load_script

__all__ = ["scripts_on_the_path"]  # a fixture

TINY = ["--scenes", "8", "--vision-steps", "2", "--vision-batch", "4", "--language-steps", "2"]
TINY += ["--language-batch", "2", "--held-out", "1", "--threads", "1", "--world", "small"]


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_packed_loss_equals_that_of_single_requests(world: World) -> None:
    """The oracle is the model on one image and one turn at a time, with its own causal attention."""
    data, stages = part("data"), part("stages")
    rendered = data.render(3, 5, 1, world)
    model = part("checkpoint").new_model(1, world)
    stage = stages.LanguageStage(model, rendered, stages.SETTINGS[world.name])
    packed = stage._packer(rendered, range(3), np.random.default_rng(0))
    with torch.no_grad():
        fast = stage._loss(rendered, stage._features, np.arange(3), np.random.default_rng(0))

    model.set_attn_implementation({"text_config": "sdpa"})
    lengths = [packed.layout.caption] + [packed.layout.question] * (data.QUESTIONS + (world.name == "crowded"))
    prefix = packed.layout.prefix
    losses: list[torch.Tensor] = []
    for row in range(3):
        first = prefix
        for length in lengths:
            ids = torch.cat([packed.input_ids[row, :prefix], packed.input_ids[row, first : first + length]])
            labels = packed.labels[row, first : first + length]
            with torch.no_grad():
                logits = model(
                    input_ids=ids[None], pixel_values=data.pixel_values(rendered.images[row : row + 1])
                ).logits
            answered = labels != data.IGNORED
            losses.append(functional.cross_entropy(logits[0, prefix:][answered], labels[answered], reduction="none"))
            first += length
    # Features are stored in bfloat16.
    assert float(fast) == pytest.approx(float(torch.cat(losses).mean()), rel=2e-3)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_patches_are_labelled_with_their_objects(world: World) -> None:
    data = part("data")
    rendered, labels = data.render(20, 3, 1, world), data.patch_labels(world)
    for scene, patches in zip(make_scenes(20, 3, world=world), rendered.patches, strict=True):
        shown = {labels[number] for number in np.flatnonzero(patches.any(0))}
        assert shown <= {*scene.kinds, *(thing.colour for thing in scene.objects)}
        assert shown >= {thing.kind for thing in scene.objects if thing.visible > 0.3}
        assert shown >= {thing.colour for thing in scene.objects if thing.visible > 0.3 and thing.colour}


def test_questions_about_what_is_missing_ask_about_companions() -> None:
    """From the place of an object that the scene shows; without them, most absent kinds are from elsewhere."""
    data = part("data")
    rendered = data.render(60, 3, 1, CROWDED)
    packer = data.Packer(part("checkpoint").fast_tokenizer(CROWDED), CROWDED)
    belongs = {}
    for missing in (0.0, 0.4, 1.0):
        found = []
        for scene, shown in enumerate(rendered.kinds):
            turns = packer._questions(rendered, scene, np.random.default_rng(scene), missing)
            assert [answer for _, answer in turns[:4]] == ["Yes.", "Yes.", "No.", "No."]
            assert (turns[4][0], turns[4][1].removesuffix(".")) in rendered.attributes[scene]
            kinds = [CROWDED.mentions(question)[0] for question, _ in turns[:4]]
            assert [kind in shown for kind in kinds] == [True, True, False, False]
            places = [kinds_there for kinds_there in CROWDED.themes.values() if set(kinds_there) & set(shown)]
            found.append(any(kinds[3] in place for place in places))
        belongs[missing] = np.mean(found)
    assert belongs[1.0] > 0.95
    assert belongs[0.0] < 0.5
    assert belongs[0.0] + 0.1 < belongs[0.4] < belongs[1.0] - 0.1


def test_settings_share_the_steps_before_they_differ() -> None:
    settings = part("stages").Settings(language_steps=100, language_fall=0.2)
    assert settings.shared_steps(replace(settings, language_steps=200)) == 80
    assert settings.shared_steps(replace(settings, language_fall=0.5)) == 50
    assert settings.shared_steps(replace(settings, missing_from=30)) == 30
    harder = replace(settings, missing_from=30)
    assert harder.shared_steps(replace(harder, language_steps=200)) == 80
    assert harder.shared_steps(replace(harder, missing_share=0.5)) == 30
    assert settings.shared_steps(replace(settings, seed=1)) == -1
    assert settings.shared_steps(replace(settings, language_fall=1.0)) == 0


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train_demo_model.py", *TINY, *arguments])
    threads = torch.get_num_threads()
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)


def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]
) -> None:
    """The final measurement is skipped here and tested below; a saved step is measured with the weights as written."""
    from transformers import LlavaForConditionalGeneration

    script = load_script("train_demo_model")
    figures = {name: value for name, value in record["held_out"].items() if name not in ("scenes", "seed", "loss")}
    monkeypatch.setattr(script, "report", lambda model, *_: model.to(torch.bfloat16) and figures)
    monkeypatch.setattr(script, "SAVE_EVERY", 1)
    monkeypatch.setattr(script, "CURVE_EVERY", 1)
    run(script, monkeypatch, "--work", str(tmp_path / "whole"))
    for _ in range(6):  # each run stops at its first save
        run(script, monkeypatch, "--work", str(tmp_path / "parts"), "--minutes", "0")
        if (tmp_path / "parts" / "record.json").exists():
            break
    whole, parts = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("whole", "parts"))
    assert whole["sha256"] == parts["sha256"]
    assert whole["curves"] == parts["curves"]
    assert [step for step, _ in whole["curves"]["language"]] == [1, 2]
    with pytest.raises(SystemExit, match="other settings"):
        run(script, monkeypatch, "--work", str(tmp_path / "whole"), "--seed", "9")
    measured: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(script, "measure", lambda model, *_: measured.append(model.state_dict()) or {})
    run(script, monkeypatch, "--work", str(tmp_path / "whole"), "--measure-saved")
    written = LlavaForConditionalGeneration.from_pretrained(tmp_path / "whole" / "checkpoint").state_dict()
    assert written.keys() == measured[0].keys()
    assert all(torch.equal(tensor, measured[0][name]) for name, tensor in written.items())


def test_before_its_rate_falls_a_run_can_be_made_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]
) -> None:
    """The shortened run ends with the weights of a run that was as short from the beginning."""
    script = load_script("train_demo_model")
    figures = {name: value for name, value in record["held_out"].items() if name not in ("scenes", "seed", "loss")}
    monkeypatch.setattr(script, "report", lambda model, *_: model.to(torch.bfloat16) and figures)
    monkeypatch.setattr(script, "SAVE_EVERY", 1)
    crowded = ("--world", "crowded", "--language-fall", "0.5", "--work")
    run(script, monkeypatch, *crowded, str(tmp_path / "short"), "--language-steps", "4")
    for _ in range(4):  # two steps of each stage
        run(script, monkeypatch, *crowded, str(tmp_path / "long"), "--language-steps", "8", "--minutes", "0")
    with pytest.raises(SystemExit, match="other settings"):  # whose rate would have fallen already
        run(script, monkeypatch, *crowded, str(tmp_path / "long"), "--language-steps", "2")
    run(script, monkeypatch, *crowded, str(tmp_path / "long"), "--language-steps", "4")
    short, long = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("short", "long"))
    assert short["sha256"] == long["sha256"]
    assert short["settings"] == long["settings"]


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return record_of("small_record.json")


def record_of(name: str) -> dict[str, Any]:
    return json.loads((SCRIPTS / "demo_model" / "demo_training" / name).read_text(encoding="utf-8"))


@pytest.fixture(params=WORLDS)
def shipped(request: pytest.FixtureRequest) -> tuple[World, Path, dict[str, Any]]:
    """Return a world, the directory of its model, and the record of that."""
    name, record_name = load_script("train_demo_model").SHIPPED[request.param]
    return WORLDS[request.param], demo_checkpoint(name), record_of(record_name)


def test_the_shipped_weights_have_the_recorded_hashes(shipped: tuple[World, Path, dict[str, Any]]) -> None:
    _, directory, record = shipped
    hashes = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.glob("*.safetensors"))
    }
    assert hashes == record["sha256"]


def test_files_next_to_the_weights_equal_those_of_the_script(
    shipped: tuple[World, Path, dict[str, Any]], tmp_path: Path
) -> None:
    world, directory, record = shipped
    held_out = dict(record["held_out"])
    count = held_out.pop("scenes")
    held_out.pop("seed")
    part("checkpoint").write_side_files(tmp_path, part("heldout").results_table(held_out, count), world)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (directory / file.name).read_bytes(), file.name


def test_the_model_sees_and_hallucinates(shipped: tuple[World, Path, dict[str, Any]]) -> None:
    """On a few of its scenes the model agrees with its record within the uncertainty."""
    from transformers import LlavaForConditionalGeneration

    world, directory, record = shipped
    # In float32, which is four times as fast as bfloat16 on processors without bfloat16 arithmetic.
    model = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    measured = part("heldout").measure(model, 16, seed=77, world=world)
    recorded = record["held_out"]
    assert measured["recall"] > 0.5
    assert abs(measured["recall"] - recorded["recall"]) < 0.15
    assert 0 < measured["chair_s"] < recorded["chair_s"] + 0.25
    assert measured["pope_adversarial_hr"] > measured["pope_random_hr"]


def test_the_crowded_model_is_as_good_and_as_bad_as_intended() -> None:
    """It sees most objects, and says yes to absent companions for the wrong reason often enough to study."""
    found = record_of("crowded_record.json")["held_out"]
    assert 0.75 <= found["recall"] <= 0.9
    assert 0.15 <= found["pope_adversarial_hr"] <= 0.25
    assert found["pope_random_hr"] < 0.05
    assert 15 <= found["caption_words"] <= 40


def test_the_crowded_model_has_the_recorded_spectra_and_they_are_full() -> None:
    """In the middle layers four of 64 modes have at most a third of the energy, and they do something."""
    from transformers import LlavaForConditionalGeneration

    found = record_of("crowded_record.json")["spectra"]
    model = LlavaForConditionalGeneration.from_pretrained(demo_checkpoint(DEMO), dtype=torch.float32)
    spectra = part("spectra")
    measured = spectra.spectra(
        model.model.language_model, spectra.middle_layers(len(model.model.language_model.layers))
    )
    for name, value in measured.items():
        assert value == pytest.approx(found[name], rel=0.01)  # the weights are stored in bfloat16
    assert 0.15 < measured["top_4"] < 1 / 3
    assert measured["effective_rank"] > 25
    loss = record_of("crowded_record.json")["held_out"]["loss"]
    assert found["loss_without_top_4"] - loss > 3 * abs(found["loss_without_random_4"] - loss)
