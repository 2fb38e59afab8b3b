"""Which images a request may bring, and getting them: from the request itself, or from hosts that are allowed.

Images are decoded here and nowhere else, so that no address reaches code that would open files or follow redirects.
"""

from __future__ import annotations

import base64
import binascii
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from qkedit.serving.limits import Limits
from qkedit.serving.request_errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats that browsers show. Pillow knows many more, some of which start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
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
        if url[:5].lower() == "data:":
            return _from_data_url(url)
        return self._fetched(url)

    def decoded(self, files: Sequence[bytes]) -> list[Image]:
        """Return the images in RGB and upright. Raises RequestError for what is none, or too many pixels."""
        from PIL import Image, ImageOps, UnidentifiedImageError

        images: list[Image.Image] = []
        left = self.limits.pixels
        for number, file in enumerate(files, start=1):
            where = f"image {number}"
            try:
                with Image.open(io.BytesIO(file), formats=FORMATS) as image:
                    # Known from the header: nothing is decoded that would not fit.
                    left -= image.width * image.height
                    if left < 0:
                        raise self._too_many_pixels(where)
                    images.append(ImageOps.exif_transpose(image).convert("RGB"))
            except RequestError:
                raise
            except Image.DecompressionBombError as error:
                raise self._too_many_pixels(where) from error
            except UnidentifiedImageError as error:
                raise RequestError(
                    "is no image of a format that this server reads", where=where, remedy="send PNG, JPEG or WebP"
                ) from error
            # Pillow's decoders fail in many ways on bytes that somebody has made up, and each of them means the same.
            except Exception as error:
                raise RequestError("the image is broken", where=where, remedy="check the file") from error
        return images

    def _too_many_pixels(self, where: str) -> RequestError:
        return RequestError(
            f"with it the request has more than the {self.limits.pixels} pixels that this server takes",
            where=where,
            remedy="send smaller images",
            status=413,
        )

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
    head, comma, content = url.partition(",")
    kind, *rest = head[5:].lower().split(";")
    if not comma or not kind.startswith("image/") or not rest or rest[-1] != "base64":
        raise RequestError(
            "is no image in base64", where="image_url", remedy="write data:image/png;base64, and the file's bytes"
        )
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("is no valid base64", where="image_url", remedy="encode the file again") from error
