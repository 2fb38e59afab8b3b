"""Mutate bytes and texts as transfers, editors and attackers do."""

from __future__ import annotations

from random import Random

from fuzzing.strange import strange_text

_TOKENS = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b",",
    b":",
    b"-",
    b"9" * 40,
)


def mutated(content: bytes, random: Random) -> bytes:
    """Return the content with one to four changes."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        _change(data, random)
    return bytes(data)


def _change(data: bytearray, random: Random) -> None:
    kind = random.randrange(9)
    at = random.randrange(len(data) + 1)
    length = min(random.choice((1, 1, 2, 4, 8, 64, 1000)), len(data) - at)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << random.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at : at + length]
    elif kind == 3:
        data[at:at] = random.randbytes(random.choice((1, 2, 8, 100)))
    elif kind == 4:
        data[at:at] = data[at : at + length] * random.choice((1, 2, 50))
    elif kind == 5:
        data[at : at + length] = random.randbytes(length)
    elif kind == 6:
        data[at:at] = random.choice(_TOKENS)
    elif kind == 7:
        data[at : at + length] = random.choice((b"\0", b"\xff", b" ")) * length
    else:
        other = random.randrange(len(data) + 1)
        data[at:at] = data[other : other + random.choice((4, 40, 400))]


def mutated_text(text: str, random: Random) -> str:
    """Return the text with one to three changes; it may hold characters that cannot be encoded."""
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(text) + 1)
        kind = random.randrange(5)
        if kind == 0:
            text = text[:at] + strange_text(random) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + random.choice((1, 2, 5)) :]
        elif kind == 2:
            text = text[:at] + chr(random.choice((0, 9, 27, 44, 45, 46, 48, 58, 61, 0xB2, 0x661, 0x2028))) + text[at:]
        elif kind == 3:
            text = text[:at] + str(random.choice((0, 1, 9, 10**18, 10**20, "9" * 5000))) + text[at:]
        else:
            text = text[:at] + text[: random.randrange(len(text) + 1)]
    return text
