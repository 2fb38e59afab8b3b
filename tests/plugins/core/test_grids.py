"""Test cells against the families' processors and modules; a wrong number of tokens is refused."""

import pytest
import torch

from qkedit.errors import UnsupportedForm
from qkedit.plugins.core.grid import image_grids
from qkedit.plugins.core.grid_layouts import GridMismatch
from tests import tiny_models
from tests.plugins.tiny_requests import ALL, IMAGE, Prompt, Request, model, request, two_prompts


def cells_of(family: str, given: Request):
    grids = image_grids(model(family).config, given.ids, given.inputs)
    found = [{} for _ in range(grids.batch)]
    for grid in grids.grids:
        part = f"tile {grid.tile}" if grid.kind == "tile" else grid.kind
        for row in range(grid.shape[0]):
            for column in range(grid.shape[1]):
                found[grid.row][int(grid.positions[row, column])] = (grid.image, part, row, column)
    return grids, found


@pytest.mark.parametrize("family", ALL)
def test_cells_have_the_columns_of_the_prompt(family):
    given = request(family, two_prompts(family))
    grids, found = cells_of(family, given)
    assert found == given.cells
    assert torch.equal(grids.placeholders, given.ids == IMAGE)
    assert len(grids.cell_columns) == sum(map(len, given.cells))


@pytest.mark.parametrize("family", ALL)
def test_the_model_accepts_the_prompts(family):
    """The model compares the number of placeholders with its image features."""
    with torch.no_grad():
        assert model(family)(**request(family, two_prompts(family)).inputs).logits.isfinite().all()


def test_repeated_prompts_have_the_images_of_the_first():
    given = request("qwen2-vl", two_prompts("qwen2-vl"))
    beams = Request({**given.inputs, "input_ids": given.ids.repeat_interleave(3, dim=0)}, [])
    _, found = cells_of("qwen2-vl", beams)
    assert found == [given.cells[0]] * 3 + [given.cells[1]] * 3


def test_several_images_in_a_prompt_are_not_tiled():
    """In LLaVA-OneVision, each image has one base grid and one newline."""
    side, newline = 6, 1
    ids = torch.tensor([[1, *[IMAGE] * (side**2 + newline), 50, *[IMAGE] * (side**2 + newline), 51]])
    inputs = {
        "pixel_values": torch.zeros(2, 5, 3, 48, 48),
        "image_sizes": torch.tensor([[40, 90], [80, 70]]),
        "batch_num_images": torch.tensor([2]),
    }
    grids = image_grids(model("llava-onevision").config, ids, inputs)
    assert [(grid.image, grid.kind, grid.shape) for grid in grids.grids] == [(0, "base", (6, 6)), (1, "base", (6, 6))]
    assert int(grids.grids[1].positions[0, 0]) == 1 + side**2 + newline + 1
    with torch.no_grad():
        assert model("llava-onevision")(input_ids=ids, **inputs).logits.isfinite().all()


@pytest.mark.parametrize("family", ["qwen2-vl", "llava", "llava-next", "internvl", "idefics3", "pixtral"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_missing_or_additional_image_token_is_refused(family, change):
    given = request(family, two_prompts(family)[:1])
    ids = given.ids.clone()
    first = int((ids[0] == IMAGE).nonzero()[0])
    if change < 0:
        ids[0, first] = 50
    else:
        ids = torch.cat([ids[:, :first], torch.tensor([[IMAGE]]), ids[:, first:]], dim=1)
    with pytest.raises(GridMismatch, match="image tokens"):
        image_grids(model(family).config, ids, given.inputs)


def test_a_wrong_number_of_tokens_per_prompt_is_refused():
    """The total number is right."""
    given = request("qwen2-vl", [Prompt(((4, 6), 3), seed=1), Prompt(((6, 4), 3), seed=2)])
    swapped = {**given.inputs, "image_grid_thw": torch.tensor([[1, 6, 8], [1, 12, 12]])}
    with pytest.raises(GridMismatch, match="need"):
        image_grids(model("qwen2-vl").config, given.ids, swapped)


def test_missing_image_sizes_are_refused():
    given = request("llava-next", two_prompts("llava-next")[:1])
    with pytest.raises(GridMismatch, match="image_sizes was not passed"):
        image_grids(model("llava-next").config, given.ids, {"pixel_values": given.inputs["pixel_values"]})


@pytest.mark.parametrize("family", ["mllama", "idefics2"])
def test_models_without_a_grid_are_refused_with_the_reason(family):
    with pytest.raises(UnsupportedForm, match=r"do not form a grid: .*(cross-attention|resampler)"):
        image_grids(tiny_models.config(family), torch.tensor([[5]]), {})


def test_unknown_families_are_refused():
    with pytest.raises(UnsupportedForm, match=r"ovis2.*is unknown"):
        image_grids(tiny_models.config("ovis2"), torch.tensor([[5]]), {})
