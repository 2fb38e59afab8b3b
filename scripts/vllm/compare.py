#!/usr/bin/env python
"""Compare log probabilities on vLLM with those on transformers, with the same plug-ins, in float32 on a CPU.

    python scripts/vllm/compare.py --work /tmp/vllm-compare --out compared.json

scripts/test_vllm.sh runs this in an environment with vLLM. The engine receives six prompts at once: four with images
of different sizes (one of them twice), one with two images, and one without. It generates six tokens for each by
greedy search, and the log probabilities of the five most probable tokens of every step are compared. For the prompt
without images, the reference is transformers without plug-ins.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import checkpoints
import numpy as np
from command_line import parser_of
from inputs import MAKERS, checkpoint, write_once
from PIL import Image

LIMIT = 1e-4
TOKENS, SHOWN = 6, 5
MANY = 6  # The six prompts are repeated to more than 32 at once.
QUESTION = "Is there a cup in the image?"
SIZES = ((120, 90), (64, 160), (100, 100))
# Settings of every engine that is compared with transformers.
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 512,
    "gpu_memory_utilization": 0.2,
    "enforce_eager": True,
    "skip_mm_profiling": True,
    "limit_mm_per_prompt": {"image": 2},
}


def pictures() -> list[list[Image.Image]]:
    """Return the images of each prompt: smooth noise, so that depth differs between image tokens."""
    first, second, third = (
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        for seed, size in enumerate(SIZES)
    )
    return [[first], [second], [third], [third], [second, first], []]


def write_maps(directory: Path) -> None:
    """Write a depth map for each image, named by its pixels: random, unlike those of the depth model."""
    from qkedit.images import pixel_sha256

    directory.mkdir(parents=True)
    random = np.random.default_rng(9)
    for image in (image for images in pictures() for image in images):
        np.save(directory / f"{pixel_sha256(image)}.npy", random.random((image.height, image.width)))


def cases(depth: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the plug-ins of each comparison, as records of a settings file; depth maps are next to the model."""
    dscr, maps = {"depth": str(depth)}, depth.with_name("maps")
    vaf = {"image": 2.0, "before": 0.5}  # strong enough to be seen in random models
    after_image = {**dscr, "refine": "both", "when": "image"}
    return {
        "no plug-in": [],
        "DSCR": [{"name": "dscr", "options": dscr}],
        "DSCR, values": [{"name": "dscr", "options": {**dscr, "refine": "values"}}],
        "DSCR, keys and values, before the question": [{"name": "dscr", "options": after_image}],
        "DSCR, before rotation": [{"name": "dscr", "options": {**dscr, "space": "pre-rotation"}}],
        "DSCR, depth files": [{"name": "dscr", "options": {"depth": str(maps)}}],
        "SCR": [{"name": "scr", "options": {"sources": 4, "factor": 1.5}}],
        "SCR, last token": [{"name": "scr", "options": {"sources": 4, "factor": 1.5, "queries": "last-token"}}],
        "SCR and DSCR": [
            {"name": "scr", "options": {"sources": 4, "factor": 1.5}},
            {"name": "dscr", "options": dscr},
        ],
        "VAF": [{"name": "vaf", "options": vaf}],
        "VAF and DSCR": [{"name": "vaf", "options": vaf}, {"name": "dscr", "options": dscr}],
        "VAF and SCR": [
            {"name": "vaf", "options": vaf},
            {"name": "scr", "options": {"sources": 4, "factor": 1.5}},
        ],
    }


