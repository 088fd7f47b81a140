"""Uploads → pixels: the content decides, every limit holds, and the culprit is named."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqtl_common.preprocess import preprocess
from hqtl_common.specs import PreprocessSpec
from serving.errors import BodyError, FieldError, RejectedImageError
from serving.forms import Part
from serving.intake import Intake, PredictRequest
from serving.settings import ServiceSettings

SPEC = PreprocessSpec(size=16)
SETTINGS = ServiceSettings(bundle=Path("b"), max_pixels=10_000, max_bytes=100_000, decoders=2)


def encoded(kind: str = "PNG", size: tuple[int, int] = (20, 10), seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
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
    taken, decode = 0, intake.pool._decode
    go = threading.Event()
    monkeypatch.setattr(intake.pool, "_decode", lambda data: go.wait() and decode(data))

    async def many() -> AsyncIterator[Part]:
        nonlocal taken
        for _ in range(30):
            taken += 1
            yield image(encoded())

    async def main() -> tuple[int, PredictRequest]:
        reading = asyncio.create_task(intake.read(many()))
        while taken < 5:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # time to take more
        held = taken
        go.set()
        return held, await reading

    held, request = asyncio.run(main())
    assert held == 2 * 2 + 1  # two for each process, and the one that waits
    assert len(request.pixels) == 30
