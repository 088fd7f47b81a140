"""Uploads → pixels: the content decides, every limit holds, and the culprit is named."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqtl_common.errors import ImageDecodeError, UnknownImageFormatError
from hqtl_common.preprocess import preprocess
from hqtl_common.specs import PreprocessSpec
from hqtl_common.stages import available_cores
from serving import intake as intake_module
from serving.errors import BodyError, FieldError, RejectedImageError, TooLargeError
from serving.forms import Part
from serving.intake import Intake, PredictRequest, decode_image
from serving.settings import ServiceSettings

SPEC = PreprocessSpec(size=16)
SETTINGS = ServiceSettings(bundle=Path("b"), max_pixels=10_000, max_bytes=100_000)


def encoded(kind: str = "PNG", size: tuple[int, int] = (20, 10), seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG file whose header claims a size."""
    data = bytearray(encoded())
    data[16:24] = width.to_bytes(4) + height.to_bytes(4)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_the_pixels_are_those_of_the_library(kind: str) -> None:
    np.testing.assert_array_equal(decode_image(0, "x.txt", encoded(kind), SPEC, SETTINGS), preprocess(encoded(kind), SPEC))


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", ImageDecodeError, "is empty"),
        (b"hello", UnknownImageFormatError, "not a PNG, JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnknownImageFormatError, "not a PNG, JPEG"),
        (b"%PDF-1.7", UnknownImageFormatError, "not a PNG, JPEG"),
        (encoded("GIF"), UnknownImageFormatError, "not a PNG, JPEG"),
        (encoded("PPM"), UnknownImageFormatError, "not a PNG, JPEG"),
        (encoded("JPEG")[:400], ImageDecodeError, "damaged or cut off"),
        (encoded("PNG")[:200], ImageDecodeError, "damaged or cut off"),
        (encoded("BMP", (101, 100)), TooLargeError, "101 × 100 pixels; the limit of this service is 10,000"),
        (png_claiming(60_000, 60_000), TooLargeError, "too many pixels; the limit of this service is 10,000"),
        (png_claiming(10_000, 10_000), TooLargeError, "pixels; the limit of this service is 10,000"),
        (b"x" * 100_001, TooLargeError, "100,001 bytes; the limit of this service is 100,000"),
    ],
)
def test_what_cannot_be_used_is_rejected_with_its_reason(data: bytes, reason: type[Exception], message: str) -> None:
    with pytest.raises(RejectedImageError, match=message) as caught:
        decode_image(3, "wall.png", data, SPEC, SETTINGS)
    assert type(caught.value.reason) is reason
    assert (caught.value.index, caught.value.filename) == (3, "wall.png")
    assert str(caught.value).startswith("image 3 ('wall.png'): ")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on broken tags
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_damaged_bytes_give_pixels_or_a_rejection_and_nothing_else(kind: str) -> None:
    rng, whole = random.Random(kind), encoded(kind, (16, 16))
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.choice([len(data), rng.randrange(len(data))]) :]
        with contextlib.suppress(RejectedImageError):
            assert decode_image(0, "x", bytes(data), SPEC, SETTINGS).shape == (3, 16, 16)


def test_whatever_a_decoder_raises_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise zlib.error("deep inside")

    monkeypatch.setattr(intake_module, "preprocess", crash)
    with pytest.raises(RejectedImageError, match=r"damaged: error: deep inside"):
        decode_image(0, "x", encoded(), SPEC, SETTINGS)


@pytest.fixture
def intake() -> Iterator[Intake]:
    intake = Intake(SPEC, SETTINGS)
    yield intake
    intake.close()


async def arriving(*parts: Part | Exception) -> AsyncIterator[Part]:
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part
        await asyncio.sleep(0)


def image(data: bytes, filename: str = "a.png") -> Part:
    return Part("image", filename, bytearray(data))


def read(intake: Intake, *parts: Part | Exception) -> PredictRequest:
    return asyncio.run(intake.read(arriving(*parts)))


def test_order_and_names_are_kept(intake: Intake) -> None:
    images = [encoded(seed=seed) for seed in range(40)]
    parts = [image(data, f"{k % 3}.png") for k, data in enumerate(images)]
    request = read(intake, *parts[:20], Part("seed", None, bytearray(b"5")), *parts[20:])
    assert request.filenames == tuple(f"{k % 3}.png" for k in range(40))
    assert request.options.seed == 5
    assert request.pixels.dtype == np.float32
    np.testing.assert_array_equal(request.pixels, np.stack([preprocess(data, SPEC) for data in images]))


def test_the_first_bad_image_is_named(intake: Intake) -> None:
    parts = [image(encoded(), f"{k}.png") for k in range(30)]
    parts[7], parts[20] = image(b"text", "seven"), image(b"", "twenty")
    with pytest.raises(RejectedImageError, match=r"^image 7 \('seven'\): not a") as caught:
        read(intake, *parts)
    assert caught.value.index == 7


def test_no_image_is_an_error(intake: Intake) -> None:
    with pytest.raises(FieldError, match="'image': is missing"):
        read(intake, Part("seed", None, bytearray(b"5")))


def test_fields_are_checked_and_need_not_be_text(intake: Intake) -> None:
    with pytest.raises(FieldError, match="'seed': must be a whole number"):
        read(intake, image(encoded()), Part("seed", None, bytearray(b"\xff\xfe")))


def test_an_error_of_the_body_ends_the_reading(intake: Intake) -> None:
    with pytest.raises(BodyError, match="cut"):
        read(intake, image(encoded()), image(b"bad"), BodyError("cut"))
    assert read(intake, image(encoded())).pixels.shape == (1, 3, 16, 16)


def test_few_encoded_images_are_held_at_a_time(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, taken = threading.Event(), 0
    monkeypatch.setattr(intake_module, "preprocess", lambda *_: gate.wait(30) and np.zeros((3, 16, 16), np.float32))

    async def many() -> AsyncIterator[Part]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield image(encoded())

    async def main() -> int:
        reading = asyncio.create_task(intake.read(many()))
        await asyncio.sleep(0.3)
        held = taken
        gate.set()
        await reading
        return held

    assert asyncio.run(main()) == 2 * available_cores() + 1