def on_transformers(loaded: Any, images: list[Image.Image], plugins: list[Any]) -> tuple[list[int], np.ndarray]:
    """Return the tokens of the answer, and the log probabilities at each, `[tokens, vocabulary]`."""
    import torch

    from qkedit.plugins.core.pictures import Pictures, remember_pictures
    from qkedit.plugins.transformers.attach import attach
    from qkedit.runtime.generation import prompt_text, request_inputs

    if loaded.model.config.model_type == "llava_onevision" and len(images) > 1:
        # vLLM splits each of several images into tiles; transformers, only images not marked as one prompt's.
        text = prompt_text(loaded, QUESTION, len(images))
        inputs = loaded.processor(text=[text], images=images, return_tensors="pt")
        remember_pictures(inputs, Pictures([images], lambda others: {}))
    else:
        inputs = request_inputs(loaded, images, QUESTION)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), attach(loaded.model, *plugins) if plugins else nullcontext():
        output = loaded.model.generate(
            **inputs,
            max_new_tokens=TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    found = torch.cat(output.logits).double().log_softmax(-1).numpy()
    return output.sequences[0, length:].tolist(), found


def references(loaded: Any, documents: dict[str, Any]) -> dict[str, list[tuple[list[int], np.ndarray]]]:
    """Return what `on_transformers` does for each prompt, by case; plug-ins do not change the one without images."""
    from qkedit.plugins.settings import make_plugins, parse_document

    requests = pictures()
    plain = [on_transformers(loaded, images, []) for images in requests]
    found = {"no plug-in": plain}
    for case, document in documents.items():
        if plugins := make_plugins(parse_document(document, "case")):
            edited = (on_transformers(loaded, images, plugins) for images in requests if images)
            found[case] = [next(edited) if images else plain[place] for place, images in enumerate(requests)]
    return found


def prompt_of(loaded: Any, images: list[Image.Image]) -> dict[str, Any]:
    """Return the question with images as vLLM takes it: token ids, and the images apart."""
    from qkedit.runtime.generation import prompt_text

    text = prompt_text(loaded, QUESTION, len(images))
    tokenizer = loaded.processor.tokenizer
    is_begun = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    tokens = tokenizer(text, add_special_tokens=not is_begun)["input_ids"]
    return {"prompt_token_ids": tokens} | ({"multi_modal_data": {"image": images}} if images else {})


def compared(answers: list[Any], wanted: list[tuple[list[int], np.ndarray]]) -> list[float]:
    """Return the largest difference of each prompt, in nats; infinite if its tokens differ."""
    worst = []
    for answer, (tokens, values) in zip(answers, wanted, strict=True):
        output = answer.outputs[0]
        if list(output.token_ids) != tokens[: len(output.token_ids)]:
            worst.append(float("inf"))
            continue
        steps = zip(output.logprobs, values, strict=False)
        worst.append(max(abs(one.logprob - step[token]) for found, step in steps for token, one in found.items()))
    return worst


def inspect_in_this_process() -> None:
    """Let vLLM inspect model classes here; a process for each, lest CUDA start in this one, takes ten seconds."""
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda inspect: inspect()


def compiled_decoders(worker: Any) -> int:
    """Return how many modules of a worker's model run compiled."""
    modules = worker.model_runner.get_model().modules()
    return sum(
        getattr(module, "compiled", False) or getattr(module, "aot_compiled_fn", None) is not None
        for module in modules
    )


def compare(
    name: str, model: str, depth: Path, ranks: int, is_compiled: bool, chosen: Sequence[str] | None, kept: Path | None
) -> dict[str, Any]:
    """Return the largest differences of one model, by case; `kept` is a directory of references."""
    os.environ["VLLM_PLUGINS"] = "qkedit"
    from vllm import LLM, SamplingParams

    from qkedit.integrations.vllm.families import our_architecture
    from qkedit.integrations.vllm.launch import SECTION, read_config
    from qkedit.integrations.vllm.plugin import check_ready
    from qkedit.runtime.generation import load
    from qkedit.runtime.loading import directory_of

    inspect_in_this_process()
    directory = directory_of(model)
    loaded = load(model, dtype="float32")
    requests = pictures()
    documents = {
        case: {"schema": 1, "plugins": records}
        for case, records in cases(depth).items()
        if chosen is None or case in chosen
    }
    # Before the engine starts, whose ranks wait busily for its next step.
    if kept is None:
        expected = references(loaded, documents)
    else:
        file = write_once(kept / name, lambda place: place.write_bytes(pickle.dumps(references(loaded, documents))))
        expected = pickle.loads(file.read_bytes())
    plain = expected["no plug-in"]
    engine = LLM(
        str(directory),
        **{**ENGINE, "enforce_eager": not is_compiled},
        tensor_parallel_size=ranks,
        hf_overrides={"architectures": [our_architecture(read_config(directory), model)]},
        additional_config={SECTION: {"schema": 1, "plugins": []}},
    )
    settings = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=SHOWN)
    off = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=SHOWN, extra_args={SECTION: "off"})
    prompts = [prompt_of(loaded, images) for images in requests]
    found: dict[str, Any] = {}
    for case, document in documents.items():
        check_ready(engine.collective_rpc("qkedit_bind", args=(document,)))
        wanted = expected[case]
        answers = engine.generate(prompts, settings, use_tqdm=False)
        reports = engine.collective_rpc("qkedit_report")
        if any(report != reports[0] for report in reports):
            raise SystemExit(f"{name}, {case}: the ranks did not edit the same prompts: {reports}")
        effect = max(abs(one[1][0] - other[1][0]).max() for one, other in zip(plain, wanted, strict=True))
        found[case] = {
            "difference": float(max(compared(answers, wanted))),
            "text only": float(compared(answers, wanted)[-1]),
            "effect": float(effect),
            "same image": max(
                abs(one.logprob - answers[3].outputs[0].logprobs[0][token].logprob)
                for token, one in answers[2].outputs[0].logprobs[0].items()
            ),
            **{key: reports[0][key] for key in ("edited", "split", "failed", "failure")},
        }
        many = engine.generate(prompts * MANY, settings, use_tqdm=False)
        found[case][f"{MANY * len(prompts)} at once"] = float(max(compared(many, wanted * MANY)))
        if document["plugins"]:
            found[case]["switched off"] = float(max(compared(engine.generate(prompts, off, use_tqdm=False), plain)))
        print(name, case, found[case], file=sys.stderr, flush=True)
    if ranks > 1:
        engine.llm_engine.engine_core.shutdown()  # else its workers wait busily beside those of the next model
    elif bool(engine.collective_rpc(compiled_decoders)[0]) != is_compiled:
        raise SystemExit(f"{name}: --compiled is {is_compiled}, but the decoder ran otherwise")
    return found


