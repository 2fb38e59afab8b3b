"""Test second images of OA-VCD and AGLA against a slow reference, and answers against contrasts with these images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from qkedit.checkpoint import pretrained
from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.errors import QkeditError, UsageError
from qkedit.images import read_image
from qkedit.plugins.contrast import matching, salience
from qkedit.plugins.contrast.image_contrast import ImageContrast, ImageSum
from qkedit.plugins.contrast.masked_pictures import AGLA, OAVCD
from qkedit.plugins.contrast.matching import MatchingKept
from qkedit.plugins.contrast.salience import SalientMasked
from qkedit.plugins.settings import make_plugins, parse_plugins
from qkedit.runtime.generation import LoadedModel, Prompt, load, prompt_text, respond, respond_batch
from tests.cli.command import qkedit
from tests.plugins.contrast.tiny_image_models import save_blip, save_vit

CPU = torch.device("cpu")
QUESTION = 'Is there a "red" boat in the picture?'


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(SMALL_DEMO, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_blip(tmp_path_factory.mktemp("blip"))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    drawn = torch.randint(1, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(drawn.numpy())


def assert_black_where(second: Image.Image, picture: Image.Image, kept: list[list[bool]]) -> None:
    """Check that an image is black outside the kept cells of a grid, and unchanged inside."""
    assert second.size == picture.size
    for y in range(picture.height):
        for x in range(picture.width):
            row, column = (
                (2 * y + 1) * len(kept) // (2 * picture.height),
                (2 * x + 1) * len(kept[0]) // (2 * picture.width),
            )
            expected = picture.getpixel((x, y)) if kept[row][column] else (0, 0, 0)
            assert second.getpixel((x, y)) == expected, (x, y)


@pytest.mark.parametrize(
    ("registers", "columns", "share"), [(False, 4, 0.2), (True, 5, 0.5)], ids=["vit", "registers"]
)
@pytest.mark.parametrize("size", [(70, 30), (19, 44)])
def test_patches_with_most_attention_of_the_class_token_are_black(
    tmp_path: Path, size: tuple[int, int], registers: bool, columns: int, share: float
) -> None:
    """Cover a DINOv2 with registers and with a processor that makes images that are not square."""
    from transformers import AutoImageProcessor, AutoModel

    place = save_vit(tmp_path, registers=registers)
    picture = noise(*size)
    second = SalientMasked(place, share)(picture, "", CPU)
    pixels = AutoImageProcessor.from_pretrained(place)(picture, return_tensors="pt")["pixel_values"]
    model = AutoModel.from_pretrained(place, attn_implementation="eager").eval()
    with torch.no_grad():
        attention = model(pixels, output_attentions=True).attentions[-1][0]
    before = 4 if registers else 1
    seen = [sum(head[0][before + cell].item() for head in attention) for cell in range(4 * columns)]
    most = sorted(range(len(seen)), key=lambda cell: -seen[cell])[: round(share * len(seen))]
    assert_black_where(second, picture, [[row * columns + x not in most for x in range(columns)] for row in range(4)])


def kept_for(place: str, picture: Image.Image, words: str, layer: int) -> torch.Tensor:
    """Return the pixels that AGLA's published steps keep, from a forward and a backward pass of the model."""
    from transformers import AutoProcessor, BlipForImageTextRetrieval

    model = BlipForImageTextRetrieval.from_pretrained(place).eval()
    inputs = AutoProcessor.from_pretrained(place)(images=picture, text=words, return_tensors="pt")
    held: list[Any] = []

    def hold(module: Any, arguments: Any, output: Any) -> None:
        output[1].retain_grad()
        held.append(output[1])

    handle = model.text_encoder.encoder.layer[layer].crossattention.self.register_forward_hook(hold)
    model(**inputs).itm_score[0, 1].backward()
    handle.remove()
    attention, tokens = held[0][0], inputs["input_ids"].shape[1] - 2
    summed = torch.zeros(36)
    for head in range(2):
        for token in range(1, tokens + 1):
            for patch in range(36):
                gradient = held[0].grad[0, head, token, 1 + patch].item()
                summed[patch] += attention[head, token, 1 + patch].item() * max(0.0, gradient) / tokens / 2
    assert summed.max() > 0
    found = (summed - summed.min()) / (summed.max() - summed.min())
    large = torch.nn.functional.interpolate(found.view(1, 1, 6, 6), size=(48, 48), mode="bicubic")[0, 0]
    blurred = torch.from_numpy(gaussian_filter(large.numpy(), 0.02 * 48)).flatten().tolist()
    with torch.no_grad():
        cosine = model(**inputs, use_itm_head=False).itm_score.item()
    least = sorted(blurred, reverse=True)[int(48 * 48 * min(1 - cosine / 2, 1 - 1e-5))]
    assert 0.3 < sum(value >= least for value in blurred) / 48**2 < 0.999
    return torch.tensor(blurred).view(48, 48) - least


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("size", [(75, 40), (30, 61)])
def test_pixels_that_match_the_question_are_kept(blip: str, size: tuple[int, int], layer: int) -> None:
    picture = noise(*size)
    margin = kept_for(blip, picture, "is there a red boat in the picture?", layer)
    with torch.inference_mode():
        second = MatchingKept(blip, layer)(picture, QUESTION, CPU)
    found = matching.matching_part(blip, layer, picture, "is there a red boat in the picture?", CPU)
    clear = margin.abs() > 1e-5
    assert torch.equal(found[clear], (margin >= 0)[clear])
    assert clear.float().mean() > 0.99
    assert_black_where(second, picture, found.tolist())
    assert MatchingKept(blip, layer)(picture, QUESTION, CPU).tobytes() == second.tobytes()
    assert MatchingKept(blip, layer)(picture, "describe", CPU).tobytes() != second.tobytes()


