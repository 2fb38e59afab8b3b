"""Test the attention diagnosis of the demo model against eager attention, scene by scene, and the command."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image

import qkedit as library
from qkedit.demo import SMALL_DEMO
from qkedit.demo.scenes import HELD_OUT_SEED, Scene, make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.attention.diagnosis import AttentionDiagnosis, Shares
from qkedit.evaluation.attention.measure import diagnose
from qkedit.evaluation.attention.prompt_images import of_files, of_scenes
from qkedit.prompts import CAPTION_PROMPT
from qkedit.report import attention_plot
from qkedit.runtime.generation import load, request_inputs
from tests.cli.command import qkedit

SCENES = 4
HOW = ("--device", "cpu", "--dtype", "float32")
LAYERS = (1, 2, 3, 4)  # 5 to 17 of 32 in 8


@pytest.fixture(scope="module")
def scenes() -> tuple[Scene, ...]:
    return tuple(make_scenes(SCENES, HELD_OUT_SEED, world=SMALL))


@pytest.fixture(scope="module")
def found() -> AttentionDiagnosis:
    """Return the diagnosis, measured in batches of three and one."""
    return library.attention(SMALL_DEMO, scenes=SCENES, batch_size=3, dtype="float32")


@pytest.fixture(scope="module")
def eager(scenes: tuple[Scene, ...]) -> dict[str, list[torch.Tensor]]:
    """Return attention rows by kind of token and group, `[layers, groups]`; the demo's words are single tokens."""
    loaded = load(SMALL_DEMO, dtype="float32", attn_implementation="eager")
    rows: dict[str, list[torch.Tensor]] = defaultdict(list)
    for scene in scenes:
        inputs = request_inputs(loaded, [Image.fromarray(scene.image)], CAPTION_PROMPT)
        ids = inputs["input_ids"][0]
        output = loaded.model.generate(
            **inputs, max_new_tokens=64, do_sample=False, output_attentions=True, return_dict_in_generate=True
        )
        image = (ids == loaded.model.config.image_token_id).nonzero().flatten().tolist()
        groups = [(0, 1), (1, image[0]), (image[0], image[-1] + 1), (image[-1] + 1, len(ids)), (len(ids), None)]
        answer = output.sequences[0, len(ids) :].tolist()
        assert answer.pop() == loaded.model.generation_config.eos_token_id
        for token, layers in zip(answer, output.attentions, strict=False):
            mean = [weights[0, :, -1].mean(dim=0) for weights in layers]
            row = torch.stack([torch.stack([one[first:end].sum() for first, end in groups]) for one in mean])
            word = loaded.processor.decode([token]).strip()
            rows["tokens"].append(row)
            if word in SMALL.kinds:
                rows["true" if word in scene.kinds else "hallucinated"].append(row)
    return rows


def test_shares_equal_those_of_eager_attention(
    found: AttentionDiagnosis, eager: dict[str, list[torch.Tensor]]
) -> None:
    assert found.tokens == len(eager["tokens"])
    assert eager["hallucinated"], "the groups must differ"
    for kind, rows in eager.items():
        mean = torch.stack(rows).mean(dim=0)
        for layer in found.layers:
            shares = getattr(layer, kind)
            own = torch.tensor([shares.first, shares.before, shares.image, shares.behind, shares.generated])
            torch.testing.assert_close(own, mean[layer.layer].float(), atol=1e-5, rtol=0)


def test_the_ratio_is_the_image_share_in_the_middle_layers(
    found: AttentionDiagnosis, eager: dict[str, list[torch.Tensor]]
) -> None:
    assert found.ratio_layers == LAYERS
    ratios = {kind: [float(row[list(LAYERS), 2].mean()) for row in rows] for kind, rows in eager.items()}
    assert found.ratio == pytest.approx(sum(ratios["tokens"]) / found.tokens, abs=1e-5)
    assert found.mentions is not None
    for kind in ("true", "hallucinated"):
        own = [mention.ratio for mention in found.mentions if mention.hallucinated == (kind == "hallucinated")]
        assert own == pytest.approx(ratios[kind], abs=1e-5)
    pairs = [(low < high) + (low == high) / 2 for low in ratios["hallucinated"] for high in ratios["true"]]
    assert found.auroc is not None
    assert found.auroc_of_place is not None
    assert found.auroc.value == pytest.approx(sum(pairs) / len(pairs))
    assert found.auroc.groups == found.auroc_of_place.groups <= SCENES


def test_the_first_column_can_be_left_out() -> None:
    shares = Shares(0.5, 0.1, 0.2, 0.15, 0.05)
    assert list(shares.without_first.values()) == pytest.approx([0.2, 0.4, 0.3, 0.1])
    assert set(Shares(1.0, 0.0, 0.0, 0.0, 0.0).without_first.values()) == {None}


