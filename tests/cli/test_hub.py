"""Test models on the hub: a dry run reads headers only, a delta its projections, a full output every file once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from qkedit.steering.base import Base, base_for
from tests.cli.command import Runs, runs
from tests.fake_hub import COMMIT, FakeHub, Faults, serve_hub
from tests.steering.checkpoints import INDEX, contents, key_name, query_name, tensors_of, weights, write


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write(tmp_path_factory.mktemp("hub") / "model", weights(biases=True))
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Model\n")
    return directory


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[FakeHub]:
    with serve_hub(repository, "org/model") as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "home"


@pytest.fixture(scope="module")
def steered(served: FakeHub, home: Path) -> Iterator[Runs]:
    """Return a runner of commands in processes that use this hub."""
    with runs(home.parent, served.environment(home, OMP_NUM_THREADS="1")) as started:
        yield started


@pytest.fixture(autouse=True)
def hub(served: FakeHub, home: Path) -> FakeHub:
    """Return a hub without earlier requests, and an empty cache."""
    served.requests.clear()
    served.faults = Faults()
    shutil.rmtree(home, ignore_errors=True)
    return served


def ranges(directory: Path, names: list[str]) -> dict[str, set[tuple[int, int]]]:
    """Return the positions of tensors in their shards."""
    found: dict[str, set[tuple[int, int]]] = {}
    for name in names:
        file = json.loads((directory / INDEX).read_text())["weight_map"][name]
        raw = (directory / file).read_bytes()
        data = 8 + int.from_bytes(raw[:8], "little")
        start, end = json.loads(raw[8:data])[name]["data_offsets"]
        found.setdefault(file, set()).add((data + start, data + end))
    return found


def header_size(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def within_headers(hub: FakeHub, allowed: dict[str, set[tuple[int, int]]]) -> None:
    """Check that only the headers and the `allowed` ranges of shards were fetched."""
    for path in hub.directory.glob("*.safetensors"):
        wanted = allowed.get(path.name, set())
        fetched = hub.fetched(path.name)
        assert all(part is not None for part in fetched), f"{path.name} was fetched whole"
        beyond = {part for part in fetched if part is not None and part[1] > header_size(path)}
        assert beyond == wanted
    assert {request.path for request in hub.requests if "tokenizer" in request.path} == set()


def test_invalid_requests_are_refused_before_a_shard_is_fetched(hub: FakeHub, steered: Runs, tmp_path: Path) -> None:
    result = steered("steer", "org/model", "--layers", "0-1", "--device", "cuda:77", "--out", tmp_path / "out")
    assert "no device" in result.sentence()
    read = [name(layer) for layer in (0, 1) for name in (query_name, key_name)]
    read += [key_name(layer).replace("weight", "bias") for layer in (0, 1)]
    needed = ranges(hub.directory, read)
    for path in hub.directory.glob("*.safetensors"):
        for part in hub.fetched(path.name):
            assert part is not None, f"{path.name} was fetched whole"
            assert part[1] <= header_size(path) or part in needed.get(path.name, set())


def test_a_dry_run_reads_config_index_and_headers(hub: FakeHub, steered: Runs, tmp_path: Path) -> None:
    result = steered("steer", "org/model", "--layers", "0-1", "--out", tmp_path / "out", "--dry-run", "--json")
    assert result.code == 0, result.stderr
    assert (result.document["model"], result.document["revision"]) == ("org/model", COMMIT)
    assert result.document["disk_needed"] == sum(map(len, contents(hub.directory).values()))
    within_headers(hub, {})
    assert not (tmp_path / "out").exists()


def test_a_delta_reads_the_chosen_projections_only(hub: FakeHub, steered: Runs, tmp_path: Path) -> None:
    result = steered("steer", "org/model", "--layers", "1", "--layout", "delta", "--out", tmp_path / "delta")
    assert result.code == 0, result.stderr
    bias = key_name(1).replace("weight", "bias")
    within_headers(hub, ranges(hub.directory, [query_name(1), key_name(1), bias]))
    data = sum(tensors_of(hub.directory)[name].nbytes for name in (query_name(1), key_name(1), bias))
    others = [path for path in hub.directory.iterdir() if path.suffix != ".safetensors"]
    overhead = sum(header_size(path) for path in hub.directory.glob("*.safetensors"))
    assert hub.bytes_sent() <= data + overhead + sum(path.stat().st_size for path in others)

    hub.requests.clear()
    result = steered("apply", tmp_path / "delta", "--base", "org/model", "--out", tmp_path / "applied")
    assert result.code == 0, result.stderr
    assert steered("steer", "org/model", "--layers", "1", "--out", tmp_path / "direct").code == 0
    assert contents(tmp_path / "applied") == contents(tmp_path / "direct")


def test_an_adapter_names_its_commit_and_reads_as_little_as_a_delta(
    hub: FakeHub, steered: Runs, tmp_path: Path
) -> None:
    result = steered("steer", "org/model", "--layers", "1", "--layout", "lora", "--out", tmp_path / "adapter")
    assert result.code == 0, result.stderr
    bias = key_name(1).replace("weight", "bias")
    within_headers(hub, ranges(hub.directory, [query_name(1), key_name(1), bias]))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/model", COMMIT)
    card = (tmp_path / "adapter" / "README.md").read_text()
    for line in ("base_model: org/model", "base_model_relation: adapter", "library_name: peft", "license: apache-2.0"):
        assert line in card
    result = steered("verify", tmp_path / "adapter")
    assert result.code == 0, result.stderr
    assert "the base org/model is the one that was edited" in result.stdout


def test_a_full_output_fetches_each_shard_once_and_verifies_against_its_base(
    hub: FakeHub, steered: Runs, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "edited"
    result = steered("steer", "org/model", "--layers", "0-1", "--out", out)
    assert result.code == 0, result.stderr
    for path in hub.directory.glob("*.safetensors"):
        whole = [part for part in hub.fetched(path.name) if part is None or part == (0, path.stat().st_size)]
        assert len(whole) == 1
    manifest = json.loads((out / "qkedit.json").read_text())
    assert manifest["base"] == {"model": "org/model", "revision": COMMIT}
    card = (out / "README.md").read_text()
    assert "base_model: org/model" in card
    assert "license: apache-2.0" in card
    assert COMMIT in card

    cache = contents(home)
    result = steered("verify", out, "--json")
    assert result.code == 0, result.stderr
    assert result.document["compared_with_base"] == "org/model"
    assert result.document["tensors_compared"] == len(weights(biases=True)) - 2
    assert steered("steer", out, "--layers", "2", "--out", tmp_path / "again").code == 0
    assert "base_model: org/model" in (tmp_path / "again" / "README.md").read_text()
    assert contents(home) == cache

    (out / "tokenizer.json").write_text("{}")
    assert steered("verify", out).code == 3


def test_the_recorded_revision_is_used_after_the_branch_has_moved(hub: FakeHub, steered: Runs, tmp_path: Path) -> None:
    """`--base org/model` without a revision must not compare with the present `main`."""
    out = tmp_path / "edited"
    assert steered("steer", "org/model", "--layers", "0", "--layout", "delta", "--out", out).code == 0
    manifest = json.loads((out / "qkedit.json").read_text())
    manifest["base"]["revision"] = "f" * 40
    (out / "qkedit.json").write_text(json.dumps(manifest))
    result = steered("verify", out, "--base", "org/model")
    assert result.code == 1
    assert "no revision 'ffff" in result.sentence()
    assert steered("verify", out, "--base", "org/model", "--revision", "main").code == 0


def test_every_comparison_uses_the_recorded_revision_of_the_base(hub: FakeHub, steered: Runs, tmp_path: Path) -> None:
    out, picture = tmp_path / "edited", tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    assert steered("steer", "org/model", "--layers", "0", "--out", out).code == 0
    manifest = json.loads((out / "qkedit.json").read_text())
    manifest["base"]["revision"] = "f" * 40
    (out / "qkedit.json").write_text(json.dumps(manifest))
    inspect = ("inspect", out, "--allow-text-only", "--base", "org/model", "--quiet")
    for command in (
        inspect,
        ("drift", out, "--images", picture, "--base", "org/model", "--quiet"),
        ("generate", out, "--image", picture, "--compare", "--base", "org/model", "--quiet"),
    ):
        hub.requests.clear()
        result = steered(*command)
        assert result.code == 1, command
        assert "no revision 'ffff" in result.sentence(), command
        assert {request.path.rpartition("/")[2] for request in hub.requests} == {"f" * 40}
    # A directory has no revision, so it applies to the base. The other two commands would load models, for seconds.
    hub.requests.clear()
    assert steered(*inspect, "--revision", "main").code == 0
    assert hub.requests[0].path.endswith("/main")
    assert base_for(str(out), "org/model", "main") == Base("org/model", "main")


def test_a_recorded_commit_does_not_need_its_branch(hub: FakeHub, steered: Runs, tmp_path: Path) -> None:
    """The branch `main` may be deleted or missing in the cache."""
    out = tmp_path / "edited"
    assert steered("steer", "org/model", "--revision", COMMIT, "--layers", "0", "--out", out).code == 0
    commands = (
        ("verify", out),
        ("verify", out, "--base", "org/model"),
        ("inspect", out, "--allow-text-only", "--compare", "base"),
        ("inspect", out, "--allow-text-only", "--base", "org/model"),
    )
    for command in commands:
        hub.requests.clear()
        result = steered(*command)
        assert result.code == 0, result.stderr
        assert [request.path for request in hub.requests] == [f"/api/models/org/model/revision/{COMMIT}"]
    hub.faults.status = 503
    for command in commands:
        result = steered(*command)
        assert result.code == 0, result.stderr


def test_a_refusal_of_the_hub_leaves_no_output(hub: FakeHub, steered: Runs, tmp_path: Path) -> None:
    hub.faults.gated = True
    result = steered("steer", "org/model", "--layers", "0", "--out", tmp_path / "out")
    assert result.code == 1
    assert "accept its terms" in result.sentence()
    hub.faults.gated = False
    assert steered("steer", "org/model", "--layers", "0", "--layout", "delta", "--dry-run").code == 0
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.qkedit").exists()


def test_a_missing_model_is_refused(steered: Runs, tmp_path: Path) -> None:
    result = steered("steer", "org/other", "--layers", "0", "--out", tmp_path / "out", "--json")
    assert (result.code, result.stderr) == (1, "")
    assert result.document["error"]["where"] == "org/other"