def failures(cases_of_model: dict[str, dict[str, Any]]) -> list[str]:
    """Return the cases of a model that differ from transformers, or whose comparison could not show a difference."""
    with_images = sum(bool(images) for images in pictures())
    limited = ("difference", f"{MANY * len(pictures())} at once", "switched off", "same image")
    return [
        case
        for case, found in cases_of_model.items()
        if found["failed"]
        or found["split"]
        or found["edited"] != with_images
        or any(found.get(key, 0) > LIMIT for key in limited)
        or (case != "no plug-in" and found["effect"] < 100 * LIMIT)
    ]


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--models", default=",".join(["demo-small", *checkpoints.FAMILIES]))
    parser.add_argument("--ranks", type=int, default=1, help="tensor-parallel ranks")
    parser.add_argument("--compiled", action="store_true", help="compile the decoder (vLLM without --enforce-eager)")
    parser.add_argument("--cases", help="names of the table's columns, separated by semicolons (default: all)")
    parser.add_argument(
        "--references",
        type=Path,
        help="directory of transformers' answers to all cases: those of "
        "this revision are read there if they exist, and else written there",
    )
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    places = {name: checkpoint(arguments.work, name) for name in ("depth", *names) if name in MAKERS}
    write_once(arguments.work / "maps", write_maps)
    chosen = None if arguments.cases is None else arguments.cases.split(";")
    how = (places["depth"], arguments.ranks, arguments.compiled, chosen, arguments.references)
    results = {name: compare(name, str(places.get(name, name)), *how) for name in names}
    settings = {"ranks": arguments.ranks, "compiled": arguments.compiled}
    arguments.out.write_text(json.dumps({**settings, "models": results}, indent=2) + "\n")
    wrong = [f"{name}, {case}" for name, found in results.items() for case in failures(found)]
    for one in wrong:
        print(f"not as on transformers: {one}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
