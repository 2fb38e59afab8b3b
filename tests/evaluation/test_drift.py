"""Test drift of an edited demo model against forward passes per position without a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import kl_div
from transformers import AutoModelForImageTextToText

import qkedit as library
from qkedit.cli.commands.measure.drift import _described
from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.drift import Drift, ImageDrift, drift, pictures_in, word_f1
from qkedit.images import read_image
from qkedit.plugins.scr.plugin import SCR
from qkedit.plugins.settings import PluginSettings
from qkedit.prompts import CAPTION_PROMPT
from qkedit.runtime.generation import load, request_inputs, respond
from tests.cli.command import qkedit

# The first token of its answer is uncertain, unlike that of a caption.
QUESTION = "Is there a cup in the image?"
TOKENS = 5
SHORT = ("--max-new-tokens", str(TOKENS), "--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    for scene in make_scenes(3, seed=7, world=SMALL):
        Image.fromarray(scene.image).save(directory / f"{scene.number}.png")
    (directory / "notes.txt").write_text("no picture")
    return directory


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "edited"
    library.steer(SMALL_DEMO, out=out, layers="all", k=8)
    return out


def measured(base: str, model: str, images: Path, prompt: str = CAPTION_PROMPT, **options: object) -> Drift:
    files, _ = pictures_in(images, 2)
    return drift(base, model, files, prompt=prompt, max_new_tokens=TOKENS, dtype="float32", **options)  # type: ignore[arg-type]


def next_tokens(directory: Path, image: Path, answer: list[int], prompt: str = CAPTION_PROMPT) -> torch.Tensor:
    """Return the logits of each next token, [tokens, vocabulary], from one full forward pass per position."""
    loaded = load(str(directory), dtype="float32")
    rows = []
    for length in range(len(answer)):
        inputs = dict(request_inputs(loaded, [read_image(image)], prompt))
        more = torch.tensor([answer[:length]], dtype=torch.long)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            rows.append(loaded.model(**inputs, use_cache=False).logits[0, -1])
    return torch.stack(rows)


def greedy_tokens(directory: Path, image: Path) -> list[int]:
    """Return the base's answer, chosen from those passes."""
    end = AutoModelForImageTextToText.from_pretrained(directory).generation_config.eos_token_id
    answer: list[int] = []
    while len(answer) < TOKENS and (not answer or answer[-1] != end):
        answer.append(int(next_tokens(directory, image, [*answer, 0])[-1].argmax()))
    return answer


def test_divergence_and_agreement_equal_those_of_separate_passes(images: Path, edited: Path) -> None:
    found = measured(SMALL_DEMO, str(edited), images)
    assert [Path(image.image).name for image in found.images] == ["0.png", "1.png"]
    image = found.images[1]
    answer = greedy_tokens(demo_checkpoint(SMALL_DEMO), images / "1.png")
    base = next_tokens(demo_checkpoint(SMALL_DEMO), images / "1.png", answer).log_softmax(-1)
    other = next_tokens(edited, images / "1.png", answer).log_softmax(-1)
    divergence = kl_div(other, base, reduction="none", log_target=True).sum(-1)
    assert max(image.kl) > 1e-4
    assert image.kl == pytest.approx(divergence.tolist(), abs=1e-5)
    assert image.agrees == tuple((base.argmax(-1) == other.argmax(-1)).tolist())


def test_answers_equal_those_of_generate(images: Path, edited: Path) -> None:
    image = measured(SMALL_DEMO, str(edited), images).images[0]
    for model, text in ((SMALL_DEMO, image.base), (str(edited), image.edited)):
        loaded = load(model, dtype="float32")
        assert text == respond(loaded, [read_image(images / "0.png")], CAPTION_PROMPT, max_new_tokens=TOKENS).text


def test_a_model_compared_with_itself_has_no_drift(images: Path) -> None:
    found = measured(SMALL_DEMO, SMALL_DEMO, images)
    assert found.metrics == {"kl": 0, "kl_worst": 0, "agreement": 1, "overlap": 1, "identical": 1}
    assert set(found.intervals().values()) == {(0, 0), (1, 1)}


def test_plugins_act_only_on_the_edited_model(images: Path) -> None:
    plugins = [PluginSettings("scr", {"sources": 8, "layers": "0-3"})]
    image = measured(SMALL_DEMO, SMALL_DEMO, images, QUESTION, plugins=plugins).images[0]
    loaded, picture = load(SMALL_DEMO, dtype="float32"), read_image(images / "0.png")
    assert image.base == respond(loaded, [picture], QUESTION, max_new_tokens=TOKENS).text
    acting = SCR(sources=8, layers="0-3")
    assert image.edited == respond(loaded, [picture], QUESTION, [acting], max_new_tokens=TOKENS).text
    # The first token follows from the prefill, where the plug-in acts.
    with torch.no_grad(), library.attach(loaded.model, acting):
        prefill = loaded.model(**request_inputs(loaded, [picture], QUESTION)).logits[:, -1].log_softmax(-1)
    base = next_tokens(demo_checkpoint(SMALL_DEMO), images / "0.png", [0], QUESTION).log_softmax(-1)
    assert image.kl[0] == pytest.approx(float(kl_div(prefill, base, reduction="sum", log_target=True)), abs=1e-6)
    assert image.kl[0] > 1e-6


