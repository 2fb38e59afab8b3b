"""Fetch images from hosts that are allowed, all of a request's within one deadline.

Nothing here waits on a thread, so a host that is slow, or sends a byte now and then, holds up its own request alone.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from functools import cached_property
from urllib.parse import quote, urlsplit

import h11

from qkedit.serving.limits import Limits
from qkedit.serving.requests.request_errors import RequestError

_CHUNK = 1 << 16
_WHERE = "image_url"


class ImageHosts:
    """Hosts that images are fetched from.

    Args:
        hosts: as `name` (ports 80 and 443) or `name:port`.
        limits: how many bytes and seconds the images of one request may take; a quarter of the requests that are taken
            at a time may be fetching.
    """

    def __init__(self, hosts: frozenset[str], limits: Limits) -> None:
        self._hosts = hosts
        self._limits = limits
        self._fetching = 0

    async def files(self, urls: Iterable[str]) -> dict[str, bytes]:
        """Return the files at some addresses; each is fetched once.

        Raises:
            RequestError: an address is wrong or not allowed, or nothing comes from it in time.
        """
        requests = {url: self._request(url) for url in dict.fromkeys(urls)}
        if not requests:
            return {}
        if self._fetching >= max(1, self._limits.waiting // 4):
            raise RequestError(
                f"{self._fetching} requests are waiting for their images' hosts, and this server lets no more wait",
                where=_WHERE,
                remedy="ask again later, or send the image itself as a data URL",
                status=503,
            )
        self._fetching += 1
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._all(requests)
        except TimeoutError:
            failure = f"the image did not arrive within {self._limits.seconds:g} seconds"
        except (OSError, h11.ProtocolError, ValueError):
            failure = "the image cannot be fetched"
        finally:
            self._fetching -= 1
        raise RequestError(failure, where=_WHERE, remedy="check the address")

    async def _all(self, requests: dict[str, _Request]) -> dict[str, bytes]:
        left, found = self._limits.body, {}
        for url, request in requests.items():
            found[url] = await request.answer(left, self._tls if request.secure else None)
            left -= len(found[url])
        return found

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def _request(self, url: str) -> _Request:
        """Return what to ask for an address. Raises RequestError for one that is wrong or not allowed."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise RequestError("is not an address", where=_WHERE, remedy="send a data URL") from None
        if parts.scheme not in ("http", "https"):
            raise RequestError("is neither a data URL nor an address", where=_WHERE, remedy="send a data URL")
        asked = host if port is None else f"{host}:{port}"
        if asked not in self._hosts or parts.username is not None:
            raise RequestError(
                f"images are not fetched from {asked[:80]!r}" if self._hosts else "this server fetches no images",
                where=_WHERE,
                remedy="send the image itself as a data URL",
            )
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        # Asked of the very name that was looked up, whatever else a reader of addresses might see in them.
        return _Request(parts.scheme == "https", host, port, asked, f"{path}?{query}" if query else path)


class _Request:
    def __init__(self, secure: bool, host: str, port: int | None, named: str, target: str) -> None:
        self.secure = secure
        self._address = host, port or (443 if secure else 80)
        self._named = named
        self._target = target

    async def answer(self, most: int, tls: ssl.SSLContext | None) -> bytes:
        """Return what the host sends, of at most so many bytes. Raises RequestError, OSError or h11's errors."""
        reader, writer = await asyncio.open_connection(*self._address, ssl=tls)
        try:
            connection = h11.Connection(h11.CLIENT)
            headers = [
                (b"Host", self._named.encode("ascii" if self._named.isascii() else "idna")),
                (b"Accept", b"image/*"),
                (b"User-Agent", b"qkedit"),
                (b"Connection", b"close"),
            ]
            asked = connection.send(h11.Request(method=b"GET", target=self._target.encode(), headers=headers)) or b""
            writer.write(asked + (connection.send(h11.EndOfMessage()) or b""))
            content = bytearray()
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    connection.receive_data(await reader.read(_CHUNK))
                elif isinstance(event, h11.Response):
                    _check_status(event.status_code)
                elif isinstance(event, h11.Data):
                    content += event.data
                    if len(content) > most:
                        raise RequestError(
                            f"the images are larger than the {most} bytes that this server takes",
                            where=_WHERE,
                            remedy="give smaller ones",
                            status=413,
                        )
            return bytes(content)
        finally:
            writer.transport.abort()


def _check_status(status: int) -> None:
    # Redirects are not followed: they could lead anywhere, into the server's own network too.
    if status != 200:
        raise RequestError(
            f"its host answers with status {status}",
            where=_WHERE,
            remedy="give the address of the image itself, without redirects",
        )
