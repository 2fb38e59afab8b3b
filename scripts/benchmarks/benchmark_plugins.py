#!/usr/bin/env python
"""Measure the cost of plug-ins against no plug-in, of prefill and decoding separately, at several image sizes.

    python scripts/benchmarks/benchmark_plugins.py --shape small
    python scripts/benchmarks/benchmark_plugins.py --shape 7b --device cuda --dtype bfloat16 --cells 24x24 36x36
    python scripts/benchmarks/benchmark_plugins.py --shape small --rivals

The model is a Qwen2-VL of the given shape with random weights, since weights do not change times. Per image size and
plug-in, interleaved so that a drift of the machine affects both sides of a ratio:

* prefill: the language model over image and question, with image features computed before; the first request does not
  count;
* decoding: the mean of the steps that follow it;
* "pass to layer n": the unedited pass that SCR's scores need, and nothing else, which SCR's own cost is to be held
  against. Of layer n SCR itself needs queries and keys alone;
* "none, again": no plug-in a second time in the same round; its apparent cost is the noise.

With `--rivals`, the methods of docs/rivals.md take the place of SCR and DSCR. They act on `generate`, so `generate` is
timed: for one token (the prefill, image features included), and for each token more. The DINO and BLIP models of
`oa-vcd` and `agla` have their published sizes and random weights.

Ratios are medians over the rounds of those within a round, with the least and the most, followed by the fastest
of all rounds, which other work on the machine can only make slower. A quiet machine is wanted all the same. DSCR is
given its depth, so that no depth model is part of the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarking.image_models import QUESTION, save_image_models
from benchmarking.machine import describe_machine
from benchmarking.timing import Timing, in_turns, seconds_of
from PIL import Image

import qkedit
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.pictures import Pictures, remember_pictures
from qkedit.plugins.core.prefill import Prefill
from qkedit.plugins.core.protocol import RequestEdit
from qkedit.plugins.dscr.plugin import DSCR
from qkedit.plugins.registry import PLUGINS, plugin_class
from qkedit.plugins.scr.plugin import SCR
from qkedit.plugins.transformers.modules import vlm_modules

IMAGE, START, END = 5, 3, 4
SENTENCE = 12  # tokens of the disturbing sentence of icd
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "heads": 4, "groups": 2},
    "small": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "heads": 16, "groups": 4},
    "2b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "heads": 12, "groups": 2},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "heads": 28, "groups": 4},
}


@dataclass(frozen=True)
class PartialPass:
    """The unedited pass up to a layer and nothing else: the least that scores of that layer can cost."""

    last_layer: int
    name: str = "partial-pass"

    def bind(self, parts: VLMModules) -> PartialPass:
        return self

    def start(self, prefill: Prefill) -> RequestEdit:
        prefill.preview(self.last_layer)
        return RequestEdit()


@dataclass(frozen=True)
class Request:
    """One image size."""

    rows: int
    columns: int
    inputs: Mapping[str, Any] = field(repr=False)
    tokens: int  # to decode


@dataclass(frozen=True)
class Cost:
    """Seconds of one request: its prefill, and one decoding step."""

    prefill: float
    step: float


def build_model(shape: str, device: str, dtype: str) -> Any:
    """A Qwen2-VL of the shape with random weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    sizes = dict(SHAPES[shape])
    heads, groups = sizes.pop("heads"), sizes.pop("groups")
    pairs = sizes["hidden_size"] // heads // 2
    config = AutoConfig.for_model(
        "qwen2_vl",
        text_config={
            **sizes,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "vocab_size": 1024,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [pairs // 4, pairs * 3 // 8, pairs - pairs // 4 - pairs * 3 // 8],
            },
        },
        vision_config={
            "depth": 1,
            "embed_dim": 64,
            "hidden_size": sizes["hidden_size"],
            "num_heads": 2,
            "patch_size": 8,
            "mlp_ratio": 2,
        },
        image_token_id=IMAGE,
        vision_start_token_id=START,
        vision_end_token_id=END,
        video_token_id=6,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype)).eval()


