"""Target for addresses of images in requests: data URLs in many forms, and addresses that must not be fetched."""

from __future__ import annotations

import asyncio
import base64
from random import Random

from fuzzing.byte_strings import mutated_text
from fuzzing.judging import attempt
from fuzzing.picture_bytes import whole
from fuzzing.target import Finding, Outcome, Target
from qkedit.serving.limits import Limits
from qkedit.serving.requests.image_hosts import ImageHosts
from qkedit.serving.requests.image_policy import from_data_url, is_data_url

ADDRESSES = (
    "http://127.0.0.1:1/x.png",
    "http://[::1]/x",
    "file:///etc/hostname",
    "ftp://example.org/x",
    "http://user:word@host/",
    "https://",
    "http://host:99999/",
    "/etc/hostname",
    "javascript:1",
    "",
)


class DataUrls(Target):
    """Decodes data URLs; no host is allowed, so no other URL may be accepted."""

    name = "data-urls"
    subject = "`image_url`: data URLs of any case, charset, alphabet, padding; other addresses"
    seconds = 2.0

    def generate(self, random: Random) -> str:
        """Return a changed URL."""
        if random.random() < 0.2:
            return mutated_text(random.choice(ADDRESSES), random)
        data = base64.b64encode(whole(random)).decode()
        if random.random() < 0.3:
            data = data.translate(str.maketrans("+/", "-_"))
        if random.random() < 0.3:
            data = data.rstrip("=")
        if random.random() < 0.3:
            data = "\n".join(data[at : at + 76] for at in range(0, len(data), 76))
        head = random.choice(
            ("data:image/png;base64,", "DATA:image/png;BASE64,", "data:;base64,", "data:image/png,",
             "data:image/png;charset=utf-8;base64, ", "data:,", "data:image/png;base64;x,", "data:")
        )  # fmt: skip
        url = head + data
        return url if random.random() < 0.4 else mutated_text(url, random)

    def check(self, given: str) -> Outcome:
        """Decode the URL, or fetch it from the allowed hosts, of which there are none."""
        if is_data_url(given):
            return attempt(lambda: from_data_url(given))
        outcome = attempt(lambda: asyncio.run(ImageHosts(frozenset(), Limits()).files([given])))
        if outcome is Outcome.ACCEPTED:
            raise Finding("outside", "something was fetched")
        return outcome
