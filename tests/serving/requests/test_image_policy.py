"""Test which images are accepted: inside requests, and from allowed hosts."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
from PIL import Image

from qkedit.serving.limits import Limits
from qkedit.serving.requests.image_hosts import ImageHosts
from qkedit.serving.requests.image_policy import ImagePolicy, from_data_url
from qkedit.serving.requests.request_errors import RequestError
from tests.serving.served_models import picture

POLICY = ImagePolicy(Limits(body=100_000, pixels=10_000, seconds=1))


def file(image: Image.Image, kind: str = "png", **settings: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **settings)  # type: ignore[arg-type]
    return content.getvalue()


def fetched(url: str, *hosts: str, limits: Limits = POLICY.limits) -> bytes:
    return asyncio.run(ImageHosts(frozenset(hosts), limits).files([url]))[url]


def refused(url: str, words: str, *hosts: str) -> None:
    with pytest.raises(RequestError, match=words):
        fetched(url, *hosts)


@pytest.mark.parametrize("kind", ["png", "bmp", "gif", "jpeg", "webp"])
def test_an_image_in_the_request_is_decoded(kind: str) -> None:
    content = file(picture(1), kind)
    for head in ("data:image/png;base64", f"DATA:Image/{kind};name=x.y;base64"):
        assert from_data_url(f"{head},{base64.b64encode(content).decode()}") == content
    (decoded,) = POLICY.decoded([content])
    assert decoded.mode == "RGB"
    assert decoded.tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()


URL_SAFE = str.maketrans("+/", "-_")


@pytest.mark.parametrize(
    ("head", "written"),
    [
        ("data:image/png;base64,", lambda text: text),
        ("DATA:IMAGE/PNG;BASE64,", lambda text: text),
        ("data:image/png;charset=utf-8;base64,", lambda text: text),
        ("data:image/png;base64;charset=utf-8,", lambda text: text),
        ("data:image/svg+xml ; base64 ,", lambda text: text),
        (" data:image/jpg;base64, ", lambda text: f" {text}\n"),
        ("data:image/png;base64,", lambda text: "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76))),
        ("data:image/png;base64,", lambda text: text.translate(URL_SAFE)),
        ("data:image/png;base64,", lambda text: text.translate(URL_SAFE).rstrip("=")),
        ("data:image/png;base64,", lambda text: text.rstrip("=")),
        ("data:image/png;base64,", lambda text: quote(text, safe="")),
    ],
)
def test_data_urls_of_every_form_are_decoded(head: str, written: Callable[[str], str]) -> None:
    for content in (bytes(range(256)) * 2, b"\xfb\xef\xff", b"a", b"ab", b"abc"):
        assert from_data_url(head + written(base64.b64encode(content).decode())) == content


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "neither a data URL nor an HTTP URL"),
        ("/etc/passwd", "neither a data URL nor an HTTP URL"),
        ("file:///etc/passwd", "neither a data URL nor an HTTP URL"),
        ("iVBORw0KGgo=", "neither a data URL nor an HTTP URL"),
        ("ftp://127.0.0.1/a.png", "neither a data URL nor an HTTP URL"),
        ("http://[", "is not a URL"),
        ("http://a:99999999/", "is not a URL"),
        ("http://169.254.169.254/latest/meta-data", "this server does not fetch images"),
    ],
)
def test_urls_of_other_hosts_and_schemes_are_refused(url: str, words: str) -> None:
    refused(url, words)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:text/plain;base64,AAAA", "not a base64 image"),
        ("data:image/png,AAAA", "not a base64 image"),
        ("data:image/png;base64", "not a base64 image"),
        ("data:image/png;base64,A", "not valid base64"),
        ("data:image/png;base64,AA=A", "not valid base64"),
        ("data:image/png;base64,\ud800", "not valid base64"),
        ("data:image/png;base64,ÄÄÄÄ", "not valid base64"),
    ],
)
def test_invalid_data_urls_are_refused(url: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        from_data_url(url)


def test_pixels_of_all_images_are_counted_before_decoding() -> None:
    assert len(POLICY.decoded([file(picture(1, 100, 50)), file(picture(1, 50, 100))])) == 2
    with pytest.raises(RequestError, match=r"image 3: .* limit of 10000 pixels") as caught:
        POLICY.decoded([file(picture(1, 100, 50)), file(picture(1, 50, 90)), file(picture(1, 24, 21))])
    assert caught.value.status == 413


def bomb(side: int) -> bytes:
    """Return a PNG of side × side black pixels with maximum compression."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 + side // 8)) for _ in range(side)) + rows.flush()
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


