"""Fetch images from permitted hosts, with one deadline for all images of a request.

Fetching does not block a thread, so a host that is slow, or sends a byte now and then, delays only its own request.
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
    """The hosts from which images are fetched.

    Args:
        hosts: the hosts as `name` (ports 80 and 443) or `name:port`.
        limits: the limits in bytes and seconds for the images of one request; at most a quarter of the concurrent
            requests may be fetching.
    """

    def __init__(self, hosts: frozenset[str], limits: Limits) -> None:
        self._hosts = hosts
        self._limits = limits
        self._fetching = 0

    async def files(self, urls: Iterable[str]) -> dict[str, bytes]:
        """Return the files at the URLs; each is fetched once.

        Raises:
            RequestError: a URL is invalid or not permitted, or does not respond in time.
        """
        requests = {url: self._request(url) for url in dict.fromkeys(urls)}
        if not requests:
            return {}
        if self._fetching >= max(1, self._limits.waiting // 4):
            raise RequestError(
                f"{self._fetching} requests are waiting for their images' hosts, which is the limit of this server",
                where=_WHERE,
                remedy="try again later, or send the image itself as a data URL",
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
        raise RequestError(failure, where=_WHERE, remedy="check the URL")

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
        """Return the HTTP request for a URL. Raises RequestError if it is invalid or not permitted."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise RequestError("is not a URL", where=_WHERE, remedy="send a data URL") from None
        if parts.scheme not in ("http", "https"):
            raise RequestError("is neither a data URL nor an HTTP URL", where=_WHERE, remedy="send a data URL")
        asked = host if port is None else f"{host}:{port}"
        if asked not in self._hosts or parts.username is not None:
            raise RequestError(
                f"images are not fetched from {asked[:80]!r}" if self._hosts else "this server does not fetch images",
                where=_WHERE,
                remedy="send the image itself as a data URL",
            )
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        # The request uses the exact name that was checked, since other parsers may read a URL differently.
        return _Request(parts.scheme == "https", host, port, asked, f"{path}?{query}" if query else path)


class _Request:
    def __init__(self, secure: bool, host: str, port: int | None, named: str, target: str) -> None:
        self.secure = secure
        self._address = host, port or (443 if secure else 80)
        self._named = named
        self._target = target

    async def answer(self, most: int, tls: ssl.SSLContext | None) -> bytes:
        """Return the response of the host, limited in bytes. Raises RequestError, OSError or h11's errors."""
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
                            f"the images are larger than this server's limit of {most} bytes",
                            where=_WHERE,
                            remedy="send smaller ones",
                            status=413,
                        )
            return bytes(content)
        finally:
            writer.transport.abort()


def _check_status(status: int) -> None:
    # Redirects are not followed: they could point anywhere, including the server's own network.
    if status != 200:
        raise RequestError(
            f"its host responds with status {status}",
            where=_WHERE,
            remedy="give the URL of the image itself, without redirects",
        )
