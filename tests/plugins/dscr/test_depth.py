"""Test depth from a model, a file or a tensor."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.dscr.depth import DepthModel, read_depth
from qkedit.plugins.dscr.plugin import DSCR
from qkedit.plugins.transformers.attach import attach
from tests.plugins import tiny_requests
from tests.plugins.tiny_requests import Prompt


@pytest.fixture(scope="module")
def depth_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return random models of each kind with their image processors, as they are published."""
    from transformers import (
        BeitConfig,
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTConfig,
        DPTForDepthEstimation,
        DPTImageProcessorPil,
        GLPNConfig,
        GLPNForDepthEstimation,
        GLPNImageProcessorPil,
        ZoeDepthConfig,
        ZoeDepthForDepthEstimation,
        ZoeDepthImageProcessorPil,
    )

    size = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = Dinov2Config(
        **size, image_size=28, patch_size=14, out_features=stages, reshape_hidden_states=False, apply_layernorm=True
    )
    heads = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
    torch.manual_seed(0)
    anything = {"backbone_config": backbone, "reassemble_hidden_size": 32, "patch_size": 14, "head_hidden_size": 4}
    beit = BeitConfig(
        **size,
        image_size=32,
        patch_size=16,
        out_features=stages,
        reshape_hidden_states=False,
        use_relative_position_bias=True,
    )
    bins = [{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}]
    models = {
        # Depth-Anything V2 has this architecture too; its metric models end with a sigmoid.
        "depth-anything": DepthAnythingForDepthEstimation(DepthAnythingConfig(**anything, **heads)),
        "depth-anything-metric": DepthAnythingForDepthEstimation(
            DepthAnythingConfig(**anything, **heads, depth_estimation_type="metric", max_depth=20)
        ),
        "dpt": DPTForDepthEstimation(
            DPTConfig(
                **size, image_size=28, patch_size=14, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False, **heads
            )
        ),
        "glpn": GLPNForDepthEstimation(
            GLPNConfig(
                hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
            )
        ),
        "zoedepth": ZoeDepthForDepthEstimation(
            ZoeDepthConfig(
                **heads,
                backbone_config=beit,
                bottleneck_features=8,
                num_relative_features=4,
                bin_embedding_dim=8,
                num_attractors=[4, 2, 2, 1],
                bin_configurations=bins,
            )
        ),
    }
    processors = {
        "glpn": GLPNImageProcessorPil(),
        "zoedepth": ZoeDepthImageProcessorPil(size={"height": 32, "width": 32}),
    }
    directories = {}
    for name, model in models.items():
        directories[name] = tmp_path_factory.mktemp(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            head = getattr(model, "head", None)
            for parameter in (
                head.parameters() if head else ()
            ):  # ends with a ReLU, so negative weights would give zeros
                parameter.abs_()
        model.save_pretrained(directories[name])
        usual = DPTImageProcessorPil(size={"height": 28, "width": 28})
        processors.get(name, usual).save_pretrained(directories[name])
    return directories


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["depth-anything", "depth-anything-metric", "dpt", "glpn"])
def test_a_model_estimates_every_pixel(depth_models: dict[str, Path], name: str) -> None:
    depth = DepthModel(str(depth_models[name])).estimate(noise(40, 65))
    assert depth.shape == (40, 65)
    assert depth.dtype == torch.float32
    assert depth.std() > 0


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_missing_package_is_named(depth_models: dict[str, Path]) -> None:
    with pytest.raises(QkeditError, match=r"needs a package.*torchvision with `pip install 'qkedit\[runtime\]'`"):
        DepthModel(str(depth_models["zoedepth"])).estimate(noise(40, 65))


