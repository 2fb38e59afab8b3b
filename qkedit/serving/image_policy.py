"""Which images a request may bring, and getting them: from the request itself, or from hosts that are allowed.

Images are decoded here and nowhere else, so that no address reaches code that would open files or follow redirects.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from qkedit.errors import UsageError
from qkedit.images import TooManyPixels, decode_image
from qkedit.serving.limits import Limits
from qkedit.serving.request_errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

# The other alphabet of base64, with which data stands in addresses.
_URL_SAFE = str.maketrans("-_", "+/")
_CHUNK = 1 << 16


@dataclass(frozen=True)
class ImagePolicy:
    """Which images are taken.

    Attributes:
        limits: how large they may be.
        hosts: from where images are fetched, as `name` (ports 80 and 443) or `name:port`; by default from nowhere.
    """

    limits: Limits = field(default_factory=Limits)
    hosts: frozenset[str] = frozenset()

    def encoded(self, url: str) -> bytes:
        """Return the bytes of the image file that an address holds or stands for. May wait for the network.

        Raises:
            RequestError: the address is wrong or not allowed, or nothing comes from it.
        """
        url = url.strip()
        if url[:5].lower() == "data:":
            return _from_data_url(url)
        return self._fetched(url)

    def decoded(self, files: Sequence[bytes]) -> list[Image]:
        """Return the images in RGB and upright. Raises RequestError for what is none, or too many pixels."""
        images: list[Image] = []
        left = self.limits.pixels
        for number, file in enumerate(files, start=1):
            where = f"image {number}"
            try:
                images.append(decode_image(file, where, left))
            except TooManyPixels as error:
                raise RequestError(
                    f"with it the request has more than the {self.limits.pixels} pixels that this server takes",
                    where=where,
                    remedy="send smaller images",
                    status=413,
                ) from error
            except UsageError as error:
                raise RequestError(error.what, where=where, remedy=error.remedy) from error
            left -= images[-1].width * images[-1].height
        return images

    def _fetched(self, url: str) -> bytes:
        connection, path = self._connection(url)
        deadline = time.monotonic() + self.limits.seconds
        try:
            connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "qkedit"})
            # Redirects are not followed: they could lead anywhere, into the server's own network too.
            with connection.getresponse() as response:
                if response.status != 200:
                    raise RequestError(
                        f"its host answers with status {response.status}",
                        where="image_url",
                        remedy="give the address of the image itself, without redirects",
                    )
                return self._read(response, deadline)
        except (OSError, HTTPException, ValueError) as error:
            raise RequestError("the image cannot be fetched", where="image_url", remedy="check the address") from error
        finally:
            connection.close()

    def _connection(self, url: str) -> tuple[HTTPConnection, str]:
        """Return a connection to the host of an address, not opened yet, and what to ask it for."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise RequestError("is no address", where="image_url", remedy="send a data URL") from error
        if parts.scheme not in ("http", "https"):
            raise RequestError("is neither a data URL nor an address", where="image_url", remedy="send a data URL")
        asked = host if port is None else f"{host}:{port}"
        if asked not in self.hosts or parts.username is not None:
            raise RequestError(
                f"images are not fetched from {asked!r}" if self.hosts else "this server fetches no images",
                where="image_url",
                remedy="send the image itself as a data URL",
            )
        # Asked of the very name that was looked up, whatever else a reader of addresses might see in them.
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        return kind(host, port, timeout=self.limits.seconds), f"{path}?{query}" if query else path

    def _read(self, response: HTTPResponse, deadline: float) -> bytes:
        content = bytearray()
        while chunk := response.read1(_CHUNK):
            content += chunk
            if len(content) > self.limits.body:
                raise RequestError(
                    f"the image is larger than the {self.limits.body} bytes that this server takes",
                    where="image_url",
                    remedy="give a smaller one",
                    status=413,
                )
            if time.monotonic() > deadline:
                raise TimeoutError
        return bytes(content)


def _from_data_url(url: str) -> bytes:
    """Return what a data URL holds, in any of the forms that clients write.

    The kind and its parameters in any case; base64 in either alphabet, with or without padding, broken into lines,
    with its signs percent-encoded.
    """
    head, comma, content = url.partition(",")
    kind, *parameters = (part.strip() for part in head[5:].lower().split(";"))
    if not comma or not kind.startswith("image/") or "base64" not in parameters:
        raise RequestError(
            "is no image in base64", where="image_url", remedy="write data:image/png;base64, and the file's bytes"
        )
    signs = "".join(unquote(content).split()).rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(signs + "=" * (-len(signs) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("is no valid base64", where="image_url", remedy="encode the file again") from error
