"""Target for image files of `generate`, `eval` and requests."""

from __future__ import annotations

from random import Random

from fuzzing.judging import attempt
from fuzzing.picture_bytes import picture
from fuzzing.sandbox import Sandbox
from fuzzing.target import Finding, Outcome, Target
from qkedit.evaluation.runs.endpoint import data_url
from qkedit.images import read_image
from qkedit.serving.limits import Limits
from qkedit.serving.requests.image_policy import ImagePolicy


class Images(Target):
    """Reads image bytes; every accepted image must be an RGB picture within the limits."""

    name = "images"
    subject = "bytes of PNG, JPEG, GIF, WebP, TIFF and BMP: all modes, broken ones, extreme sizes"
    seconds = 10.0

    def prepare(self) -> None:
        """Set limits."""
        self._policy = ImagePolicy(Limits(pixels=4_000_000))

    def generate(self, random: Random) -> bytes:
        """Return a valid or broken picture."""
        return picture(random)

    def check(self, given: bytes) -> Outcome:
        """Read the bytes as the server, the command line and the client of an endpoint do."""
        file = Sandbox(self.work / "case").directory / "picture.png"
        file.write_bytes(given)
        images = []
        outcome = attempt(lambda: images.extend(self._policy.decoded([given])))
        attempt(lambda: images.append(read_image(file)))
        attempt(lambda: data_url(file))
        if any(image.mode != "RGB" for image in images):
            raise Finding("oracle", f"a picture in the mode {images[0].mode}")
        return outcome
