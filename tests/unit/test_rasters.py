"""Large images by windows: the same numbers as the preprocessing gives, in constant memory."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hqtl_common.errors import ImageDecodeError, InputError, ShapeError, UnknownImageFormatError
from hqtl_common.preprocess import open_image
from hqtl_common.rasters import open_raster

HEIGHT, WIDTH = 50, 70
RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
COLOUR8 = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint8)
RANGE = [(340, "f", 1, -2.0, True), (341, "f", 1, 3.0, True)]  # SMinSampleValue, SMaxSampleValue

TIFFS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "grey": (GREY8, {}),
    "grey-strips": (GREY8, {"rowsperstrip": 7, "compression": "zlib"}),
    "grey-big-endian": (GREY16, {"byteorder": ">"}),
    "grey-bigtiff": (GREY8, {"bigtiff": True, "tile": (16, 32)}),
    "grey-white-is-zero": (GREY8, {"photometric": "miniswhite", "rowsperstrip": 7}),
    "grey16-tiles": (GREY16, {"tile": (16, 32)}),
    "grey16-lzw-predictor": (GREY16, {"tile": (16, 16), "compression": "lzw", "predictor": 2}),
    "grey16-white-is-zero": (GREY16, {"photometric": "miniswhite", "compression": "zlib", "rowsperstrip": 9}),
    "grey16-of-12-bits": (GREY16 >> 4, {"extratags": [(281, "H", 1, 4095, True)]}),
    "grey16-with-own-extremes": (GREY16 >> 2, {"extratags": [(281, "H", 1, 12345, True)]}),
    "int16-declared": (GREY16.astype(np.int16), {"extratags": RANGE}),
    "uint32-declared": (GREY16.astype(np.uint32) << 10, {"extratags": [(341, "I", 1, 1 << 26, True)]}),
    "float32-declared": (RNG.normal(size=(HEIGHT, WIDTH)).astype(np.float32), {"extratags": RANGE}),
    "float32-compressed": (
        RNG.normal(size=(HEIGHT, WIDTH)).astype(np.float32),
        {"extratags": RANGE, "compression": "zlib", "predictor": 3},
    ),
    "bilevel": (GREY8 > 128, {}),
    "rgb": (COLOUR8, {"photometric": "rgb"}),
    "rgb-tiles-zstd": (COLOUR8, {"photometric": "rgb", "tile": (32, 16), "compression": "zstd"}),
    "rgb-planar": (np.moveaxis(COLOUR8, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
    "rgb-planar-tiles": (
        np.moveaxis(COLOUR8, 2, 0),
        {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16), "compression": "zlib"},
    ),
    "rgb16": (COLOUR8.astype(np.uint16) * 257, {"photometric": "rgb"}),
    "rgba": (RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8), {"photometric": "rgb", "extrasamples": ("unassalpha",)}),
    "rgb-and-a-band": (RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8), {"photometric": "rgb", "extrasamples": (0,)}),
    "rgba-premultiplied": (
        np.dstack([COLOUR8 // 4, np.full((HEIGHT, WIDTH), 200, np.uint8)]),
        {"photometric": "rgb", "extrasamples": ("assocalpha",)},
    ),
    "palette": (GREY8, {"photometric": "palette", "colormap": RNG.integers(0, 65536, (3, 256), dtype=np.uint16)}),
    "cmyk": (RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8), {"photometric": "separated"}),
}
ALPHA = np.dstack([COLOUR8, GREY8])
OTHERS: dict[str, Callable[[], bytes]] = {
    "png": lambda: saved(Image.fromarray(GREY8), "PNG"),
    "png16": lambda: saved(Image.fromarray(GREY16), "PNG"),
    "png-bilevel": lambda: saved(Image.fromarray(GREY8 > 100), "PNG"),
    "png-alpha": lambda: saved(Image.fromarray(ALPHA, "RGBA"), "PNG"),
    "png-transparent-colour": lambda: saved(Image.fromarray(GREY8), "PNG", transparency=GREY8[0, 0].item()),
    "png-palette": lambda: saved(Image.fromarray(COLOUR8).quantize(30), "PNG"),
    "jpeg": lambda: saved(Image.fromarray(COLOUR8), "JPEG"),
    "jpeg-grey": lambda: saved(Image.fromarray(SMOOTH), "JPEG"),
    "jpeg-cmyk": lambda: saved(Image.fromarray(COLOUR8).convert("CMYK"), "JPEG"),
    "bmp": lambda: saved(Image.fromarray(COLOUR8), "BMP"),
    "webp": lambda: saved(Image.fromarray(ALPHA, "RGBA"), "WEBP", lossless=True),
    "tiff-jpeg": lambda: saved(Image.fromarray(SMOOTH), "TIFF", compression="jpeg"),
    "tiff-fax": lambda: saved(Image.fromarray(GREY8 > 128), "TIFF", compression="group4"),
    "tiff-4-bits": lambda: four_bits(),
}


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def four_bits() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, GREY8 >> 4, bitspersample=4, rowsperstrip=HEIGHT)
    return buffer.getvalue()


def tiff_file(folder: Path, name: str) -> Path:
    data, options = TIFFS[name]
    path = folder / f"{name}.tif"
    tifffile.imwrite(path, data, metadata=None, **options)
    return path


def as_window(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def as_preprocessed(window: np.ndarray) -> np.ndarray:
    """Grey bytes as the three channels that the preprocessing makes of them."""
    return np.repeat(window[:, :, None], 3, axis=2) if window.ndim == 2 and window.dtype == np.uint8 else window


def tiled(raster: Any, width: int, height: int) -> np.ndarray:
    rows = [
        np.concatenate(
            [raster.read(x, y, min(width, raster.width - x), min(height, raster.height - y)) for x in range(0, raster.width, width)], 1
        )
        for y in range(0, raster.height, height)
    ]
    return np.concatenate(rows)


class TestValues:
    @pytest.mark.parametrize("name", TIFFS)
    def test_a_tiff_gives_the_values_of_the_preprocessing(self, tmp_path: Path, name: str) -> None:
        path = tiff_file(tmp_path, name)
        with open_raster(path) as raster:
            assert (raster.width, raster.height, raster.num_pages) == (WIDTH, HEIGHT, 1)
            windows = tiled(raster, 23, 19)
            assert raster.is_deep == (windows.dtype == np.float32)
            assert raster.bands == (3 if windows.ndim == 3 else 1)
        assert np.array_equal(as_preprocessed(windows), as_window(open_image(path.read_bytes())))

    @pytest.mark.parametrize("name", OTHERS)
    def test_other_files_give_the_values_of_the_preprocessing(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "image"
        path.write_bytes(OTHERS[name]())
        with open_raster(path) as raster:
            windows = tiled(raster, 33, 50)
        assert np.array_equal(as_preprocessed(windows), as_window(open_image(path.read_bytes())))

    @pytest.mark.parametrize("name", ["grey16-lzw-predictor", "rgb-planar-tiles", "grey-strips"])
    def test_without_the_decoders_pillow_gives_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        path = tiff_file(tmp_path, name)
        with open_raster(path) as raster:
            expected = raster.read(0, 0, WIDTH, HEIGHT)
        monkeypatch.setattr("hqtl_common.tiff_windows.find_spec", lambda name: None)
        monkeypatch.setattr("hqtl_common.tiff_windows._PLAIN_COMPRESSIONS", (1,))
        with open_raster(path) as raster:
            assert np.array_equal(tiled(raster, 30, 30), expected)

    def test_one_strip_of_undeclared_height_is_the_whole_image(self, tmp_path: Path) -> None:
        path = tiff_file(tmp_path, "grey-strips")
        tifffile.imwrite(path, GREY8, rowsperstrip=HEIGHT, compression="zlib", metadata=None)
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags["RowsPerStrip"].overwrite(0xFFFF)  # type: ignore[union-attr]
        with open_raster(path) as raster:
            assert np.array_equal(tiled(raster, 30, 30), GREY8)

    @pytest.mark.parametrize("values", [np.float16, np.float64])
    def test_floats_that_pillow_does_not_know_are_scaled_too(self, tmp_path: Path, values: type) -> None:
        data = RNG.uniform(-2, 3, (HEIGHT, WIDTH)).astype(values)
        tifffile.imwrite(tmp_path / "a.tif", data, extratags=RANGE, metadata=None)
        with open_raster(tmp_path / "a.tif") as raster:
            assert raster.read(0, 0, WIDTH, HEIGHT) == pytest.approx((data.astype(float) + 2) / 5, abs=1e-6)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
    def test_orientation_is_applied_to_every_window(self, tmp_path: Path, kind: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / "turned"
        path.write_bytes(saved(Image.fromarray(COLOUR8), kind, exif=exif))
        whole = as_window(open_image(path.read_bytes()))
        with open_raster(path) as raster:
            assert (raster.height, raster.width) == whole.shape[:2]
            assert np.array_equal(tiled(raster, 17, 31), whole)

    @given(st.data(), st.sampled_from(["grey16-lzw-predictor", "rgb-planar-tiles", "grey-strips", "rgb"]))
    def test_any_window_is_a_part_of_the_whole(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str) -> None:
        path = tiff_file(tmp_path_factory.mktemp("windows"), name)
        x, y = data.draw(st.integers(0, WIDTH - 1)), data.draw(st.integers(0, HEIGHT - 1))
        width, height = data.draw(st.integers(1, WIDTH - x)), data.draw(st.integers(1, HEIGHT - y))
        with open_raster(path) as raster:
            whole = raster.read(0, 0, WIDTH, HEIGHT)
            assert np.array_equal(raster.read(x, y, width, height), whole[y : y + height, x : x + width])


class TestPages:
    def test_a_stack_is_read_slice_by_slice(self, tmp_path: Path) -> None:
        stack = RNG.integers(0, 65536, (5, HEIGHT, WIDTH), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack", compression="zlib")
        with open_raster(tmp_path / "stack.tif") as raster:
            assert raster.num_pages == 5
            for page in (4, 0, 2):
                assert np.array_equal(raster.read(3, 4, 20, 10, page), stack[page, 4:14, 3:23] / np.float32(65535))

    def test_overviews_and_masks_are_no_pages(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(GREY8, metadata=None)
            file.write(GREY8[::2, ::2], subfiletype=1, metadata=None)
            file.write(GREY8 > 3, subfiletype=4, metadata=None)
        with open_raster(tmp_path / "a.tif") as raster:
            assert raster.num_pages == 1

    def test_a_page_unlike_the_first_is_refused_by_number(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(GREY8, metadata=None)
            file.write(GREY8[:10], metadata=None)
        with open_raster(tmp_path / "a.tif") as raster, pytest.raises(ImageDecodeError, match=r"page 1 .* another size"):
            raster.read(0, 0, 5, 5, page=1)


class TestRefusals:
    @pytest.mark.parametrize("window", [(-1, 0, 5, 5), (0, 0, 71, 5), (0, 46, 5, 5), (0, 0, 0, 5), (0, 0, 5, 5, 1), (0, 0, 5, 5, -1)])
    @pytest.mark.parametrize("name", ["grey", "jpeg"])
    def test_windows_outside_of_the_image_are_refused(self, tmp_path: Path, name: str, window: tuple[int, ...]) -> None:
        path = tmp_path / "image"
        path.write_bytes(OTHERS[name]()) if name in OTHERS else tiff_file(tmp_path, name).rename(path)
        with open_raster(path) as raster, pytest.raises(ShapeError, match="not inside the image of 70 × 50"):
            raster.read(*window)

    @pytest.mark.parametrize("name", ["grey", "grey-strips", "grey16-lzw-predictor", "rgb-planar-tiles", "rgb"])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_a_tiff_that_was_cut_off_is_an_error_not_a_picture(self, tmp_path: Path, name: str, share: float) -> None:
        path = tiff_file(tmp_path, name)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

        def read_all() -> None:
            with open_raster(path) as raster:
                tiled(raster, 35, 25)

        with pytest.raises(ImageDecodeError):
            read_all()

    @pytest.mark.parametrize("name", ["png", "jpeg", "webp", "bmp"])
    def test_another_file_that_was_cut_off_is_an_error(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "image").write_bytes(OTHERS[name]()[:-200])
        with pytest.raises(ImageDecodeError, match="damaged or cut off"), open_raster(tmp_path / "image"):
            pass

    @given(st.integers(0, 400), st.integers(0, 255))
    def test_a_flipped_byte_never_gives_another_kind_of_error(self, tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
        path = tiff_file(tmp_path_factory.mktemp("flipped"), "grey-strips")
        data = bytearray(path.read_bytes())
        data[at] = value
        path.write_bytes(bytes(data))
        try:
            with open_raster(path, max_pixels=100_000) as raster:
                raster.read(0, 0, min(raster.width, 20), min(raster.height, 20))
        except InputError:
            pass

    @pytest.mark.parametrize("name", ["grey", "png"])
    def test_the_limit_on_pixels_is_the_callers(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "image"
        path.write_bytes(OTHERS[name]()) if name in OTHERS else tiff_file(tmp_path, name).rename(path)
        with pytest.raises(ImageDecodeError, match="70 × 50 pixels; at least 1 and at most 3,499"), open_raster(path, max_pixels=3499):
            pass
        with open_raster(path, max_pixels=3500):
            pass

    @pytest.mark.parametrize("kind", ["float32", "int32"])
    def test_an_undeclared_range_is_refused_not_guessed(self, tmp_path: Path, kind: str) -> None:
        tifffile.imwrite(tmp_path / "a.tif", GREY8.astype(kind), metadata=None)
        with open_raster(tmp_path / "a.tif") as raster, pytest.raises(ImageDecodeError, match="declare it in the TIFF tags"):
            raster.read(0, 0, 5, 5)

    def test_values_that_are_no_numbers_are_refused(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", np.full((20, 20), np.nan, np.float32), extratags=RANGE, metadata=None)
        with open_raster(tmp_path / "a.tif") as raster, pytest.raises(ImageDecodeError, match="not finite"):
            raster.read(0, 0, 5, 5)

    def test_frames_and_other_files_are_refused(self, tmp_path: Path) -> None:
        frames = [Image.fromarray(GREY8), Image.fromarray(GREY8[::-1])]
        (tmp_path / "moving.webp").write_bytes(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
        (tmp_path / "text.png").write_bytes(b"no image at all")
        with pytest.raises(ImageDecodeError, match="several frames"), open_raster(tmp_path / "moving.webp"):
            pass
        with pytest.raises(UnknownImageFormatError), open_raster(tmp_path / "text.png"):
            pass
        with pytest.raises(InputError, match="cannot read"), open_raster(tmp_path / "nowhere.tif"):
            pass

    def test_a_pipe_is_refused_at_once(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.tif")
        with pytest.raises(InputError, match="not a regular file"), open_raster(tmp_path / "pipe.tif"):
            pass

    def test_the_file_is_closed_after_use_and_after_failure(self, tmp_path: Path, open_files: Callable[[], list[str]]) -> None:
        paths = [tiff_file(tmp_path, "grey"), tmp_path / "b.png"]
        paths[1].write_bytes(OTHERS["png"]()[:-100])
        for path in paths * 5:
            try:
                with open_raster(path) as raster:
                    raster.read(0, 0, 5, 5)
            except ImageDecodeError:
                pass
        assert open_files() == []


MEASURE = """
import re, sys
from hqtl_common import tiff_windows
from hqtl_common.rasters import open_raster
import numpy, PIL.Image, tifffile, imagecodecs
def peak():  # of this program alone; what getrusage tells is also of the process that has started it
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
base = peak()
tiff_windows._CACHE_BYTES = min(tiff_windows._CACHE_BYTES, int(sys.argv[2]))
with open_raster(sys.argv[1]) as raster:
    total = sum(int(raster.read(x, y, min(224, raster.width - x), min(224, raster.height - y)).astype("i8").sum())
                for y in range(0, raster.height, 224) for x in range(0, raster.width, 224))
