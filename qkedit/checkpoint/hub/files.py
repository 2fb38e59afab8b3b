"""A checkpoint on the hub, read by byte ranges instead of downloaded.

A dry run needs some kilobytes of headers, and a delta some hundred megabytes of q and k out of 16 GB, so a whole file
is downloaded only if `local_path` asks for it. Everything goes through `huggingface_hub`'s public API with the user's
session, token, endpoint, proxies and cache, and a file in the cache is never downloaded again. The library is imported
inside functions, so that `--help` does not wait for it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qkedit.checkpoint.contents import CONFIG_FILE
from qkedit.checkpoint.hub.errors import explained, is_transport_error, is_unreachable
from qkedit.checkpoint.io.source import LocalFiles, check_name, read_range_into
from qkedit.checkpoint.io.stamps import FileStamps
from qkedit.errors import CheckpointError
from qkedit.version import __version__

# The number of retries after a broken connection, and the seconds before the first retry (then doubled).
RETRIES = 3
RETRY_WAIT = 1.0

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class HubFiles:
    """The files of one commit of a model repository; created by `HubFiles.open`.

    A file in the cache is read from there; otherwise the hub gets a range request for exactly the requested bytes.
    """

    name: str  # "org/name"
    revision: str  # the commit, so that all files belong together even if the branch moves during the run
    listing: Mapping[str, int]  # size in bytes by file name
    requested_revision: str = "main"  # the branch, tag or commit that `revision` was resolved from
    endpoint: str | None = None  # None: HF_ENDPOINT or the public hub
    cache_dir: Path | None = None  # None: HF_HUB_CACHE or the default cache
    bytes_fetched: int = field(default=0, init=False)  # bytes of file contents that this object downloaded
    _stamps: FileStamps = field(default_factory=FileStamps, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @classmethod
    def open(
        cls,
        repo_id: str,
        revision: str | None = None,
        *,
        endpoint: str | None = None,
        cache_dir: Path | None = None,
    ) -> HubFiles:
        """Resolve the revision and list its files with one request, without downloading a file.

        Without a network (or with HF_HUB_OFFLINE) the commit in the cache for this revision is used, with those of its
        files that were downloaded.

        Args:
            repo_id: "org/name".
            revision: branch, tag or commit; None for the default branch.
            endpoint: the URL of a hub, in place of HF_ENDPOINT.
            cache_dir: the cache directory, in place of HF_HUB_CACHE.

        Raises:
            CheckpointError: the repository or revision does not exist or is not accessible, or there is neither
                a network nor a cached commit.
        """
        from huggingface_hub import HfApi, constants

        requested = revision or constants.DEFAULT_REVISION
        api = HfApi(endpoint=endpoint, library_name="qkedit", library_version=__version__)
        with explained(repo_id, requested):
            try:
                info = api.model_info(
                    repo_id, revision=requested, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
                )
                listing = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
                commit = info.sha or ""
            except Exception as error:
                snapshot = _cached_snapshot(repo_id, requested, cache_dir) if is_unreachable(error) else None
                if snapshot is None:
                    raise
                if not constants.HF_HUB_OFFLINE:
                    logger.warning("%s: the hub is unreachable, so the files in the cache are used", repo_id)
                listing, commit = dict(LocalFiles(snapshot).sizes()), snapshot.name
        sizes = {file: size for file, size in sorted(listing.items()) if size is not None}
        if not commit or len(sizes) < len(listing):
            raise CheckpointError(
                "the hub's response lacks the commit or the sizes of files",
                where=repo_id,
                remedy="check HF_ENDPOINT, or download the model and give its directory",
            )
        for file in sizes:
            check_name(file, where=repo_id)
        return cls(repo_id, commit, sizes, requested, endpoint, cache_dir)

    def sizes(self) -> dict[str, int]:
        """Every file's size in bytes, by name."""
        return dict(self.listing)

    def passed_over(self) -> dict[str, str]:
        """Empty: a repository holds only files."""
        return {}

    def read(self, file: str, start: int, end: int) -> bytes:
        """Return exactly bytes [start, end) of one file."""
        self._check_range(file, start, end)
        buffer = bytearray(end - start)
        self.read_into(file, start, buffer)
        return bytes(buffer)

    def read_into(self, file: str, start: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` with the bytes of one file, beginning at `start`."""
        view = memoryview(buffer).cast("B")
        self._check_range(file, start, start + len(view))
        cached = self._cached(file)
        if cached is not None:
            read_range_into(cached, start, view)
        elif view:
            with explained(self.name, self.requested_revision, file):
                self._fetch_into(file, start, view)

    def local_path(self, file: str) -> Path:
        """Return the path of the file in the hub's cache with symlinks resolved, downloading it if necessary.

        A broken connection is resumed at the same byte. After a killed run, the unfinished file starts again; finished
        files are kept.
        """
        self._check_range(file, 0, 0)
        with explained(self.name, self.requested_revision, file):
            path = self._cached(file)
            if path is None:
                path = self._download(file, self.revision)
                self._count(self.listing[file])
                self._remember_requested_revision()
            real = path.resolve(strict=True)
            self._stamps.note(str(real), real.stat())
            return real

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file that `local_path` returned was written to or replaced since.

        Files on the hub belong to one commit, which does not change.
        """
        with explained(self.name, self.requested_revision):
            self._stamps.check(os.stat)

    def _cached(self, file: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, file, cache_dir=self.cache_dir, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def _download(self, file: str, revision: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(
                self.name,
                file,
                revision=revision,
                endpoint=self.endpoint,
                cache_dir=self.cache_dir,
                library_name="qkedit",
                library_version=__version__,
            )
        )

    def _remember_requested_revision(self) -> None:
        """Make the cache remember the commit of the requested branch, so that the same request works offline.

        The library does so when a file is requested by branch, not by commit; the config is the smallest such file.
        """
        known = _cached_snapshot(self.name, self.requested_revision, self.cache_dir)
        if CONFIG_FILE in self.listing and (known is None or known.name != self.revision):
            self._download(CONFIG_FILE, self.requested_revision)

    def _fetch_into(self, file: str, start: int, view: memoryview) -> None:
        """Fetch one range, resuming after a broken connection."""
        filled = 0
        failure: Exception | None = None
        for attempt in range(1 + RETRIES):
            if attempt:
                time.sleep(RETRY_WAIT * 2 ** (attempt - 1))
            try:
                for chunk in self._chunks(file, start + filled, start + len(view)):
                    view[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
                    self._count(len(chunk))
            except Exception as error:
                if not is_transport_error(error):
                    raise
                failure = error
            if filled == len(view):
                return
        raise CheckpointError(
            f"the download failed {1 + RETRIES} times",
            where=f"{self.name}/{file}",
            remedy="check the network and try again",
        ) from failure

    def _chunks(self, file: str, start: int, end: int) -> Iterator[bytes]:
        """Yield bytes [start, end) as they arrive, or fewer if the server stops early."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        url = hf_hub_url(self.name, file, revision=self.revision, endpoint=self.endpoint)
        headers = build_hf_headers(library_name="qkedit", library_version=__version__)
        headers["Range"] = f"bytes={start}-{end - 1}"
        headers["Accept-Encoding"] = "identity"  # a range of a compressed stream would be useless
        # The session drops the token when the hub redirects to another host. Responses like 429 and 503 are retried
        # here, broken connections by the caller, which knows how much has arrived.
        with http_stream_backoff(
            "GET",
            url,
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            max_retries=RETRIES,
            base_wait_time=RETRY_WAIT,
            retry_on_exceptions=(),
        ) as response:
            hf_raise_for_status(response)
            partial = response.status_code == 206
            first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            # A response with the whole file is usable if the range begins at 0; the rest is not received.
            if (partial and first != str(start)) or (not partial and start > 0):
                raise CheckpointError(
                    "the server does not support range requests",
                    where=f"{self.name}/{file}",
                    remedy=f"download the model with `hf download {self.name}` and run again",
                )
            left = end - start
            for chunk in response.iter_bytes():
                yield chunk[:left]
                left -= len(chunk)
                if left <= 0:
                    return

    def _check_range(self, file: str, start: int, end: int) -> None:
        if file not in self.listing:
            raise CheckpointError(
                "the repository does not have this file",
                where=f"{self.name}/{file}",
                remedy="check the model or the revision",
            )
        if not 0 <= start <= end <= self.listing[file]:
            raise CheckpointError(
                f"the file ends before byte {end}",
                where=f"{self.name}/{file}",
                remedy="choose another revision: this one is broken",
            )

    def _count(self, byte_count: int) -> None:
        with self._lock:
            self.bytes_fetched += byte_count


def _cached_snapshot(repo_id: str, revision: str, cache_dir: Path | None) -> Path | None:
    """Return the directory of the cached commit for this revision; its name is the commit."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo_id, CONFIG_FILE, cache_dir=cache_dir, revision=revision)
    return Path(config).parent if isinstance(config, str) else None
