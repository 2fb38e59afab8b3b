"""Test checkpoints with Python code: it never runs without permission, and there is no prompt for it."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from qkedit.checkpoint.contents import INDEX_FILE
from qkedit.checkpoint.pretrained import check_torchvision, from_pretrained, torchvision_for
from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.runs.local_model import LocalModel
from qkedit.plugins.dscr.depth import DepthModel
from qkedit.runtime.generation import directory_of
from qkedit.runtime.loading import load
from tests.cli.command import qkedit

CODE = """
from pathlib import Path
from transformers import LlavaConfig, LlavaForConditionalGeneration
Path({proof!r}).touch()
print("on standard output")
class StrangerConfig(LlavaConfig):
    model_type = "stranger"
class StrangerModel(LlavaForConditionalGeneration):
    config_class = StrangerConfig
"""
ASKED = "which does not run without permission; read that code and pass --trust-remote-code"


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """Return the files that the code writes when it runs."""
    return tmp_path / "it ran"


@pytest.fixture
def stranger(tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the demo as a family that only code next to its weights defines; standard input answers "yes"."""
    directory = tmp_path / "stranger"
    shutil.copytree(demo_checkpoint(SMALL_DEMO), directory)
    (directory / "modeling_stranger.py").write_text(CODE.format(proof=str(proof)))
    # transformers converts the demo's published names for LLaVA only; another family has the names of its modules.
    for shard in directory.glob("*.safetensors"):
        save_file({_in_memory(name): tensor for name, tensor in load_file(shard).items()}, shard, {"format": "pt"})
    index = json.loads((directory / INDEX_FILE).read_text())
    adapt(directory / INDEX_FILE, weight_map={_in_memory(name): file for name, file in index["weight_map"].items()})
    code = {"AutoConfig": "StrangerConfig", "AutoModelForImageTextToText": "StrangerModel"}
    adapt(
        directory / "config.json",
        model_type="stranger",
        auto_map={kind: f"modeling_stranger.{name}" for kind, name in code.items()},
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return directory


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def _in_memory(name: str) -> str:
    """Return the name in transformers' module of a tensor of a published LLaVA checkpoint."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")


def adapt(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_no_command_runs_remote_code_or_asks(stranger: Path, proof: Path, image: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"id": 1, "image": image.name, "question": "Is it red?", "truth": "yes"}) + "\n")
    asks = ["--benchmark", "custom", "--questions", questions, "--images", tmp_path, "--out", tmp_path / "run"]
    commands: list[list[str | Path]] = [
        ["generate", stranger, "--image", image],
        ["eval", stranger, *asks],
        ["serve", stranger, "--port", "0"],
        ["drift", stranger, "--base", stranger, "--images", image],
        ["kv-coherence", stranger, "--image", image],
        ["attention", stranger, "--image", image],
    ]
    for command in commands:
        run = qkedit(*command, "--device", "cpu")
        assert (run.code, ASKED in run.sentence()) == (1, True), run.stderr
    attached = qkedit("plugins", "add", "scr", "--model", stranger)
    assert (attached.code, "its own Python code" in attached.sentence()) == (1, True)
    assert "--trust-remote-code" not in attached.stderr  # that command does not have the flag
    assert not proof.exists()
    assert sys.stdin.tell() == 0  # standard input was not read


@pytest.mark.parametrize("file", ["preprocessor_config.json", "tokenizer_config.json", "processor_config.json"])
def test_remote_code_of_a_processor_does_not_run(stranger: Path, proof: Path, image: Path, file: str) -> None:
    (stranger / "config.json").write_bytes((demo_checkpoint(SMALL_DEMO) / "config.json").read_bytes())
    kinds = {"AutoImageProcessor": "Any", "AutoTokenizer": ["Any", None], "AutoProcessor": "Any"}
    code = {
        kind: f"modeling_stranger.{name}" if isinstance(name, str) else ["modeling_stranger.Any", None]
        for kind, name in kinds.items()
    }
    adapt(stranger / file, auto_map=code)
    qkedit("generate", stranger, "--image", image, "--device", "cpu")  # it may succeed: the classes are known
    adapt(stranger / "preprocessor_config.json", auto_map=code, image_processor_type="Strange")
    with pytest.raises(QkeditError, match="its own Python code"):
        DepthModel(str(stranger)).estimate(Image.new("RGB", (8, 8)))
    assert not proof.exists()
    assert sys.stdin.tell() == 0


def test_trusted_remote_code_runs(stranger: Path, proof: Path, image: Path) -> None:
    ask = ("--image", image, "--device", "cpu", "--max-new-tokens", "3", "--json")
    trusted = qkedit("generate", stranger, "--trust-remote-code", *ask)
    assert trusted.code == 0, trusted.stderr
    assert trusted.document["tokens"] == 3  # one JSON document on standard output, although the code prints there too
    assert proof.exists()
    identity = LocalModel(str(stranger), trust_remote_code=True).identity()
    (stranger / "modeling_stranger.py").write_text("another")
    other = LocalModel(str(stranger), trust_remote_code=True).identity()
    assert {name for name in identity if identity[name] != other[name]} == {"code_sha256"}


def test_code_in_another_repository_does_not_run(stranger: Path) -> None:
    adapt(stranger / "config.json", auto_map={"AutoConfig": "someone/else--modeling.Config"})
    with pytest.raises(QkeditError, match="another repository"):
        directory_of(str(stranger), trust_remote_code=True)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "ab12"])
def test_code_on_the_hub_runs_only_from_a_commit(revision: str | None) -> None:
    with pytest.raises(UsageError, match="--revision with the 40 digits"):
        directory_of("someone/model", revision, trust_remote_code=True)


class Kind:
    """One of transformers' classes that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def from_pretrained(self, directory: Path, **settings: object) -> None:
        raise self._error


@pytest.mark.parametrize(
    "said",
    [
        "operator torchvision::nms does not exist",
        "partially initialized module 'torchvision' has no attribute 'extension'",
        "/site-packages/torchvision/_C.so: undefined symbol: _ZN3c1017RegisterOperators",
        "Couldn't load custom C++ ops. This can happen if your PyTorch and torchvision versions are incompatible",
    ],
)
def test_a_torchvision_for_another_torch_is_named(said: str) -> None:
    outer = RuntimeError("Failed to import transformers.models.qwen2_vl (look up to see its traceback)")
    outer.__cause__ = RuntimeError(said)
    with pytest.raises(QkeditError, match=r"torchvision .* was built for another torch than 2\.\d+.*pip install"):
        from_pretrained(Kind(outer), "model")
    check_torchvision(RuntimeError("out of memory"), "model")


def test_a_torchvision_for_another_torch_is_named_when_transformers_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Transformers(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise ImportError(f"Could not import module {name!r}") from RuntimeError(
                "operator torchvision::nms does not exist"
            )

    monkeypatch.setitem(sys.modules, "transformers", Transformers("transformers"))
    with pytest.raises(QkeditError, match=r"demo-small: the installed torchvision .* was built for another torch"):
        load(SMALL_DEMO, device="cpu")


def test_the_constraints_hold_matching_versions_of_torch_and_torchvision() -> None:
    root = Path(__file__).resolve().parents[2]
    pins = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line)
    assert torchvision_for("2.13.0") == "0.28.*"  # the pairs that PyTorch publishes
    assert pins["torchvision"].startswith(torchvision_for(pins["torch"]).removesuffix("*"))
    # The tests run without torchvision: the builds on PyPI are for CUDA.
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not any(requirement.startswith("torchvision") for requirement in extras["test"])