# Pillow itself refuses to open the larger one.
@pytest.mark.parametrize("side", [104, 14_000])
def test_decompression_bombs_are_refused(side: int) -> None:
    content = bomb(side)
    assert len(content) < side * side / 1000 + 200
    with pytest.raises(RequestError, match="pixels"):
        POLICY.decoded([content])
    if side == 104:
        assert ImagePolicy().decoded([content])[0].size == (side, side)


def test_extreme_aspect_ratios_are_refused() -> None:
    with pytest.raises(RequestError, match="image 2: has 40000 × 1 pixels") as caught:
        ImagePolicy().decoded([file(picture(1)), file(Image.new("1", (40_000, 1)))])
    assert caught.value.status == 400


def test_formats_outside_those_of_browsers_are_refused() -> None:
    for kind in ("tiff", "ppm", "ico", "eps"):
        with pytest.raises(RequestError, match="image 1: is not an image"):
            POLICY.decoded([file(picture(1), kind)])


class Host(BaseHTTPRequestHandler):
    """A host with a valid image and several invalid ones."""

    def do_GET(self) -> None:
        kind = self.path.partition("?")[0]
        if kind == "/moved":
            self.send_response(302)
            self.send_header("Location", "/image")
            self.end_headers()
            return
        self.send_response(404 if kind == "/missing" else 200)
        self.end_headers()
        if kind == "/slow":
            for _ in range(30):
                self.wfile.write(b"a")
                time.sleep(0.1)
        content = {"/large": bytes(200_000)}.get(kind, file(picture(2)) + self.path.encode())
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_images_from_an_allowed_host_are_fetched(host: str) -> None:
    for path in ("/image", "/image?a=b%20c&d=/e", "/a%2Fb"):
        assert fetched(f"http://{host}{path}", host) == file(picture(2)) + path.encode()
    assert fetched(f"HTTP://{host}/ü?ö", host) == file(picture(2)) + b"/%C3%BC?%C3%B6"
    for path, words in {
        "/moved": "status 302; give the URL of the image itself",
        "/missing": "status 404",
        "/large": "limit of 100000 bytes",
        "/slow": "did not arrive within 1 seconds",
    }.items():
        refused(f"http://{host}{path}", words, host)


class Trickling(asyncio.Protocol):
    """A server that sends a byte of a header every few milliseconds, endlessly."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"H")  # type: ignore[attr-defined]
            asyncio.get_running_loop().call_later(0.01, self._send)


def test_a_slow_host_delays_only_its_own_requests() -> None:
    """All images of a request share one deadline, and few requests wait at a time."""

    async def case() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Trickling, "127.0.0.1", 0)
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        hosts = ImageHosts(frozenset({host}), Limits(seconds=0.2, waiting=8))
        slow = [asyncio.create_task(hosts.files([f"http://{host}/{number}", f"http://{host}/b"])) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="2 requests are waiting for their images' hosts") as caught:
            await hosts.files([f"http://{host}/c"])
        assert caught.value.status == 503
        assert await hosts.files([]) == {}
        for task in slow:
            with pytest.raises(RequestError, match=r"did not arrive within 0\.2 seconds"):
                await task
        server.close()

    asyncio.run(asyncio.wait_for(case(), 20))


def test_images_of_one_request_share_the_limit_of_a_body(host: str) -> None:
    size = len(file(picture(2))) + len("/image?1")
    urls = [f"http://{host}/image?{number}" for number in (1, 2, 1)]
    for body, taken in ((2 * size, True), (2 * size - 1, False)):
        hosts = ImageHosts(frozenset({host}), Limits(body=body))
        if taken:
            assert set(asyncio.run(hosts.files(urls))) == set(urls)
            continue
        with pytest.raises(RequestError, match=f"limit of {size - 1} bytes") as caught:
            asyncio.run(hosts.files(urls))
        assert caught.value.status == 413


def test_hosts_must_match_exactly(host: str) -> None:
    port = host.partition(":")[2]
    allowed = (host, "images.invalid")
    for url in (
        f"http://localhost:{port}/image",
        f"http://user@{host}/image",
        f"http://images.invalid@{host}/image",
        f"http://{host}@localhost/image",
        f"http://images.invalid:{port}/image",
        f"http://{host}.localhost/image",
        f"http://localhost\\@{host}/image",
        "http://images.invalid./image",
        "http:///image",
    ):
        refused(url, "images are not fetched from|is not a URL", *allowed)
    refused("https://images.invalid/image", "cannot be fetched", *allowed)  # allowed but unreachable
    refused(f"https://{host}/image", "cannot be fetched", *allowed)  # without TLS
