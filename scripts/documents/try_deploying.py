"""Convert and quantise a tiny edited checkpoint with other projects' tools, and check their output for the edit.

python scripts/documents/try_deploying.py [--llama-cpp DIR] [--only NAME …]

Each tool is tried if it is installed: `gguf`, `torchao`, `llmcompressor`, `mlx`. llama.cpp's converter is part of its
source, which is also in the sdist of llama-cpp-python. The model is a Qwen2-VL with random weights and no tokenizer.
So the output shows that a tool accepts the directory and how it stores the edited tensors, but not that the result
answers well. docs/deploying.md quotes the output.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

QUERY = "layers.1.self_attn.q_proj.weight"
# llama.cpp's converter with the vocabulary left out: the tiny model has none.
CONVERT = """
import runpy, sys
sys.path[:0] = [{folder!r}, {folder!r} + "/gguf-py"]
try:
    from conversion import TextModel
except ImportError:
    from convert_hf_to_gguf import TextModel
from conversion.qwenvl import Qwen2VLModel
Qwen2VLModel.set_vocab = lambda self: self._set_vocab_none()
sys.argv = ["convert_hf_to_gguf.py", *{arguments!r}]
runpy.run_path({folder!r} + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's source, for convert_hf_to_gguf.py")
    parser.add_argument("--only", nargs="*", choices=TOOLS, help="tools to try (default: all)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, edited = edited_checkpoint(Path(folder))
        for name in options.only or TOOLS:
            try:
                print(f"{name}: {TOOLS[name](base, edited, Path(folder) / name, options)}")
            except ModuleNotFoundError as error:
                print(f"{name}: not tried ({error})")
            except Exception as error:  # any exception of a tool is a result
                said = (str(error) or "no message").splitlines()[0]
                print(f"{name}: failed ({type(error).__name__}: {said[:200]})")


def edited_checkpoint(folder: Path) -> tuple[Path, Path]:
    """Write a base and its edit in bfloat16, the usual dtype of checkpoints, and return their directories."""
    import qkedit
    from tests import tiny_configs, tiny_models

    # llama.cpp numbers a projector's layers by those of the vision tower, of which the tiny tower has too few.
    tiny_configs.FAMILIES["qwen2-vl"]["vision_config"]["depth"] = 4
    base = tiny_models.build("qwen2-vl", folder / "base")
    # llama.cpp reads the normalisation of images from this file, which every published model has.
    (base / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    qkedit.steer(base, out=folder / "edited", layers="all", k=4, fsync=False)
    return base, folder / "edited"


def tensor(directory: Path, ending: str = QUERY) -> Any:
    """Return the one tensor of a directory whose name has this ending, in float32."""
    from safetensors import safe_open

    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # the library's object is no mapping
                if name.endswith(ending):
                    return opened.get_tensor(name).float()
    raise LookupError(f"no tensor *{ending} in {directory}")


def nearness(found: Any, base: Path, edited: Path) -> str:
    """Return the distance of a converted query projection from the edited one, and the size of the edit."""
    before, after = tensor(base), tensor(edited)
    error, moved = (float((other - after).norm() / after.norm()) for other in (found, before))
    return f"edited queries within {error:.1%} of their norm (the edit moved them by {moved:.1%})"


def refusal(directory: Path) -> str:
    """Return the message of `qkedit steer` for a converted model."""
    import qkedit

    try:
        qkedit.plan(directory, layers="all")
    except qkedit.QkeditError as error:
        return f"steer then refuses: {error}"
    return "steer takes the result"


def try_gguf(base: Path, edited: Path, out: Path, options: argparse.Namespace) -> str:
    """Run llama.cpp's converter in BF16, with the image projector in a file of its own."""
    import torch
    from gguf import GGUFReader

    if options.llama_cpp is None:
        return "not tried (no --llama-cpp)"
    out.mkdir()
    for name, further in (("text", []), ("mmproj", ["--mmproj"])):
        arguments = [str(edited), "--outfile", str(out / f"{name}.gguf"), "--outtype", "bf16", *further]
        code = CONVERT.format(folder=str(options.llama_cpp.resolve()), arguments=arguments)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1]
            return f"{name} failed: {last}"
    found = {tensor.name: tensor for tensor in GGUFReader(out / "text.gguf").tensors}["blk.1.attn_q.weight"]
    bits = torch.frombuffer(bytearray(found.data.tobytes()), dtype=torch.bfloat16).reshape(tensor(edited).shape)
    vision = len(GGUFReader(out / "mmproj.gguf").tensors)
    same = "bit for bit" if torch.equal(bits.float(), tensor(edited)) else nearness(bits.float(), base, edited)
    return f"edited queries {same}; mmproj of {vision} tensors; {refusal(out)}"


def try_torchao(base: Path, edited: Path, out: Path, options: argparse.Namespace) -> str:
    """Quantise the weights to 8 bits in transformers, save them and load them again."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForImageTextToText, TorchAoConfig

    settings = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    model = AutoModelForImageTextToText.from_pretrained(edited, dtype=torch.bfloat16, quantization_config=settings)
    model.save_pretrained(out)
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.bfloat16)
    return f"{nearness(_query_of(loaded), base, edited)}; {refusal(out)}"


def try_llmcompressor(base: Path, edited: Path, out: Path, options: argparse.Namespace) -> str:
    """Quantise to FP8 with dynamic activation scales, in the format of compressed-tensors."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(edited, dtype=torch.bfloat16)
    recipe = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["re:.*lm_head", "re:.*visual.*"])
    oneshot(model=model, recipe=recipe)
    model.save_pretrained(out, save_compressed=True)
    found = tensor(out) * tensor(out, f"{QUERY}_scale")
    return f"{nearness(found, base, edited)}; {refusal(out)}"


def try_mlx(base: Path, edited: Path, out: Path, options: argparse.Namespace) -> str:
    """Quantise only the edited weight to MLX's 4 bits, in groups of 32: `mlx_vlm.convert` needs a processor too."""
    import mlx.core as mx
    import numpy as np
    import torch

    weight = mx.array(tensor(edited).numpy()).astype(mx.bfloat16)
    packed, scales, biases = mx.quantize(weight, group_size=32, bits=4)
    found = torch.from_numpy(np.array(mx.dequantize(packed, scales, biases, 32, 4).astype(mx.float32)))
    return nearness(found, base, edited)


def _query_of(model: Any) -> Any:
    (name,) = [name for name, _ in model.named_modules() if name.endswith(QUERY.removesuffix(".weight"))]
    weight = model.get_submodule(name).weight
    return (weight.dequantize() if hasattr(weight, "dequantize") else weight).detach().float()


TOOLS: dict[str, Callable[[Path, Path, Path, argparse.Namespace], str]] = {
    "gguf": try_gguf,
    "torchao": try_torchao,
    "llmcompressor": try_llmcompressor,
    "mlx": try_mlx,
}

if __name__ == "__main__":
    main()