def test_padding_of_zoedepth_is_removed(depth_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing the padding needs torchvision's `resize`, which is simulated."""
    from transformers.models.zoedepth import image_processing_pil_zoedepth as module

    def resize(depth: torch.Tensor, size: list[int], **_: Any) -> torch.Tensor:
        return torch.nn.functional.interpolate(depth[None], size=size, mode="bicubic")[0]

    stand_in = SimpleNamespace(resize=resize, InterpolationMode=SimpleNamespace(BICUBIC="bicubic"))
    monkeypatch.setattr(module, "tvF", stand_in, raising=False)
    assert DepthModel(str(depth_models["zoedepth"])).estimate(noise(40, 65)).shape == (40, 65)


def test_a_too_small_image_is_refused(depth_models: dict[str, Path]) -> None:
    with pytest.raises(QkeditError, match="cannot estimate the depth of a picture of 33 × 20 pixels"):
        DepthModel(str(depth_models["glpn"])).estimate(noise(20, 33))


def test_the_depth_model_gets_the_image_of_the_processor(
    depth_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The depth of a known image is estimated only once."""
    from transformers import CLIPImageProcessorPil

    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    model, image = tiny_requests.model("llava"), noise(48, 80)
    request = tiny_requests.request("llava", [Prompt((2, (0, 0), 4))])
    request.inputs |= image_processor(images=[image], return_tensors="pt")
    by_model = DSCR(depth=str(depth_models["dpt"]), processor=image_processor)
    by_map = DSCR(
        depth=DepthModel(str(depth_models["dpt"])).estimate(image.crop((16, 0, 64, 48))),
        processor=CLIPImageProcessorPil(do_center_crop=False),
    )
    with torch.no_grad():
        with attach(model, by_model):
            actual = model(**request.inputs).logits
            monkeypatch.setattr(DepthModel, "estimate", None)
            again = model(**request.inputs).logits
        with attach(model, by_map):
            expected = model(**request.inputs).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert torch.equal(actual, again)


def test_the_depth_model_runs_on_the_device_of_the_request(depth_models: dict[str, Path], tmp_path: Path) -> None:
    """A model whose weights are loaded from disk layer by layer has no device itself."""
    from accelerate import disk_offload
    from transformers import CLIPImageProcessorPil

    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    model, request = tiny_requests.model.__wrapped__("llava"), tiny_requests.request("llava", [Prompt((2, (0, 0), 4))])
    plugin = DSCR(depth=str(depth_models["dpt"]), processor=image_processor)
    with torch.no_grad(), attach(model, plugin):
        expected = model(**request.inputs).logits
    disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    with torch.no_grad(), attach(model, plugin):
        assert torch.equal(model(**request.inputs).logits, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16", "int32", "float16"])
def test_arrays_are_read_as_depth(tmp_path: Path, dtype: str) -> None:
    values = np.arange(12).reshape(3, 4).astype(dtype)
    np.save(tmp_path / "depth.npy", values)
    assert read_depth(tmp_path / "depth.npy").tolist() == values.tolist()


def test_images_of_16_and_8_bits_are_read_as_depth(tmp_path: Path) -> None:
    values = np.arange(12).reshape(3, 4) * 5000
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "depth.png")
    assert read_depth(tmp_path / "depth.png").tolist() == values.tolist()
    Image.fromarray((values // 5000).astype(np.uint8)).save(tmp_path / "coarse.PNG")
    assert read_depth(tmp_path / "coarse.PNG").tolist() == (values // 5000).tolist()


def _write(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Image.Image):
        content.save(path)
    else:
        np.save(path, content, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npy", np.array([[{}]], dtype=object), "pickle"),
        ("b.npy", np.ones((2, 3, 1)), "shape"),
        ("c.npy", np.ones((0, 3)), "shape"),
        ("d.npy", np.array([[1.0, np.nan]]), "finite"),
        ("e.npy", np.array([[True]]), "bool"),
        ("f.npy", np.array([["far"]]), "numbers of type"),
        ("g.npy", b"", "cannot be read"),
        ("h.npy", b"\x93NUMPY\x01\x00", "cannot be read"),
        ("i.png", b"no picture", "cannot be read"),
        ("j.png", noise(3, 3), "colours"),
    ],
)
def test_invalid_depth_files_are_refused(tmp_path: Path, name: str, content: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        read_depth(_write(tmp_path / name, content))
    assert name in caught.value.where


def test_a_missing_depth_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QkeditError, match="cannot be loaded as a depth model"):
        DepthModel(str(tmp_path)).estimate(noise(4, 4))


def test_a_pickled_depth_model_is_refused(depth_models: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((depth_models["dpt"] / name).read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(QkeditError, match=r"cannot be loaded as a depth model .*safetensors"):
        DepthModel(str(tmp_path)).estimate(noise(4, 4))
