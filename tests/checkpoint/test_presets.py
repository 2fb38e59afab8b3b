"""Test aliases of published models, and the resolution of names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qkedit import configuration_files
from qkedit.checkpoint.hub.files import HubFiles
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.presets import parse_presets, presets, presets_by_alias, similar_aliases
from qkedit.checkpoint.resolve import resolve
from qkedit.errors import QkeditError, UsageError
from tests.fake_hub import COMMIT, serve_hub

# The table of the paper (arXiv 2602.22469), by hub id.
PUBLISHED_SCR = {
    "llava-hf/llava-1.5-7b-hf": (0, 11),
    "llava-hf/llava-1.5-13b-hf": (0, 11),
    "Qwen/Qwen-VL": (0, 15),
    "Qwen/Qwen-VL-Chat": (0, 15),
    "Qwen/Qwen2-VL-7B-Instruct": (0, 15),
    "facebook/chameleon-7b": (0, 15),
    "facebook/chameleon-30b": (0, 20),
}


class TestShippedPresets:
    def test_the_alias_in_the_readme_is_the_7b_model(self) -> None:
        preset = presets_by_alias()["qwen2-vl"]
        assert (preset.hub_id, preset.layer_count) == ("Qwen/Qwen2-VL-7B-Instruct", 28)
        assert preset is presets_by_alias()["qwen2-vl-7b"]

    def test_scr_layers_equal_the_published_ones(self) -> None:
        assert {p.hub_id: p.scr.layers for p in presets() if p.scr} == PUBLISHED_SCR
        assert {p.scr.diagnosis for p in presets() if p.scr} == {(8, 16)}

    def test_no_model_occurs_twice(self) -> None:
        ids = [preset.hub_id for preset in presets()]
        assert len(ids) == len(set(ids)) > 50

    def test_ports_have_as_many_layers_as_their_originals(self) -> None:
        layers = {preset.hub_id.lower(): preset.layer_count for preset in presets()}
        ports = {hub_id for hub_id in layers if hub_id.endswith("-hf") and hub_id.removesuffix("-hf") in layers}
        assert len(ports) >= 6
        assert all(layers[port] == layers[port.removesuffix("-hf")] for port in ports)

    def test_the_size_in_an_alias_equals_the_size_in_the_hub_id(self) -> None:
        for preset in presets():
            for alias in preset.aliases:
                size = alias.removesuffix("-hf").rpartition("-")[2]
                if size.endswith("b") and size[0].isdigit():
                    assert size in preset.hub_id.lower() or preset.hub_id == "HuggingFaceTB/SmolVLM-Instruct"

    def test_similar_aliases_are_found_for_typing_errors(self) -> None:
        assert similar_aliases("qwen2vl")[0] == "qwen2-vl"
        assert similar_aliases("Qwen2-VL-7")[0] == "qwen2-vl-7b"
        assert similar_aliases("deom") == ("demo",)
        assert similar_aliases("zzzzzz") == ()


RECORD = {"aliases": ["some-model"], "hub": "org/name", "layers": 12}
SCR = {"layers": [0, 3], "diagnosis": [2, 11]}


class TestSchema:
    def test_a_record_becomes_a_preset(self) -> None:
        (preset,) = parse_presets([RECORD | {"scr": SCR}], "some.yaml")
        assert preset.aliases == ("some-model",)
        assert (preset.hub_id, preset.layer_count) == ("org/name", 12)
        assert preset.scr is not None
        assert (preset.scr.layers, preset.scr.diagnosis) == ((0, 3), (2, 11))

    @pytest.mark.parametrize(
        ("records", "message"),
        [
            (None, "is not a list of records"),
            ({}, "is not a list of records"),
            ([], "is not a list of records"),
            (["x"], "is 'x', not a mapping with the keys aliases, hub, layers, scr"),
            ([RECORD, {"hub": "org/name"}], "record 2: lacks aliases, layers"),
            ([RECORD | {"head": 3}], "record 1: has the unknown key 'head'; known are aliases, hub, layers, scr"),
            ([RECORD | {1: 3}], "has the unknown key 1"),
            ([RECORD | {"aliases": "some-model"}], "aliases: is 'some-model', not a list"),
            ([RECORD | {"aliases": []}], "aliases: is [], not a list"),
            ([RECORD | {"aliases": ["Some"]}], "aliases must be lower-case names"),
            ([RECORD | {"aliases": ["a/b"]}], "aliases must be lower-case names"),
            ([RECORD | {"aliases": ["demo"]}], "other than 'demo'"),
            ([RECORD | {"aliases": [3]}], "aliases: is 3, not text"),
            ([RECORD | {"hub": "name"}], "hub must be an id such as org/name, not 'name'"),
            ([RECORD | {"hub": None}], "hub: is None, not text"),
            ([RECORD | {"layers": 0}], "layers must be a positive whole number"),
            ([RECORD | {"layers": "12"}], "layers: is '12', not a whole number"),
            ([RECORD | {"layers": True}], "layers: is True, not a whole number"),
            ([RECORD | {"scr": {"layers": [0, 3]}}], "scr: lacks diagnosis"),
            ([RECORD | {"scr": SCR | {"layers": [0, 3, 4]}}], "layers: is [0, 3, 4], not a list of 2"),
            ([RECORD | {"scr": SCR | {"layers": [4, 3]}}], "must be in order and below 12"),
            ([RECORD | {"scr": SCR | {"diagnosis": [4, 12]}}], "scr.diagnosis must be in order and below 12"),
        ],
    )
    def test_an_invalid_record_is_named(self, records: object, message: str) -> None:
        with pytest.raises(QkeditError, match=r"^configs/presets/some\.yaml") as error:
            parse_presets(records, "some.yaml")
        assert message in str(error.value)

    def test_an_alias_of_two_models_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        twice = parse_presets([RECORD, RECORD | {"hub": "org/other"}], "some.yaml")
        monkeypatch.setattr("qkedit.checkpoint.presets.presets", lambda: twice)
        with pytest.raises(QkeditError, match=r"org/name and org/other: the alias 'some-model' is given twice"):
            presets_by_alias.__wrapped__()


class TestConfigurationFiles:
    def test_configurations_are_found_in_a_package_and_next_to_a_checkout(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "qkedit"
        package.mkdir()
        (tmp_path / "configs").mkdir()
        monkeypatch.setattr(configuration_files, "__file__", str(package / "configuration_files.py"))
        find = configuration_files.configuration_directory.__wrapped__
        assert find() == tmp_path.resolve() / "configs"
        (package / "configs").mkdir()
        assert find() == package.resolve() / "configs"

    @pytest.mark.parametrize("content", [None, b"a: [1", b"\xff", b"!!python/object/apply:os.system ['true']"])
    def test_an_unreadable_configuration_is_one_sentence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
    ) -> None:
        if content is not None:
            (tmp_path / "x.yaml").write_bytes(content)
        monkeypatch.setattr(configuration_files, "configuration_directory", lambda: tmp_path)
        remedy = "install qkedit again" if content is None else "correct the file"
        with pytest.raises(QkeditError, match=rf"x\.yaml: cannot be read \(.+\); {remedy}") as error:
            configuration_files.read_configuration("x.yaml")
        assert "\n" not in str(error.value)


@pytest.fixture
def hub_requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str | None]]:
    """Return the requests to a simulated hub; the working directory is empty."""
    hub_requests: list[tuple[str, str | None]] = []

    def open_(repo_id: str, revision: str | None = None) -> HubFiles:
        hub_requests.append((repo_id, revision))
        return HubFiles(repo_id, COMMIT, {})

    monkeypatch.setattr(HubFiles, "open", open_)
    monkeypatch.chdir(tmp_path)
    return hub_requests


class TestResolve:
    @pytest.mark.parametrize("model", ["demo", "DEMO", "demo-small", "Demo-Small"])
    def test_demo_is_the_embedded_checkpoint(self, hub_requests: list[object], model: str) -> None:
        files = resolve(model)
        assert (files.name, files.revision, hub_requests) == (model.lower(), None, [])
        assert "config.json" in files.sizes()

    @pytest.mark.parametrize("model", ["qwen2-vl", "Qwen2-VL"])
    def test_an_alias_is_resolved_to_its_hub_id(self, hub_requests: list[object], model: str) -> None:
        assert resolve(model).name == "Qwen/Qwen2-VL-7B-Instruct"
        resolve(model, "v1")
        assert hub_requests == [("Qwen/Qwen2-VL-7B-Instruct", None), ("Qwen/Qwen2-VL-7B-Instruct", "v1")]

    def test_any_other_org_name_is_a_hub_id(self, hub_requests: list[object]) -> None:
        resolve("org/name.v2-x_1", "abc")
        assert hub_requests == [("org/name.v2-x_1", "abc")]

    def test_an_existing_directory_has_precedence_over_a_hub_id(
        self, hub_requests: list[object], tmp_path: Path
    ) -> None:
        (tmp_path / "org" / "name").mkdir(parents=True)
        for model in ("org/name", "./org/name", "org/name/", str(tmp_path / "org" / "name")):
            files = resolve(model)
            assert isinstance(files, LocalFiles)
            assert files.name == "name"
        assert hub_requests == []

    def test_a_tilde_means_the_home_directory(
        self, hub_requests: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "models").mkdir()
        monkeypatch.setenv("HOME", str(tmp_path))
        assert isinstance(resolve("~/models"), LocalFiles)

    @pytest.mark.parametrize(("name", "other"), [("demo", ""), ("qwen2-vl", "Qwen/Qwen2-VL-7B-Instruct")])
    def test_a_name_that_is_both_alias_and_directory_is_refused(
        self, hub_requests: list[object], tmp_path: Path, name: str, other: str
    ) -> None:
        (tmp_path / name).mkdir()
        with pytest.raises(UsageError, match=rf"write \./{name} for the directory") as error:
            resolve(name)
        assert other in str(error.value)
        assert isinstance(resolve(f"./{name}"), LocalFiles)
        assert hub_requests == []

    @pytest.mark.parametrize("model", ["demo", "some/where"])
    def test_a_revision_of_a_local_model_is_refused(
        self, hub_requests: list[object], tmp_path: Path, model: str
    ) -> None:
        (tmp_path / "some" / "where").mkdir(parents=True)
        with pytest.raises(UsageError, match=f"^{model}: only a model on the hub has revisions; leave out --revision"):
            resolve(model, "main")

    @pytest.mark.parametrize(
        "model",
        [
            "./org/name",
            "../name",
            "/org/name",
            "~/name",
            "a/b/c",
            "org/",
            "org\\name",
            "C:\\model",
            "C:/model",
            "~nobody/x",
        ],
    )
    def test_a_path_is_never_requested_from_the_hub(self, hub_requests: list[object], model: str) -> None:
        with pytest.raises(UsageError, match="there is no such directory; check the path"):
            resolve(model)
        assert hub_requests == []

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ("", "the model's name is empty"),
            ("qwen2vl", "did you mean qwen2-vl or "),
            ("gpt2", "there is no directory or alias of this name"),
            ("a b", "there is no directory or alias"),
            ("nul\0byte", "there is no directory or alias"),
            ("x" * 5000, "there is no directory or alias"),
            ("https://huggingface.co/org/name", "is a URL; give the model's hub id"),
            ("weights.bin", "is a file; give the directory"),
            ("org/weights.bin", "is a file; give the directory"),
        ],
    )
    def test_an_unknown_name_is_refused(
        self, hub_requests: list[object], tmp_path: Path, model: str, message: str
    ) -> None:
        (tmp_path / "org").mkdir()
        (tmp_path / "weights.bin").touch()
        (tmp_path / "org" / "weights.bin").touch()
        with pytest.raises(UsageError) as error:
            resolve(model)
        assert message in str(error.value)
        assert hub_requests == []


def in_fresh_process(script: str, **options: object) -> str:
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run
    return run([sys.executable, "-c", script], capture_output=True, text=True, check=True, **options).stdout


def test_an_alias_opens_its_repository(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "config.json").write_text("{}")
    with serve_hub(tmp_path / "repository", "Qwen/Qwen2-VL-7B-Instruct") as hub:
        script = "from qkedit.checkpoint.resolve import resolve; f = resolve('qwen2-vl'); print(f.name, f.revision)"
        printed = in_fresh_process(script, env=hub.environment(tmp_path / "home"))
    assert printed.split() == ["Qwen/Qwen2-VL-7B-Instruct", COMMIT]


def test_resolving_a_directory_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    script = f"""
import sys
from qkedit.checkpoint.resolve import resolve
resolve({str(tmp_path)!r}).sizes()
print([name for name in ("torch", "transformers", "huggingface_hub") if name in sys.modules])
"""
    assert in_fresh_process(script).strip() == "[]"
