"""The decoders: pixels are the library's, and whatever one image does to its process touches nobody else."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import socket
import time
import zlib
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from PIL import Image

from hqtl_common.errors import ImageDecodeError, InputError, UnknownImageFormatError
from hqtl_common.preprocess import preprocess
from hqtl_common.specs import PreprocessSpec
from serving import decoder_process
from serving.decoder import DecoderPool
from serving.decoder_process import Job, check_and_preprocess
from serving.errors import NotReadyError, TooLargeError
from tests.hostile import endless

SPEC = PreprocessSpec(size=16)
JOB = Job(SPEC, max_bytes=100_000, max_pixels=10_000, timeout_s=60.0)


def encoded(kind: str = "PNG", size: tuple[int, int] = (20, 10), mode: str = "RGB", **options: object) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG file whose header claims a size."""
    data = bytearray(encoded())
    data[16:24] = width.to_bytes(4) + height.to_bytes(4)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


@pytest.fixture(scope="module")
def deaths() -> list[str]:
    return []


@pytest.fixture(scope="module")
def pool(deaths: list[str]) -> Iterator[DecoderPool]:
    pool = DecoderPool(JOB, 2, deaths.append)
    pool.wait_ready()
    yield pool
    pool.close()


def children(pool: DecoderPool) -> list[psutil.Process]:
    """Both; the place of one that has died is taken soon."""
    found: list[psutil.Process] = []
    while len(found) != 2:
        found = [child for child in psutil.Process(pool.process_id).children() if is_alive(child)]
    return found


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


MODES = {
    "PNG": ("RGB", "L", "RGBA", "P", "1", "I;16", "LA"),
    "JPEG": ("RGB", "L", "1", "CMYK"),
    "TIFF": ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "LA"),
    "BMP": ("RGB", "L", "RGBA", "P", "1"),
    "WEBP": ("RGB", "L", "RGBA", "P", "LA"),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_the_pixels_are_those_of_the_library(pool: DecoderPool, kind: str, mode: str) -> None:
    data = encoded(kind, mode=mode)
    try:
        expected = preprocess(data, SPEC)
    except InputError as error:
        with pytest.raises(type(error)):
            pool.submit(data).result(300)
    else:
        np.testing.assert_array_equal(pool.submit(data).result(300), expected)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_deflate"])
def test_compressed_tiffs_need_nothing_that_a_decoder_must_not_open(pool: DecoderPool, compression: str) -> None:
    data = encoded("TIFF", compression=compression)
    np.testing.assert_array_equal(pool.submit(data).result(300), preprocess(data, SPEC))


WRONG = [
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
]


@pytest.mark.parametrize(("data", "error", "message"), WRONG)
def test_what_cannot_be_used_is_rejected_with_its_reason(pool: DecoderPool, data: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        pool.submit(data).result(300)
    assert type(caught.value) is error


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on broken tags
@pytest.mark.parametrize("kind", decoder_process.FORMATS)
def test_damaged_bytes_are_judged_as_in_this_process(pool: DecoderPool, kind: str, deaths: list[str]) -> None:
    rng, whole, before = random.Random(kind), encoded(kind, (16, 16)), len(deaths)
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.choice([len(data), rng.randrange(len(data))]) :]
        here = there = None
        with contextlib.suppress(InputError):
            here = check_and_preprocess(bytes(data), SPEC, JOB.max_pixels)
        with contextlib.suppress(InputError):
            there = pool.submit(data).result(300)
        assert (here is None) == (there is None)
        assert here is None or np.array_equal(here, there)
    assert deaths[before:] == []


def test_whatever_a_decoder_raises_is_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise zlib.error("deep inside")

    monkeypatch.setattr(decoder_process, "preprocess", crash)
    with pytest.raises(ImageDecodeError, match=r"damaged: error: deep inside"):
        check_and_preprocess(encoded(), SPEC, 10_000)