def test_answers_equal_those_of_a_contrast_with_the_masked_image(
    demo: LoadedModel, vit: str, blip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ask alone and in a batch with other questions and a text; each model is loaded once."""
    salience._loaded.cache_clear()
    matching._loaded.cache_clear()
    loads: list[Any] = []
    real = pretrained.pretrained_weights
    monkeypatch.setattr(
        "qkedit.plugins.core.image_models.pretrained_weights",
        lambda kind, *places, **settings: loads.append(kind) or real(kind, *places, **settings),
    )
    pictures, questions = [noise(70, 30), noise(40, 60, 1)], ["Is there a boat?", "describe the picture"]
    prompts = [
        Prompt(prompt_text(demo, question, 1), (picture,), question)
        for picture, question in zip(pictures, questions, strict=True)
    ]
    kept, masked = MatchingKept(blip, 1), SalientMasked(vit, 0.4)
    for plugin in (OAVCD(vit, share=0.4, alpha=2), AGLA(blip, layer=1)):
        together = respond_batch(demo, prompts, [plugin], max_new_tokens=4)
        for picture, question, answer in zip(pictures, questions, together, strict=True):
            by_hand: Any = (
                ImageContrast(lambda shown: masked(shown, "", CPU), alpha=2)
                if isinstance(plugin, OAVCD)
                else ImageSum(lambda shown, asked=question: kept(shown, asked, CPU))
            )
            assert answer.ids == respond(demo, [picture], question, [by_hand], max_new_tokens=4).ids
            assert answer.ids == respond(demo, [picture], question, [plugin], max_new_tokens=4).ids
    assert len(loads) == 2


def test_each_arm_of_an_evaluation_equals_its_method(vit: str, blip: str, demo: LoadedModel, tmp_path: Path) -> None:
    """For AGLA, each question masks the image again."""
    write_scenes(list(make_scenes(1, seed=1, world=SMALL)), scenes := tmp_path / "scenes")
    named = [f"oa-vcd:model={vit},share=0.4", f"agla:model={blip},layer=1"]
    places = ("--data", scenes, "--images", scenes / "images", "--out", tmp_path / "out", "--limit", "3")
    arms = ("--each", "--plugin", named[0], "--plugin", named[1], "--max-new-tokens", "2", "--device", "cpu")
    done = qkedit("eval", SMALL_DEMO, "-b", "pope.random", *places, *arms, "--dtype", "float32")
    assert done.code == 0, done.stderr
    made = make_plugins(parse_plugins(named) or ())
    for plugin in made:
        (file,) = (tmp_path / "out").glob(f"{plugin.name}/answers/pope.random.jsonl")
        for line in map(json.loads, file.read_text("utf-8").splitlines()):
            picture = read_image(scenes / "images" / line["image"])
            alone = respond(demo, [picture], line["question"], [plugin], max_new_tokens=2)
            assert line["answer"] == alone.text


def test_unusable_image_models_are_refused(vit: str, blip: str, demo: LoadedModel, tmp_path: Path) -> None:
    for plugin, sentence in ((OAVCD, "a DINO transformer"), (AGLA, "a BLIP model for matching")):
        with pytest.raises(UsageError, match=f"no model is given; give .* {sentence}"):
            plugin()
    with pytest.raises(UsageError, match=r"1.5 is not a share"):
        OAVCD(vit, share=1.5)
    with pytest.raises(UsageError, match=r"agla layer: 6 is not among the layers 0 to 1"):
        respond(demo, [noise(8, 8)], "describe", [AGLA(blip)], max_new_tokens=1)
    with pytest.raises(UsageError, match=r"agla layer: 2 is not among the layers 0 to 1"):
        MatchingKept(blip, 2)
    for other in (blip, str(demo_checkpoint(SMALL_DEMO))):
        with pytest.raises(QkeditError, match=r"is not a vision transformer with a class token; give .* DINO"):
            SalientMasked(other, 0.2)
    with pytest.raises(QkeditError, match=r"is not a BLIP model for image-text matching; give"):
        MatchingKept(vit, 0)
    with pytest.raises(UsageError, match="comes without its question"):
        MatchingKept(blip, 0)(noise(8, 8), "", CPU)
    (pickled := tmp_path / "pickled").mkdir()
    for file in Path(vit).iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(QkeditError, match="safetensors"):
        SalientMasked(str(pickled), 0.2)
