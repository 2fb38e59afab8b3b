"""The images that a request may have, and their decoding.

Images are decoded only here, so that no URL reaches code that would open files or follow redirects.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from qkedit.errors import UsageError
from qkedit.images import TooManyPixels, decode_image
from qkedit.serving.limits import Limits
from qkedit.serving.requests.request_errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

# The URL-safe alphabet of base64.
_URL_SAFE = str.maketrans("-_", "+/")


@dataclass(frozen=True)
class ImagePolicy:
    """The images that are accepted.

    Attributes:
        limits: the limits of their size.
        hosts: the hosts to fetch images from, as `name` (ports 80 and 443) or `name:port`; by default none.
    """

    limits: Limits = field(default_factory=Limits)
    hosts: frozenset[str] = frozenset()

    def decoded(self, files: Sequence[bytes]) -> list[Image]:
        """Return the images in RGB and upright. Raises RequestError for invalid images or too many pixels."""
        images: list[Image] = []
        left = self.limits.pixels
        for number, file in enumerate(files, start=1):
            where = f"image {number}"
            try:
                images.append(decode_image(file, where, left))
            except TooManyPixels as error:
                raise RequestError(
                    f"with it the request exceeds this server's limit of {self.limits.pixels} pixels",
                    where=where,
                    remedy="send smaller images",
                    status=413,
                ) from error
            except UsageError as error:
                raise RequestError(error.what, where=where, remedy=error.remedy) from error
            left -= images[-1].width * images[-1].height
        return images


def is_data_url(url: str) -> bool:
    """Return whether a URL contains its content."""
    return url.lstrip()[:5].lower() == "data:"


def from_data_url(url: str) -> bytes:
    """Return the content of a data URL in any of the forms that clients use.

    The media type and its parameters may be in any case; base64 may use either alphabet, have padding or not, have
    line breaks, and have percent-encoded characters.

    Raises:
        RequestError: the URL does not contain an image in base64.
    """
    head, comma, content = url.strip().partition(",")
    kind, *parameters = (part.strip() for part in head[5:].lower().split(";"))
    if not comma or not kind.startswith("image/") or "base64" not in parameters:
        raise RequestError(
            "is not a base64 image", where="image_url", remedy="write data:image/png;base64, and the file's bytes"
        )
    signs = "".join(unquote(content).split()).rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(signs + "=" * (-len(signs) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("is not valid base64", where="image_url", remedy="encode the file again") from error