def test_a_lack_of_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object) -> None:
        raise MemoryError

    data = encoded()
    monkeypatch.setattr(Image.Image, "convert", greedy)
    with pytest.raises(TooLargeError, match="more memory"):
        check_and_preprocess(data, SPEC, 10_000)


class TestDeath:
    @pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGBUS])
    def test_of_an_idle_child_is_not_noticed(self, pool: DecoderPool, number: int) -> None:
        old = children(pool)
        for child in old:
            child.send_signal(number)
        while any(map(is_alive, old)):
            time.sleep(0.01)
        assert all(future.result(300).shape == (3, 16, 16) for future in [pool.submit(encoded()) for _ in range(8)])
        assert not {child.pid for child in old} & {child.pid for child in children(pool)}

    def test_of_a_child_at_work_costs_one_image(self, deaths: list[str]) -> None:
        # it dies of the timer, as it would of an endless loop in C
        slow = Job(PreprocessSpec(size=8), 10_000_000, 25_000_000, timeout_s=2.0)
        pool = DecoderPool(slow, 1, deaths.append)
        pool.wait_ready()
        before = len(deaths)
        futures = [pool.submit(data) for data in (encoded(), endless(), encoded())]
        with pytest.raises(ImageDecodeError, match=r"could not be decoded: it took more than 2 s"):
            futures[1].result(300)
        assert [futures[k].result(300).shape for k in (0, 2)] == [(3, 8, 8)] * 2
        assert deaths[before:] == ["SIGALRM"]
        pool.close()

    def test_of_the_nursery_is_mended(self, pool: DecoderPool) -> None:
        old = pool.process_id
        family = [psutil.Process(old), *children(pool)]
        for process in family:
            process.kill()
        assert all(future.result(300).shape == (3, 16, 16) for future in [pool.submit(encoded()) for _ in range(8)])
        assert pool.process_id != old


class TestConfinement:
    """What a hijacked decoder could do; run by a stand-in for the decoder in a forked child."""

    @pytest.mark.parametrize(
        ("attempt", "expected"),
        [
            ("open('/etc/hostname')", "OSError: [Errno 24]"),
            ("socket.socket()", "OSError: [Errno 24]"),
            ("os.pipe()", "OSError: [Errno 24]"),
            ("bytearray(3 * 2**30)", "MemoryError"),
        ],
    )
    def test_it_opens_nothing_and_takes_no_more_memory_than_allowed(self, attempt: str, expected: str) -> None:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                decoder_process._confine(JOB)
                eval(attempt, {"os": os, "socket": socket})
            except BaseException as error:
                os.write(write, f"{type(error).__name__}: {error}".encode())
            os._exit(0)
        os.close(write)
        with open(read) as file:
            assert file.read().startswith(expected)
        os.waitpid(child, 0)

    def test_its_environment_holds_no_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QISKIT_IBM_TOKEN", "secret")
        pool = DecoderPool(JOB, 1)
        pool.wait_ready()
        environ = psutil.Process(pool.process_id).environ()
        pool.close()
        assert not {"QISKIT_IBM_TOKEN", "HOME"} & environ.keys()
        assert not any("secret" in value for value in environ.values())


def test_nothing_is_left_when_the_pool_closes() -> None:
    pool = DecoderPool(JOB, 2)
    pool.wait_ready()
    family = [psutil.Process(pool.process_id), *children(pool)]
    for process in family:
        process.send_signal(signal.SIGTERM)  # meant for the service; circus sends it to all
    assert pool.submit(encoded()).result(300).shape == (3, 16, 16)
    pool.close()
    assert psutil.wait_procs(family, timeout=120)[1] == []


def test_processes_that_do_not_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.decoder.sys.executable", "/bin/false")
    monkeypatch.setattr("serving.decoder._START_S", 5.0)
    pool = DecoderPool(JOB, 1)
    with pytest.raises(NotReadyError, match="do not start"):
        pool.wait_ready()
    pool.close()