print(total, (peak() - base) // 1024)
"""


def measured(path: Path, most_cached: int = 2**40) -> tuple[int, int]:
    """Sum of all pixels, and growth of the peak of resident memory in MiB, of a process that reads every window."""
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path), str(most_cached)], capture_output=True, text=True, check=True)
    total, megabytes = done.stdout.split()
    return int(total), int(megabytes)


def scan(edge: int) -> np.ndarray:
    rows = np.arange(edge, dtype=np.uint32)
    return ((rows[:, None] * 7 + rows[None, :] * 13) % 251).astype(np.uint8)


class TestMemory:
    @pytest.mark.parametrize("options", [{}, {"tile": (256, 256), "compression": "zlib"}])
    def test_a_tiff_is_never_held_as_a_whole(self, tmp_path: Path, options: dict[str, Any]) -> None:
        image = scan(6000)
        tifffile.imwrite(tmp_path / "scan.tif", image, metadata=None, **options)
        total, megabytes = measured(tmp_path / "scan.tif", 4 << 20)
        assert total == int(image.sum(dtype=np.int64))
        assert megabytes < 20  # the image has 34

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "options", "limit"),
        [
            ("scan.tif", {}, 20),
            ("scan.tif", {"rowsperstrip": 16, "compression": "lzw"}, 80),
            ("scan.tif", {"tile": (256, 256), "compression": "zlib", "bigtiff": True}, 80),
            ("scan.png", {}, 350),
        ],
    )
    def test_a_scan_of_16000_by_16000_stays_far_below_a_gigabyte(
        self, tmp_path: Path, name: str, options: dict[str, Any], limit: int
    ) -> None:
        image = scan(16_000)
        if name.endswith("png"):
            Image.fromarray(image).save(tmp_path / name, compress_level=1)
        else:
            tifffile.imwrite(tmp_path / name, image, metadata=None, **options)
        total, megabytes = measured(tmp_path / name)
        assert total == int(image.sum(dtype=np.int64))
        assert megabytes < limit
