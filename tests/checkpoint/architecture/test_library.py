"""Test the record library: references between records, added records, and refusals by name."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from qkedit.checkpoint.architecture import library, sources
from qkedit.checkpoint.architecture.library import VARIABLE, architectures, using_architectures
from qkedit.checkpoint.architecture.sources import ENTRY_POINTS
from qkedit.configuration_files import configuration_directory
from qkedit.errors import QkeditError
from tests.checkpoint.architecture.records import DECODER, FAMILY, write_records
from tests.packages import installed


def test_no_two_shipped_records_share_a_model_type() -> None:
    known = architectures()
    types = [name for decoder in known.decoders.values() for name in decoder.model_types]
    assert len(types) == len(set(types)) > 20
    pairs = [(name, family.vision) for family in known.families.values() for name in family.model_types]
    assert len(pairs) == len(set(pairs)) > 40
    assert all(origin.is_shipped for origin in known.origins.values())


def test_no_shipped_record_replaces_another() -> None:
    known = architectures()
    records = (*known.layouts.values(), *known.decoders.values(), *known.families.values())
    assert not any(record.replaces for record in records)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("families", FAMILY, "configs/families/mine.yaml, decoder: no decoder has the model type 'my_text'"),
        ("decoders", DECODER.replace("separate", "seperate"), "did you mean 'separate'"),
        ("decoders", DECODER.replace("rotary", "rotari"), "configs/decoders/mine.yaml, rope: is 'rotari'"),
        (
            "decoders",
            DECODER.replace("my_text", "llama"),
            "the model type 'llama' is also in configs/decoders/llama.yaml; correct the record.",
        ),
    ],
)
def test_an_error_in_a_shipped_record_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str, sentence: str
) -> None:
    configs = shutil.copytree(configuration_directory(), tmp_path / "configs")
    (configs / file / "mine.yaml").write_text(content)
    monkeypatch.setattr(sources, "configuration_directory", lambda: configs)
    with pytest.raises(QkeditError) as error:
        library._shipped.__wrapped__()
    assert sentence in str(error.value)


def test_user_records_are_known_within_the_block(tmp_path: Path) -> None:
    write_records(tmp_path, families_mine=FAMILY, decoders_mine=DECODER)
    with using_architectures(tmp_path):
        decoder = architectures().decoder_of("my_text")
        assert decoder is not None
        origin = architectures().origin(decoder)
        assert origin is not None
        assert (origin.source, str(origin)) == ("user", f"{tmp_path}/decoders/mine.yaml")
        assert "My-VL" in architectures().families
        with using_architectures(None):
            assert "My-VL" in architectures().families
        with using_architectures([]):
            assert "My-VL" not in architectures().families
    assert architectures().decoder_of("my_text") is None


def test_other_threads_do_not_see_the_records(tmp_path: Path) -> None:
    write_records(tmp_path, families_mine=FAMILY, decoders_mine=DECODER)
    found: list[bool] = []
    with using_architectures(tmp_path):
        thread = threading.Thread(target=lambda: found.append("My-VL" in architectures().families))
        thread.start()
        thread.join()
    assert found == [False]


def test_a_corrected_record_is_read_again(tmp_path: Path) -> None:
    write_records(tmp_path, families_mine=FAMILY, decoders_mine=DECODER.replace("rotary", "none"))
    with using_architectures(tmp_path):
        assert architectures().decoders["My text"].rope == "none"
    write_records(tmp_path, decoders_mine=DECODER)
    with using_architectures(tmp_path):
        assert architectures().decoders["My text"].rope == "rotary"


def test_the_environment_variable_lists_directories_like_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families = write_records(tmp_path / "a", families_mine=FAMILY)
    decoders = write_records(tmp_path / "b", decoders_mine=DECODER)
    listed = os.pathsep.join(("", str(families), str(decoders), str(families / ".." / "a"), ""))
    monkeypatch.setenv(VARIABLE, listed)
    assert "My-VL" in architectures().families
    other = write_records(tmp_path / "c", decoders_mine=DECODER)
    with using_architectures(other):  # instead of those
        assert "My-VL" not in architectures().families
        assert "My text" in architectures().decoders


def test_a_shipped_record_is_replaced_only_on_request(tmp_path: Path) -> None:
    llama = DECODER.replace("my_text", "llama")
    write_records(tmp_path, decoders_mine=llama)
    with pytest.raises(QkeditError) as error, using_architectures(tmp_path):
        pass
    assert str(error.value) == (
        f"{tmp_path}/decoders/mine.yaml: the model type 'llama' is also in configs/decoders/llama.yaml; "
        "choose another name, or write `replaces: Llama` to use this record instead."
    )
    write_records(tmp_path, decoders_mine=llama + "replaces: Llama\n")
    with using_architectures(tmp_path):
        decoder = architectures().decoder_of("llama")
        assert decoder is not None
        assert decoder.name == "My text"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"families_mine": FAMILY}, "families/mine.yaml, decoder: no decoder has the model type 'my_text'"),
        ({"decoders_mine": DECODER.replace("separate", "seperate")}, "did you mean 'separate'"),
        ({"decoders_mine": DECODER + "replaces: Lama\n"}, "did you mean 'Llama'"),
        ({"decoder_mine": DECODER}, "did you mean 'decoders'"),
        ({"decoders_mine": DECODER.replace("rotary", "rotari")}, "decoders/mine.yaml, rope: is 'rotari'"),
        ({"decoders_mine": DECODER + "rope: none\n"}, "'rope' occurs twice"),
        ({"decoders_mine": "[" * 90_000}, "decoders/mine.yaml: nests too deep"),
        ({"decoders_mine": "&a [*a]"}, "decoders/mine.yaml: is [[[[[[[...]]]]]]], not a mapping"),
        ({"decoders_mine": "a: " + "x" * 100_000}, "decoders/mine.yaml: is longer than 100000 bytes"),
        ({"decoders_mine": "!!python/object/apply:os.getcwd []"}, "decoders/mine.yaml: cannot be read (could not"),
        ({"decoders_mine": "name: [\n"}, "decoders/mine.yaml: cannot be read ("),
        ({}, "holds no architecture records"),
    ],
)
def test_an_error_in_a_user_record_names_the_file(tmp_path: Path, files: dict[str, str], sentence: str) -> None:
    write_records(tmp_path, **files)
    with pytest.raises(QkeditError) as error, using_architectures(tmp_path):
        pass
    assert sentence in str(error.value)
    assert str(error.value).startswith(str(tmp_path))
    assert "install qkedit" not in str(error.value)


def _pipe(directory: Path) -> None:
    (directory / "decoders").mkdir()
    os.mkfifo(directory / "decoders" / "mine.yaml")


def _file_for_folder(directory: Path) -> None:
    (directory / "decoders").write_text(DECODER)


def _other_ending(directory: Path) -> None:
    write_records(directory, decoders_mine=DECODER)
    (directory / "decoders" / "mine.yaml").rename(directory / "decoders" / "mine.yml")


def _loop(directory: Path) -> None:
    directory.rmdir()
    directory.symlink_to(directory.name)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Path.rmdir, "there is no such directory of architecture records; check the path."),
        (_loop, "cannot be read (Too many levels of symbolic links); check the path and its permissions."),
        (_pipe, "decoders/mine.yaml: cannot be read (it is not a file); check the path and its permissions."),
        (_file_for_folder, "decoders: cannot be read (Not a directory); check the path and its permissions."),
        (_other_ending, "decoders/mine.yml: does not end in .yaml, as records do; rename the file."),
    ],
)
def test_unreadable_records_are_named(tmp_path: Path, make: Callable[[Path], None], sentence: str) -> None:
    directory = tmp_path / "records"
    directory.mkdir()
    make(directory)
    with pytest.raises(QkeditError) as error, using_architectures(directory):
        pass
    assert str(error.value).startswith(str(directory))
    assert str(error.value).endswith(sentence)


def test_a_package_provides_records_and_a_user_replaces_one(tmp_path: Path) -> None:
    files = {
        "my_models/__init__.py": "",
        "my_models/records/families/mine.yaml": FAMILY,
        "my_models/records/decoders/mine.yaml": DECODER,
    }
    points = {"mine": "my_models.records"}
    own = DECODER.replace("name: My text", "name: Mine") + "replaces: My text\n"
    with installed(tmp_path / "site", "my-models", files, points, group=ENTRY_POINTS):
        decoder = architectures().decoders["My text"]
        origin = architectures().origin(decoder)
        assert origin is not None
        assert origin.source == "package my-models"
        assert origin.identity.startswith("decoders/mine.yaml of the package my-models (SHA-256 ")
        with using_architectures(write_records(tmp_path / "own", decoders_mine=own)):
            assert "My text" not in architectures().decoders
        with (
            pytest.raises(QkeditError, match=r"the model type 'my_text' is also in .*site/my_models/records"),
            using_architectures(write_records(tmp_path / "own", decoders_mine=own.replace("replaces: My text", ""))),
        ):
            pass
    assert "My text" not in architectures().decoders


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("my_models.nothing", "there is no package my_models.nothing"),
        ("my_models.broken.records", "no good"),
        ("my_models.broken", "there is no package my_models.broken"),
    ],
)
def test_an_error_names_the_broken_package(tmp_path: Path, target: str, reason: str) -> None:
    files = {"my_models/__init__.py": "", "my_models/broken.py": "raise RuntimeError('no good')"}
    with (
        installed(tmp_path, "my-models", files, {"mine": target}, group=ENTRY_POINTS),
        pytest.raises(QkeditError) as error,
    ):
        architectures()
    assert str(error.value) == (
        f"entry point qkedit.architectures: the architecture records mine of the package my-models cannot be found "
        f"({reason}); repair or uninstall that package."
    )
