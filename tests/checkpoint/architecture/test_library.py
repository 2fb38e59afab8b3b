"""The shipped records have names of their own and refer to one another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qkedit.checkpoint.architecture import sources
from qkedit.checkpoint.architecture.library import architectures
from qkedit.configuration_files import configuration_directory
from qkedit.errors import QkeditError

FAMILY = "name: My-VL\nmodel_types: [my_vl]\ndecoder: my_text\n"
DECODER = "name: My text\nmodel_types: [my_text]\nlayouts: [separate]\nrope: rotary\n"


def test_ours_have_one_name_and_one_model_type_each() -> None:
    known = architectures()
    types = [name for decoder in known.decoders.values() for name in decoder.model_types]
    assert len(types) == len(set(types)) > 20
    pairs = [(name, family.vision) for family in known.families.values() for name in family.model_types]
    assert len(pairs) == len(set(pairs)) > 40


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("families", FAMILY, "configs/families/mine.yaml, decoder: no decoder has the model type 'my_text'"),
        ("decoders", DECODER.replace("separate", "seperate"), "did you mean 'separate'"),
        ("decoders", DECODER.replace("rotary", "rotari"), "configs/decoders/mine.yaml, rope: is 'rotari'"),
        ("decoders", DECODER.replace("my_text", "llama"), "'model type llama' is also in configs/decoders/llama.yaml"),
    ],
)
def test_what_is_wrong_is_named_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str, sentence: str
) -> None:
    configs = shutil.copytree(configuration_directory(), tmp_path / "configs")
    (configs / file / "mine.yaml").write_text(content)
    monkeypatch.setattr(sources, "configuration_directory", lambda: configs)
    with pytest.raises(QkeditError) as error:
        architectures.__wrapped__()
    assert sentence in str(error.value)
