"""Test reading a model repository by ranges, against a loopback hub that counts requests and fails on demand."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.hub import files as hub_module
from qkedit.checkpoint.hub.files import HubFiles
from qkedit.checkpoint.io.source import CheckpointFiles
from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.errors import CheckpointError
from tests.fake_hub import COMMIT, FakeHub, Faults, serve_hub

SHARD = "model-00001-of-00001.safetensors"
WEIGHTS = random.Random(0).randbytes(300_000)
CONFIG = b'{"model_type": "qwen2_vl"}'


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    repository = tmp_path / "repository"
    (repository / "figures").mkdir(parents=True)
    (repository / "config.json").write_bytes(CONFIG)
    (repository / SHARD).write_bytes(WEIGHTS)
    (repository / "figures" / "a plot.png").write_bytes(b"png")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "RETRY_WAIT", 0.0)
    close_session()
    with serve_hub(repository, "org/model") as served:
        yield served
    close_session()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def opened(hub: FakeHub, cache: Path, revision: str | None = None) -> HubFiles:
    return HubFiles.open(hub.repo_id, revision, endpoint=hub.endpoint, cache_dir=cache)


def sentence(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    """Return the message, after checking that it is one line that names the repository and ends in one full stop."""
    text = str(error.value)
    assert text.startswith("org/")
    assert "\n" not in text
    assert "Traceback" not in text
    assert text.endswith(".")
    assert not text.endswith("..")
    assert error.value.remedy
    return text


def test_opening_lists_files_without_fetching_any(hub: FakeHub, cache: Path) -> None:
    files: CheckpointFiles = opened(hub, cache)
    assert files.name == "org/model"
    assert files.revision == COMMIT
    assert files.sizes() == {"config.json": len(CONFIG), "figures/a plot.png": 3, SHARD: len(WEIGHTS)}
    assert [request.path for request in hub.requests] == ["/api/models/org/model/revision/main"]
    assert not cache.exists()


def test_reads_fetch_exactly_the_requested_bytes(hub: FakeHub, cache: Path) -> None:
    files = opened(hub, cache)
    assert files.read(SHARD, 0, 8) == WEIGHTS[:8]
    assert files.read(SHARD, 8, 1008) == WEIGHTS[8:1008]
    buffer = bytearray(200_000)
    files.read_into(SHARD, 99_999, buffer)
    assert bytes(buffer) == WEIGHTS[99_999:299_999]
    assert files.read(SHARD, len(WEIGHTS) - 1, len(WEIGHTS)) == WEIGHTS[-1:]
    assert files.read(SHARD, 5, 5) == b""
    assert hub.fetched(SHARD) == [(0, 8), (8, 1008), (99_999, 299_999), (299_999, 300_000)]
    assert hub.bytes_sent() == files.bytes_fetched == 8 + 1000 + 200_000 + 1
    assert not cache.exists()


def test_several_threads_may_read_at_once(hub: FakeHub, cache: Path) -> None:
    files = opened(hub, cache)
    ranges = [(start, start + 3000) for start in range(0, 297_000, 9000)]
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda bounds: files.read(SHARD, *bounds), ranges))
    assert parts == [WEIGHTS[start:end] for start, end in ranges]
    assert files.bytes_fetched == 3000 * len(ranges)


def test_opening_a_checkpoint_fetches_config_index_and_headers_only(hub: FakeHub, cache: Path) -> None:
    with serve_hub(demo_checkpoint(SMALL_DEMO), "org/model") as demo:
        files = opened(demo, cache)
        checkpoint = open_checkpoint(files)
    headers = 0
    for shard in demo_checkpoint(SMALL_DEMO).glob("*.safetensors"):
        headers += 8 + int.from_bytes(shard.read_bytes()[:8], "little")
    sizes = files.sizes()
    assert len(checkpoint.shards) >= 2
    assert files.bytes_fetched == headers + sizes["config.json"] + sizes["model.safetensors.index.json"]
    assert files.bytes_fetched < sum(sizes.values()) / 50


def test_file_names_may_have_folders_and_spaces(hub: FakeHub, cache: Path) -> None:
    assert opened(hub, cache).read("figures/a plot.png", 1, 3) == b"ng"


def test_every_read_uses_the_resolved_commit(hub: FakeHub, cache: Path) -> None:
    files = opened(hub, cache)
    files.read(SHARD, 0, 8)
    files.local_path(SHARD)
    resolved = [request.path for request in hub.requests if request.path.endswith(SHARD)]
    assert resolved == [f"/org/model/resolve/{COMMIT}/{SHARD}"] * len(resolved) != []


def test_the_token_is_sent_to_the_hub_and_not_to_the_redirect(hub: FakeHub, cache: Path) -> None:
    with serve_hub(hub.directory, "org/model") as storage:
        # Another host, not only another port: releases of the hub library before 2.0 compare only the host.
        hub.faults.redirect = storage.endpoint.replace("127.0.0.1", "localhost")
        files = opened(hub, cache)
        assert files.read(SHARD, 100, 200) == WEIGHTS[100:200]
        assert files.local_path(SHARD).read_bytes() == WEIGHTS
        assert {request.token for request in hub.requests} == {"hf_secret"}
        assert {request.token for request in storage.requests} == {None}
        assert storage.requests[0].range == (100, 200)


def test_a_broken_connection_is_resumed_at_the_next_byte(hub: FakeHub, cache: Path) -> None:
    files = opened(hub, cache)
    hub.faults = Faults(drop_after=1000, drops=2)
    assert files.read(SHARD, 50, 5000) == WEIGHTS[50:5000]
    assert hub.fetched(SHARD) == [(50, 5000), (1050, 5000), (2050, 5000)]
    assert files.bytes_fetched == 4950


def test_repeated_connection_failures_are_an_error(hub: FakeHub, cache: Path) -> None:
    files = opened(hub, cache)
    hub.faults.drop_after = 10
    with pytest.raises(CheckpointError) as error:
        files.read(SHARD, 0, 5000)
    assert sentence(error).startswith(f"org/model/{SHARD}: the download failed 4 times; check the network")


def test_status_503_is_retried(hub: FakeHub, cache: Path) -> None:
    files = opened(hub, cache)
    hub.faults = Faults(status=503, failing_requests=2)
    assert files.read(SHARD, 0, 8) == WEIGHTS[:8]


def test_a_whole_file_is_accepted_for_a_range_from_its_start(hub: FakeHub, cache: Path) -> None:
    files = opened(hub, cache)
    hub.faults.ignore_range = True
    assert files.read("config.json", 0, len(CONFIG)) == CONFIG
    assert files.read(SHARD, 0, 8) == WEIGHTS[:8]
    assert files.bytes_fetched == len(CONFIG) + 8


@pytest.mark.parametrize("faults", [Faults(ignore_range=True), Faults(wrong_range=True)])
def test_a_server_without_ranges_is_an_error(hub: FakeHub, cache: Path, faults: Faults) -> None:
    files = opened(hub, cache)
    hub.faults = faults
    with pytest.raises(CheckpointError) as error:
        files.read(SHARD, 8, 16)
    assert "the server does not support range requests; download the model with `hf download" in sentence(error)


def test_unlisted_files_and_ranges_are_refused_without_a_request(hub: FakeHub, cache: Path) -> None:
    files = opened(hub, cache)
    asked = len(hub.requests)
    for use in (
        lambda: files.read("absent", 0, 1),
        lambda: files.local_path("absent"),
        lambda: files.read(SHARD, 0, 2**62),
        lambda: files.read_into(SHARD, len(WEIGHTS), bytearray(1)),
    ):
        with pytest.raises(CheckpointError) as error:
            use()
        sentence(error)
    assert len(hub.requests) == asked


@pytest.mark.parametrize("name", ["../evil", "/etc/cron.d/evil"])
def test_file_names_outside_the_repository_are_refused(hub: FakeHub, cache: Path, name: str) -> None:
    hub.faults.extra_siblings = [{"rfilename": name, "size": 3}]
    with pytest.raises(CheckpointError, match="points outside the checkpoint"):
        opened(hub, cache)


def test_a_listing_without_sizes_is_refused(hub: FakeHub, cache: Path) -> None:
    hub.faults.extra_siblings = [{"rfilename": "other"}]
    with pytest.raises(CheckpointError) as error:
        opened(hub, cache)
    assert "lacks the commit or the sizes" in sentence(error)


class TestCache:
    def test_whole_files_are_downloaded_once_and_read_from_the_cache(self, hub: FakeHub, cache: Path) -> None:
        files = opened(hub, cache)
        path = files.local_path(SHARD)
        assert path.read_bytes() == WEIGHTS
        assert not path.is_symlink()
        assert path.is_relative_to(cache)
        assert files.bytes_fetched == len(WEIGHTS)
        asked = len(hub.requests)
        assert files.local_path(SHARD) == path
        assert files.read(SHARD, 7, 77) == WEIGHTS[7:77]
        assert len(hub.requests) == asked
        assert files.bytes_fetched == len(WEIGHTS)

    def test_an_interrupted_download_is_resumed(
        self, hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("time.sleep", lambda _: None)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        files = opened(hub, cache)
        hub.faults = Faults(drop_after=100_000, drops=1)
        assert files.local_path(SHARD).read_bytes() == WEIGHTS
        assert hub.fetched(SHARD) == [None, (100_000, 1 << 62)]

    def test_a_failed_download_is_an_error_and_leaves_no_partial_file(
        self, hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("time.sleep", lambda _: None)
        files = opened(hub, cache)
        hub.faults.drop_after = 0
        with pytest.raises(CheckpointError) as error:
            files.local_path(SHARD)
        assert sentence(error).startswith(f"org/model/{SHARD}: the connection to the hub failed (")
        hub.faults = Faults()
        assert files.local_path(SHARD).read_bytes() == WEIGHTS

    @pytest.mark.parametrize("revision", [None, "main", COMMIT])
    def test_downloaded_files_are_readable_offline(
        self, hub: FakeHub, cache: Path, revision: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        online = opened(hub, cache, revision)
        online.local_path(SHARD)
        if revision == COMMIT:
            online.local_path("config.json")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        files = opened(hub, cache, revision)
        assert (files.name, files.revision) == ("org/model", COMMIT)
        assert files.sizes() == {"config.json": len(CONFIG), SHARD: len(WEIGHTS)}
        assert files.read(SHARD, 5, 50) == WEIGHTS[5:50]
        assert files.local_path(SHARD).read_bytes() == WEIGHTS
        assert files.bytes_fetched == 0

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_the_cache_is_used_with_a_warning_while_the_hub_is_down(
        self, hub: FakeHub, cache: Path, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        opened(hub, cache).local_path(SHARD)
        hub.faults.status = status
        assert opened(hub, cache).read(SHARD, 5, 50) == WEIGHTS[5:50]
        assert "org/model: the hub is unreachable, so the files in the cache are used" in caplog.text

    def test_a_refusal_of_access_does_not_fall_back_to_the_cache(self, hub: FakeHub, cache: Path) -> None:
        opened(hub, cache).local_path(SHARD)
        hub.faults.status = 403
        with pytest.raises(CheckpointError) as error:
            opened(hub, cache)
        assert "the hub refuses access (403); run `hf auth login`" in sentence(error)

    def test_a_full_disk_is_an_error(self, hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> str:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        files = opened(hub, cache)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
        with pytest.raises(CheckpointError) as error:
            files.local_path(SHARD)
        assert "the disk of the download cache is full" in sentence(error)
        assert "HF_HOME" in sentence(error)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every directory")
    def test_a_read_only_cache_is_an_error(self, hub: FakeHub, cache: Path) -> None:
        cache.mkdir(mode=0o500)
        with pytest.raises(CheckpointError) as error:
            opened(hub, cache).local_path(SHARD)
        assert "cannot be written to the download cache" in sentence(error)

    def test_a_file_at_the_path_of_the_cache_is_an_error(self, hub: FakeHub, cache: Path) -> None:
        cache.write_text("in the way")
        with pytest.raises(CheckpointError) as error:
            opened(hub, cache).local_path(SHARD)
        assert "cannot be written to the download cache" in sentence(error)


class TestRefusals:
    def test_an_unknown_repository_is_named(self, hub: FakeHub, cache: Path) -> None:
        with pytest.raises(CheckpointError) as error:
            HubFiles.open("org/other", endpoint=hub.endpoint, cache_dir=cache)
        assert "the hub does not have this model, or it is private; check the spelling" in sentence(error)
        assert "directory" in sentence(error)

    def test_an_unknown_revision_is_named(self, hub: FakeHub, cache: Path) -> None:
        with pytest.raises(CheckpointError) as error:
            opened(hub, cache, "v9")
        assert "the model has no revision 'v9'; give a branch, tag or commit" in sentence(error)

    def test_a_gated_repository_is_refused_with_its_terms(self, hub: FakeHub, cache: Path) -> None:
        files = opened(hub, cache)
        hub.faults.gated = True
        for use in (lambda: files.read(SHARD, 0, 8), lambda: files.local_path(SHARD)):
            with pytest.raises(CheckpointError) as error:
                use()
            assert "access to this model is restricted; accept its terms at " in sentence(error)
            assert f"{hub.endpoint}/org/model and log in with `hf auth login`" in sentence(error)

    @pytest.mark.parametrize("status", [400, 418, 429, 500, 503])
    def test_other_status_codes_are_quoted(self, hub: FakeHub, cache: Path, status: int) -> None:
        hub.faults.status = status
        with pytest.raises(CheckpointError) as error:
            opened(hub, cache)
        assert f"({status})" in sentence(error)

    def test_a_file_removed_from_the_repository_is_an_error(self, hub: FakeHub, cache: Path) -> None:
        files = opened(hub, cache)
        (hub.directory / SHARD).unlink()
        for use in (lambda: files.read(SHARD, 0, 8), lambda: files.local_path(SHARD)):
            with pytest.raises(CheckpointError) as error:
                use()
            assert "the hub no longer has this file" in sentence(error)

    def test_a_failed_connection_is_an_error(self, cache: Path) -> None:
        with pytest.raises(CheckpointError) as error:
            HubFiles.open("org/model", endpoint="http://127.0.0.1:9", cache_dir=cache)
        assert sentence(error).startswith("org/model: the connection to the hub failed (ConnectError: ")

    def test_offline_mode_without_cached_files_is_an_error(
        self, hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(CheckpointError) as error:
            opened(hub, cache)
        assert "HF_HUB_OFFLINE forbids the download; unset HF_HUB_OFFLINE" in sentence(error)
        assert hub.requests == []

    @pytest.mark.parametrize("repo_id", ["org/a b", "org/mo--del", "org/..", "org/model."])
    def test_invalid_hub_ids_are_refused(self, cache: Path, repo_id: str) -> None:
        with pytest.raises(CheckpointError) as error:
            HubFiles.open(repo_id, endpoint="http://127.0.0.1:9", cache_dir=cache)
        assert "is not a valid hub id; give one such as org/name" in sentence(error)

    def test_an_unusable_response_is_an_error(self, hub: FakeHub, cache: Path) -> None:
        (hub.directory / "page.html").write_text("<html>please log in to this network</html>")
        wall = f"{hub.endpoint}/org/model/resolve/main/page.html?"
        with pytest.raises(CheckpointError) as error:
            HubFiles.open("org/model", endpoint=wall, cache_dir=cache)
        assert "the hub's response is not usable" in sentence(error)


def test_hub_and_cache_come_from_the_environment(hub: FakeHub, tmp_path: Path) -> None:
    script = f"""
from qkedit.checkpoint.hub.files import HubFiles
files = HubFiles.open("org/model")
print(files.read({SHARD!r}, 0, 4).hex(), files.local_path("config.json"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=hub.environment(tmp_path / "home", HF_TOKEN="hf_other"),
        capture_output=True,
        text=True,
        check=True,
    )
    first, path = done.stdout.split()
    assert first == WEIGHTS[:4].hex()
    assert Path(path).is_relative_to(tmp_path / "home")
    assert {request.token for request in hub.requests} == {"hf_other"}


def test_importing_the_module_imports_neither_torch_nor_huggingface_hub() -> None:
    script = "import sys, qkedit.checkpoint.hub.files; print('huggingface_hub' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
