"""Malformed and hostile images from a seed: the same number gives the same bytes everywhere."""

from __future__ import annotations

import base64
import functools
import io
import pickle
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

__all__ = ["KINDS", "TRAPS", "endless", "hostile_images"]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
MODES = {"PNG": ("RGB", "L", "P", "RGBA", "I;16", "1"), "JPEG": ("RGB", "L", "CMYK"), "TIFF": ("RGB", "L", "I;16", "F", "RGBA", "CMYK")}
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@functools.cache
def whole(kind: str, mode: str, size: tuple[int, int] = (40, 30)) -> bytes:
    """A good image."""
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).convert(mode).save(buffer, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" and mode == "RGB" else {}))
    return buffer.getvalue()


def some(rng: random.Random) -> bytearray:
    kind = rng.choice(FORMATS)
    return bytearray(whole(kind, rng.choice(MODES.get(kind, ("RGB", "L") if kind == "BMP" else ("RGB", "RGBA")))))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def cut(rng: random.Random) -> bytes:
    data = some(rng)
    return bytes(data[: rng.randrange(len(data))])


def flip(rng: random.Random) -> bytes:
    data = some(rng)
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def header(rng: random.Random) -> bytes:
    """Numbers at the front replaced by extremes."""
    data = some(rng)
    at = rng.randrange(4, min(len(data) - 4, 200))
    data[at : at + 4] = rng.choice(EXTREMES).to_bytes(4, rng.choice(("little", "big")))  # type: ignore[arg-type]
    return bytes(data)


def splice(rng: random.Random) -> bytes:
    one, other = some(rng), some(rng)
    return bytes(one[: rng.randrange(len(one))] + other[rng.randrange(len(other)) :])


def magic(rng: random.Random) -> bytes:
    """The first bytes of a format, and noise."""
    start = rng.choice(
        (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0", b"MM\0*", b"II+\0", b"BM", b"RIFF\0\0\1\0WEBPVP8 ", b"RIFF\0\0\1\0WEBPVP8X")
    )
    return start + rng.randbytes(rng.randrange(2000))


def noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 3000))


@functools.cache
def much() -> bytes:
    return zlib.compress(bytes(20_000_000), 9)


def bomb(rng: random.Random) -> bytes:
    """Small files that claim, or unpack to, very much."""
    edge = rng.choice((5001, 20_000, 65_535, 2**31 - 1))
    zeros = much()
    return rng.choice(
        (
            png(edge, edge, chunk(b"IDAT", zeros)),
            png(8, 8, chunk(b"zTXt", b"k\0\0" + zeros), chunk(b"IDAT", zeros)),
            png(8, 8, chunk(b"iCCP", b"k\0\0" + zeros), chunk(b"IDAT", zlib.compress(bytes(200)))),
            png(100, 100, chunk(b"IDAT", zeros)),
            whole("BMP", "RGB")[:18] + struct.pack("<ii", edge, rng.choice((edge, -edge))) + whole("BMP", "RGB")[26:],
            whole("JPEG", "RGB").replace(b"\xff\xda", b"\xff\xfe\xff\xff" + bytes(100) + b"\xff\xda", 1),
        )
    )


def directory(rng: random.Random) -> bytes:
    """TIFF directories that point at themselves, far away, or have absurd counts."""
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, rng.choice((1, 5, 7, 8, 32773, 34712))), (262, 3, 1, 1)]
    tags += [
        (rng.choice((273, 279, 320, 330, 700, 34665, 33550)), rng.randint(0, 18), rng.choice(EXTREMES), rng.choice(EXTREMES))
        for _ in range(4)
    ]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, rng.choice((len(tags), 0xFFFF))) + body + struct.pack("<I", rng.choice((8, 0, 2**31)))


def stranger(rng: random.Random) -> bytes:
    """Other formats that Pillow knows and we must not open: some of them start programs or read other files."""
    gif = io.BytesIO()
    Image.new("L", (4, 4)).save(gif, "GIF")
    texts = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
        b"%PDF-1.7\n",
        b"P6 9 9 255\n",
        b"/* XPM */",
        b"%FITS",
    )
    return rng.choice(
        (*texts, gif.getvalue(), b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"8BPS\0\1", b"icns" + bytes(50), b"PK\3\4" + rng.randbytes(50))
    )


KINDS = (cut, flip, header, splice, magic, noise, bomb, directory, stranger)


@functools.cache
def endless() -> bytes:
    """A small JPEG whose last scan, which goes over 25 million pixels, comes 2,000 times: half a minute of work."""
    buffer = io.BytesIO()
    Image.new("L", (4990, 4990)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + 2000 * scan + data[-2:]


class _Opened:
    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("/tmp/hqtl-was-unpickled", "w"))


# Bytes that would do something if anybody fetched, opened, ran or unpickled them.
TRAPS: tuple[bytes, ...] = (
    b"http://127.0.0.1:9/a.png",
    b"https://169.254.169.254/latest/meta-data/",
    b"file:///etc/passwd",
    b"ftp://127.0.0.1/x",
    b"/etc/passwd",
    b"../../../../etc/passwd",
    b"data:image/png;base64," + base64.b64encode(whole("PNG", "L")),
    b'{"image": "http://127.0.0.1:9/a.png"}',
    b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1:9/a.png'/></svg>",
    b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>",
    pickle.dumps(_Opened()),
    pickle.dumps(_Opened(), protocol=0),
    b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128, b" ") + pickle.dumps([_Opened()]),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch /tmp/hqtl-was-unpickled) (r) file\n",
    b"#!/bin/sh\ntouch /tmp/hqtl-was-unpickled\n",
    b"$(touch /tmp/hqtl-was-unpickled)`id`;id|id",
)


def hostile_images(count: int, seed: int = 0) -> Iterator[bytes]:
    """``count`` images, all kinds in turn."""
    rng = random.Random(seed)
    for number in range(count):
        yield KINDS[number % len(KINDS)](rng)