def build_request(model: Any, rows: int, columns: int, text: int, tokens: int) -> Request:
    """A question of `text` tokens after an image of `rows` × `columns` cells."""
    question = torch.randint(100, 1000, (text,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.tensor([[1, START, *[IMAGE] * (rows * columns), END, *question]], device=model.device)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.randn(4 * rows * columns, 384, device=model.device, dtype=model.dtype),
        "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]], device=model.device),
    }
    return Request(rows, columns, inputs, tokens)


@torch.no_grad()
def cost(model: Any, request: Request, plugins: tuple[Any, ...]) -> Cost:
    """Run a request with the plug-ins, and time it the second time it comes."""
    finish = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    rest = dict(request.inputs)
    pixels, grid = rest.pop("pixel_values"), rest.pop("image_grid_thw")
    outputs: list[Any] = []
    with qkedit.attach(model, *plugins) if plugins else nullcontext():
        # Made with the plug-ins attached, so that they know the image by its features.
        features = model.model.get_image_features(pixels, grid, return_dict=True)
        positions, _ = model.model.get_rope_index(
            rest["input_ids"], image_grid_thw=grid, mm_token_type_ids=rest["mm_token_type_ids"]
        )

        def prefill() -> None:
            images = {"image": features}
            outputs.append(
                model(**rest, mm_encoder_outputs=images, position_ids=positions, use_cache=True, logits_to_keep=1)
            )

        def decode() -> None:
            cache, position = outputs[-1].past_key_values, positions.max() + 1
            token = torch.full((1, 1), 500, device=model.device)
            for step in range(request.tokens):
                place = (position + step).expand(3, 1, 1)
                model(input_ids=token, past_key_values=cache, position_ids=place, use_cache=True)

        prefill()
        prefilled = seconds_of(prefill, finish)
        decoded = seconds_of(decode, finish)
    return Cost(prefilled, decoded / request.tokens)


@torch.no_grad()
def cost_of_generate(model: Any, request: Request, plugins: tuple[Any, ...]) -> Cost:
    """Time `generate` with the plug-ins for one token, and for several more."""
    finish = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None

    def answer(tokens: int) -> None:
        model.generate(**request.inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)

    with qkedit.attach(model, *plugins) if plugins else nullcontext():
        answer(1)
        first = seconds_of(lambda: answer(1), finish)
        whole = seconds_of(lambda: answer(1 + request.tokens), finish)
    return Cost(first, (whole - first) / request.tokens)


def rivals(models: Mapping[str, str], request: Request) -> dict[str, tuple[Any, ...]]:
    """The other methods with their defaults, by name; `models` are the directories of `save_image_models`."""
    # The model has no processor and no tokenizer, so the second image and the sentence of icd are given as tensors.
    rows, columns = request.rows, request.columns
    second = Image.new("RGB", (8 * columns, 8 * rows))
    remember_pictures(request.inputs, Pictures([[second]], lambda images: request.inputs, [QUESTION]))
    own: dict[str, dict[str, Any]] = {
        "icd": {"tokenizer": lambda sentence, **_: {"input_ids": list(range(100, 100 + SENTENCE))}},
        "image-contrast": {"second": lambda picture: second},
        "image-sum": {"second": lambda picture: second},
        **{name: {"model": directory} for name, directory in models.items()},
    }
    named = {name: (plugin_class(name)(**own.get(name, {})),) for name in PLUGINS if name not in ("scr", "dscr")}
    return {"none": (), "none, again": (), **named}


def variants(model: Any, request: Request) -> dict[str, tuple[Any, ...]]:
    """Return the variants to compare, by name."""
    depth = torch.linspace(0, 1, request.rows * request.columns).view(request.rows, request.columns)
    layers = model.config.text_config.num_hidden_layers
    last = SCR().bind(vlm_modules(model)).scored[-1]
    return {
        "none": (),
        "none, again": (),
        f"pass to layer {last}": (PartialPass(last),),
        "scr": (SCR(),),
        "scr, remembered": (SCR(remember=True),),
        "scr, uniform": (SCR(selection="uniform"),),
        "dscr": (DSCR(depth=depth),),
        f"dscr, all {layers} layers": (DSCR(depth=depth, layers="all"),),
        "scr and dscr": (SCR(), DSCR(depth=depth)),
    }


def measure(
    model: Any, request: Request, repeats: int, masking: Mapping[str, str] | None
) -> dict[str, dict[str, Timing]]:
    """Prefill and step of SCR and DSCR, or with the models that mask of the other methods."""
    chosen, take = (
        (variants(model, request), cost) if masking is None else (rivals(masking, request), cost_of_generate)
    )
    measurements: dict[str, Callable[[], Cost]] = {
        name: lambda plugins=plugins: take(model, request, plugins) for name, plugins in chosen.items()
    }
    return {
        name: {
            "prefill": Timing(tuple(one.prefill for one in costs)),
            "step": Timing(tuple(one.step for one in costs)),
        }
        for name, costs in in_turns(repeats, measurements).items()
    }


def markdown(request: Request, results: Mapping[str, Mapping[str, Timing]]) -> str:
    """A table of medians over the rounds, with the least and the most, and of the fastest of all rounds."""
    base = results["none"]
    lines = [
        f"Image of {request.rows} × {request.columns} cells, {request.inputs['input_ids'].shape[1]} tokens",
        "",
        "| plug-in | prefill, ms | ratio | fastest, ms | ratio | step, ms | ratio | fastest, ms | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, timings in results.items():
        cells = []
        for part in ("prefill", "step"):
            own, plain = timings[part], base[part]
            fastest = min(own.seconds)
            cells += [
                f"{1e3 * own.median:.1f}",
                spread(ratios(own, plain)),
                f"{1e3 * fastest:.1f}",
                f"{fastest / min(plain.seconds):.3f}",
            ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(own: Timing, base: Timing) -> list[float]:
    """Return the ratio of each round."""
    return [one / other for one, other in zip(own.seconds, base.seconds, strict=True)]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} … {max(values):.3f})"


def parsed(arguments: list[str]) -> argparse.Namespace:
    def cells(text: str) -> tuple[int, int]:
        rows, _, columns = text.partition("x")
        return int(rows), int(columns)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument(
        "--cells", type=cells, nargs="+", default=[(16, 16), (24, 24)], help="image sizes, such as 24x24"
    )
    parser.add_argument("--text", type=int, default=64, help="number of tokens of the question")
    parser.add_argument("--tokens", type=int, default=16, help="decoding steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rivals", action="store_true", help="measure the methods of docs/rivals.md")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, help="also write the results as JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    model = build_model(options.shape, options.device, options.dtype)
    machine = describe_machine(Path.cwd(), options.device)
    print(
        f"{machine['processor']}, {machine['cores']} cores, {torch.get_num_threads()} threads, {machine['device']}, "
        f"torch {torch.__version__}, {machine['date']}, load {machine['load_average']:.2f} at the start"
    )
    print(f"Qwen2-VL of shape {options.shape}, {options.dtype}, {options.repeats} rounds, medians")
    found = []
    with tempfile.TemporaryDirectory() as place:
        masking = save_image_models(Path(place), tiny=options.shape == "tiny") if options.rivals else None
        for rows, columns in options.cells:
            request = build_request(model, rows, columns, options.text, options.tokens)
            results = measure(model, request, options.repeats, masking)
            print(f"\n{markdown(request, results)}", flush=True)
            timings = {name: {part: asdict(timing) for part, timing in of.items()} for name, of in results.items()}
            found.append({"rows": rows, "columns": columns, "timings": timings})
    if options.json:
        settings = {"shape": options.shape, "dtype": options.dtype, "text": options.text, "tokens": options.tokens}
        options.json.write_text(json.dumps({"machine": machine, "settings": settings, "images": found}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