def test_metrics_weight_positions_and_answers_equally() -> None:
    found = Drift(
        (
            ImageDrift("a.png", (0.1, 0.2, 0.3), (True, True, False), "a red cup", "a red cup"),
            ImageDrift("b.png", (0.8,), (False,), "A dog, a dog.", "two dogs: a dog"),
        )
    )
    assert found.metrics == {
        "kl": pytest.approx(1.4 / 4),
        "agreement": 0.5,
        "overlap": pytest.approx((1 + 2 * 2 / (4 + 4)) / 2),
        "identical": 0.5,
        "kl_worst": 0.8,
    }
    assert [image.image for image in found.worst] == ["b.png", "a.png"]
    assert found.intervals()["overlap"] == (0.5, 1.0)


def test_answers_are_printed_below_their_image() -> None:
    images = [ImageDrift(f"{n}.png", (n / 10,), (True,), f"base {n}", f"edited {n}") for n in range(5)]
    shown = [line.split(maxsplit=1) for line in _described(Drift(tuple(images))).splitlines()[4:]]
    assert [text.partition(":")[0] for _, text in shown] == [
        *("4.png", "base 4", "edited 4"),
        *("3.png", "base 3", "edited 3"),
        *("2.png", "base 2", "edited 2"),
    ]
    assert [name for name, _ in shown] == ["farthest", "base", "edited", *["then", "base", "edited"] * 2]


@pytest.mark.parametrize(
    ("one", "other", "f1"),
    [
        ("", "", 1.0),
        ("a", "", 0.0),
        ("The cat's bowl.", "the CAT'S bowl", 1.0),
        ("a a b", "a b b", 2 / 3),
        ("eins zwei", "drei", 0.0),
        ("日本", "日本", 1.0),
    ],
)
def test_word_f1_is_symmetric_and_equals_hand_counts(one: str, other: str, f1: float) -> None:
    assert word_f1(one, other) == word_f1(other, one) == pytest.approx(f1)


def test_a_model_with_another_vocabulary_is_refused(images: Path, tmp_path: Path) -> None:
    loaded = load(SMALL_DEMO)
    loaded.model.resize_token_embeddings(loaded.model.config.text_config.vocab_size + 8)
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"vocabulary has .* name the base that it was made from"):
        measured(SMALL_DEMO, str(tmp_path), images)


def test_probabilities_that_are_not_finite_are_an_error(
    images: Path, edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qkedit.evaluation import drift as module

    original = module.answer_with_logits

    def broken(loaded: object, *arguments: object, given: tuple[int, ...] = (), **options: object) -> object:
        answer = original(loaded, *arguments, given=given, **options)  # type: ignore[arg-type]
        if given:
            answer.logits[0] = torch.nan
        return answer

    monkeypatch.setattr(module, "answer_with_logits", broken)
    with pytest.raises(QkeditError, match="no finite probability"):
        measured(SMALL_DEMO, str(edited), images)


def test_a_contrast_needs_beta_zero_for_drift(images: Path) -> None:
    with pytest.raises(QkeditError, match=r"rules out tokens that the base may choose.*beta=0"):
        measured(SMALL_DEMO, SMALL_DEMO, images, plugins=[PluginSettings("vcd", {})])
    assert measured(SMALL_DEMO, SMALL_DEMO, images, plugins=[PluginSettings("vcd", {"beta": 0.0})]).images


def test_images_of_a_directory_are_found(images: Path, tmp_path: Path) -> None:
    assert pictures_in(images, 2) == ((images / "0.png", images / "1.png"), 3)
    assert pictures_in(images / "2.png") == ((images / "2.png",), 1)
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match="name a directory"):
            pictures_in(place)


def test_the_gate_reads_the_result_of_the_command(images: Path, edited: Path, tmp_path: Path) -> None:
    # The base is named in the manifest.
    found = qkedit("drift", edited, "--images", images, "--limit", "2", "--json", *SHORT)
    (row,) = found.document["results"]
    assert (found.document["base"], found.document["images"]) == (SMALL_DEMO, {"measured": 2, "there": 3})
    assert row["metrics"] == measured(SMALL_DEMO, str(edited), images).metrics
    file = tmp_path / "drift.json"
    file.write_text(found.stdout)
    kl = row["metrics"]["kl"]
    assert qkedit("gate", file, "--require", f"drift.kl<={2 * kl}", "--require", "agreement>=0").code == 0
    failed = qkedit("gate", file, "--require", f"drift.kl<={kl / 2}")
    assert (failed.code, failed.stdout.startswith("FAILED  drift.kl<=")) == (3, True)
    assert qkedit("gate", file, "--baseline", file, "--no-worse", "drift.kl:0", "--no-worse", "overlap:0").code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((SMALL_DEMO,), "--images: no images are given"),
        ((SMALL_DEMO, "--images", "."), "--base: there is nothing to compare with"),
        ((SMALL_DEMO, "--images", "absent", "--plugin", "scr"), "absent: there is no such directory"),
        ((SMALL_DEMO, "--images", "broken.png", "--plugin", "scr"), "broken.png: is not an image"),
        ((SMALL_DEMO, "--images", "black.png", "--plugin", "opera"), "opera: drift follows an answer token by token"),
    ],
)
def test_errors_of_the_command_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "broken.png").write_text("pixels")
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    monkeypatch.chdir(tmp_path)
    found = qkedit("drift", *arguments)
    assert found.code == 2
    assert sentence in found.sentence()
