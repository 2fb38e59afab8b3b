"""Generate invalid requests: broken JSON, wrong types, broken images, wrong names."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from benchmarking.servers import question


def malformed(count: int, model: str, image: bytes, seed: int = 0) -> Iterator[bytes]:
    """Yield invalid bodies, each with a fault of its own.

    Args:
        count: the number of bodies.
        model: the valid name of the model.
        image: a valid PNG.
        seed: the seed of the choices.
    """
    draw = random.Random(seed)
    right = {"model": model, "messages": question("what", image), "max_tokens": 4}
    kinds: list[Callable[[], bytes]] = [
        lambda: draw.randbytes(draw.randrange(2000)),
        lambda: json.dumps(right).encode()[: -1 - draw.randrange(1000)],
        lambda: b"[" * draw.randrange(1, 200_000),
        lambda: json.dumps(draw.choice([None, 3, "text", [], [right]])).encode(),
        lambda: _changed(right, "model", draw.choice(["other", "../" + model, None, 3, {}])),
        lambda: _changed(right, draw.choice(["messages", "stop", "qkedit"]), draw.choice([3, {"a": {}}, [[]], [{}]])),
        lambda: _changed(right, "max_tokens", draw.choice([-1, 0, 1.5, "4", True, 10**30, [4]])),
        lambda: _changed(right, draw.choice(["temperature", "top_p"]), draw.choice([-1, 9, "1", [], 1e400])),
        lambda: _changed(right, draw.choice(["generation_config", "tools", "n", "x" * draw.randrange(1, 99)]), "{}"),
        lambda: _changed(right, "qkedit", {"plugins": [draw.choice(["", "none", "../scr", "scr,dscr"])]}),
        lambda: _changed(right, "messages", question("what", _broken(draw, image))),
        lambda: _changed(right, "messages", question("what", draw.randbytes(draw.randrange(5000)))),
        lambda: _changed(right, "messages", question("what", *[image] * 17)),
        # Longer than the context of any model.
        lambda: _changed(right, "messages", question("word " * draw.randrange(500_000, 1_000_000), image)),
        lambda: _changed(right, "messages", _with_url(draw)),
    ]
    for number in range(count):
        yield kinds[number % len(kinds)]()


def _changed(body: dict[str, Any], field: str, value: Any) -> bytes:
    return json.dumps({**body, field: value}).encode()


def _broken(draw: random.Random, image: bytes) -> bytes:
    """Return a PNG that ends early, with its header complete."""
    return image[: draw.randrange(40, len(image) * 3 // 4)]


def _with_url(draw: random.Random) -> list[dict[str, Any]]:
    address = draw.choice(
        ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/", "https://a.invalid/", "data:,", ""]
    )
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}]