def test_edits_and_plug_ins_are_active_during_the_measurement(tmp_path: Path, found: AttentionDiagnosis) -> None:
    library.steer(SMALL_DEMO, out=tmp_path / "edit", layers="2-5", k=8, layout="delta")
    how: dict[str, Any] = {"scenes": SCENES, "dtype": "float32"}
    raised = library.attention(SMALL_DEMO, plugins=["pai-attention:alpha=3,layers=4"], **how)
    edited = library.attention(SMALL_DEMO, edits=[tmp_path / "edit"], **how)
    for other in (raised, edited):
        assert other.layers[4].tokens != found.layers[4].tokens
    assert raised.layers[4].tokens.image > found.layers[4].tokens.image + 0.05  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, scenes: tuple[Scene, ...]) -> Path:
    """Return images with a table of synonyms and the ground truth of three of four."""
    place = tmp_path_factory.mktemp("files")
    for scene in scenes[:4]:
        Image.fromarray(scene.image).save(place / f"{scene.number}.png")
    (place / "synonyms.txt").write_text("\n".join(SMALL.kinds) + "\n")
    truth = {f"{scene.number}.png": list(scene.kinds) for scene in scenes[:3]}
    (place / "scenes_gt_objects.json").write_text(json.dumps(truth))
    return place


def test_ground_truth_of_chair_gives_the_mentions_of_the_scenes(
    language: Path, files: Path, scenes: tuple[Scene, ...]
) -> None:
    sources = [[files / f"{scene.number}.png"] for scene in scenes[:4]]
    asked = of_files(sources, files)
    assert [shown.truth is None for shown in asked.prompts] == [False, False, False, True]
    told = diagnose(SMALL_DEMO, asked, dtype="float32")
    known = diagnose(SMALL_DEMO, of_scenes(scenes[:3]), dtype="float32")
    assert (told.answers, told.without_truth, known.without_truth) == (4, 1, 0)
    assert [(one.object, one.hallucinated, one.place) for one in told.mentions or ()] == [
        (one.object, one.hallucinated, one.place) for one in known.mentions or () if one.text != "bus"
    ]  # the singular of `bus` is `bu`


def test_a_prompt_may_have_several_images(files: Path) -> None:
    both = of_files([[files / "0.png", files / "1.png"]])
    (shown,) = both.prompts
    assert (shown.name, shown.truth) == ("0.png + 1.png", None)
    found = diagnose(SMALL_DEMO, both, max_new_tokens=3, dtype="float32")
    assert (found.answers, found.mentions, found.auroc) == (1, None, None)


def test_images_outside_the_ground_truth_are_refused(language: Path, files: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "stranger.png")
    with pytest.raises(UsageError, match="knows none of the 1 image"):
        of_files([[tmp_path / "stranger.png"]], files)
    with pytest.raises(QkeditError):
        diagnose(SMALL_DEMO, of_files([[files / "synonyms.txt"]]))


def test_the_command_prints_plots_and_writes_the_shares(files: Path, tmp_path: Path) -> None:
    plot = tmp_path / "attention.png"
    result = qkedit("attention", SMALL_DEMO, "--scenes", "2", "--plot", plot, *HOW)
    assert result.code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80 or plot.name in result.stdout.splitlines()[-1]
    lines = [line.split() for line in result.stdout.splitlines()]
    assert sum(line[:1] == ["layer"] for line in lines) == 3
    assert Image.open(plot).size[0] > 1000
    document = qkedit("attention", SMALL_DEMO, "--scenes", "2", "--json", *HOW).document
    rows = [line for line in lines if line[:1] and line[0].isdigit()][:8]
    for row, layer in zip(rows, document["layers"], strict=False):
        shares = layer["tokens"]
        shown = [shares[name] for name in ("first", "before", "image", "behind", "generated")]
        shown += [shares["without_first"][name] for name in ("before", "image", "behind", "generated")]
        assert [f"{100 * share:.1f}" for share in shown] == [*row[1:6], *row[7:]]
    assert document["visual_attention_ratio"]["layers"] == list(LAYERS)
    shown = qkedit("attention", SMALL_DEMO, "--image", files / "0.png", "--max-new-tokens", "2", *HOW)
    assert "mention" not in shown.stdout


@pytest.mark.parametrize("with_truth", [True, False])
def test_the_legend_of_the_plot_is_inside_it(found: AttentionDiagnosis, with_truth: bool) -> None:
    if not with_truth:
        layers = tuple(replace(layer, true=None, hallucinated=None) for layer in found.layers)
        found = replace(found, layers=layers, mentions=None)
    figures: list[Any] = []

    def kept(figure: Any, file_format: str) -> bytes:
        figures.append(figure)
        return b""

    with patch.object(attention_plot, "encoded", kept):
        attention_plot.attention_plot(found, "demo", "png")
    figure = figures[0]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert [text.get_text() for text in legend.get_texts()][-1] == "answer"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "no images are given"),
        (("--scenes", "2", "--images", "."), "--images and --scenes exclude each other"),
        (("--scenes", "2", "--data", "."), "the objects of scenes are known"),
        (("--images", ".", "--split", "x"), "there is no ground truth"),
        (("--scenes", "2", "--plot", "a.jpeg"), "unknown ending"),
        (("--scenes", "2", "--plugin", "opera"), "opera: attention follows an answer token by token"),
    ],
)
def test_invalid_requests_are_refused(arguments: tuple[str, ...], sentence: str) -> None:
    result = qkedit("attention", SMALL_DEMO, *arguments)
    assert result.code == 2
    assert sentence in result.sentence()
