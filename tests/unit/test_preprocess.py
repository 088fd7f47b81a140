"""Bytes to pixels: equal to torchvision where it is right, and refusing what cannot be trusted."""

from __future__ import annotations

import io
import os
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, TiffImagePlugin

from hqtl_common.errors import ImageDecodeError, InputError
from hqtl_common.preprocess import open_image, preprocess, preprocess_batch, read_file
from hqtl_common.specs import PreprocessSpec

RNG = np.random.default_rng(5)
COLOUR = RNG.integers(0, 256, size=(37, 53, 3), dtype=np.uint8)
GREY = COLOUR[:, :, 0]
SMALL = PreprocessSpec(size=8)
RAW = PreprocessSpec(size=8, mean=(0, 0, 0), std=(1, 1, 1))  # values in [0, 1] as they are


def encode(pixels: np.ndarray | Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, tags: dict[int, float] | None = None) -> bytes:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in (tags or {}).items():
        directory.tagtype[tag] = 12 if isinstance(value, float) else 4
        directory[tag] = value
    return encode(pixels, "TIFF", tiffinfo=directory)


def raw_tiff(data: bytes, *, bits: int, photometric: int = 1, side: int = 8) -> bytes:
    """A little-endian, uncompressed, one-strip grey TIFF, byte by byte."""
    tags = [(256, side), (257, side), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, side), (279, len(data))]
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, offset if tag == 273 else value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def torchvision_pixels(image: Image.Image) -> np.ndarray:
    transforms = pytest.importorskip("torchvision.transforms")
    pipeline = transforms.Compose(
        [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    )
    return pipeline(image.convert("RGB")).numpy()


@pytest.mark.parametrize("size", [(224, 224), (227, 227), (640, 480), (99, 301), (1, 1), (3, 900), (225, 224)])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK", "P"])
def test_equals_torchvision(size: tuple[int, int], mode: str) -> None:
    image = Image.fromarray(RNG.integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    got = preprocess(data)
    assert (got.shape, got.dtype, got.flags["C_CONTIGUOUS"]) == ((3, 224, 224), np.float32, True)
    np.testing.assert_allclose(got, torchvision_pixels(image), atol=1e-5)


def test_equals_torchvision_v2() -> None:
    torch, v2 = pytest.importorskip("torch"), pytest.importorskip("torchvision.transforms.v2")
    pipeline = v2.Compose(
        [
            v2.Resize((224, 224)),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    np.testing.assert_allclose(preprocess(encode(COLOUR)), pipeline(Image.fromarray(COLOUR)).numpy(), atol=1e-5)


def test_photograph_equals_torchvision(shared_data: Path) -> None:
    for path in sorted((shared_data / "dev").glob("*/crack/*"))[::400]:
        with Image.open(path) as image:
            np.testing.assert_allclose(preprocess(path), torchvision_pixels(image), atol=1e-5)


def test_image_of_the_right_size_is_not_resampled() -> None:
    pixels = RNG.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(preprocess(encode(pixels), RAW), (pixels / np.float32(255)).transpose(2, 0, 1))


@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_agree(image_format: str, options: dict[str, object]) -> None:
    np.testing.assert_array_equal(preprocess(encode(COLOUR, image_format, **options)), preprocess(encode(COLOUR)))


def test_jpeg_is_what_pillow_decodes() -> None:
    data = encode(COLOUR, "JPEG", quality=80)
    np.testing.assert_array_equal(np.asarray(open_image(data)), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("image_format", ["GIF", "PPM", "ICO"])
def test_other_formats_are_refused(image_format: str) -> None:
    with pytest.raises(ImageDecodeError, match="PNG, JPEG, TIFF, BMP, WEBP"):
        open_image(encode(COLOUR, image_format))


# ---------------------------------------------------------------- depth and value range


RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_ramp_keeps_depth_and_range(image_format: str) -> None:
    got = preprocess(encode(RAMP, image_format), RAW)
    np.testing.assert_allclose(got, np.repeat(RAMP[None] / 65535, 3, axis=0), atol=1e-7)
    assert len(np.unique(got)) == 64


def test_big_endian_and_compressed_sixteen_bit_tiff() -> None:
    plain = preprocess(encode(RAMP, "TIFF"), RAW)
    for data in (encode(RAMP, "TIFF", compression="tiff_lzw"), encode(Image.fromarray(RAMP.astype(">u2")), "TIFF")):
        np.testing.assert_array_equal(preprocess(data, RAW), plain)


@pytest.mark.parametrize(("low_tag", "high_tag"), [(280, 281), (340, 341)])
def test_declared_range_of_a_sixteen_bit_tiff(low_tag: int, high_tag: int) -> None:
    data = tiff((RAMP // 16).astype(np.uint16), {low_tag: 0, high_tag: 4095})
    np.testing.assert_allclose(preprocess(data, RAW)[0], (RAMP // 16) / 4095, atol=1e-6)


@pytest.mark.parametrize("tags", [{280: 1000, 281: 2000}, {340: 1000, 341: 2000}, {281: 60001}])
def test_extremes_of_a_sixteen_bit_picture_do_not_stretch_it(tags: dict[int, int]) -> None:
    np.testing.assert_array_equal(preprocess(tiff(RAMP, tags), RAW), preprocess(tiff(RAMP), RAW))


def test_values_beyond_the_declared_range_are_clipped() -> None:
    got = preprocess(tiff(RAMP.astype(np.float32), {340: 1000.0, 341: 2000.0}), RAW)
    assert (got.min(), got.max()) == (0, 1)


def test_a_tiff_that_cannot_be_read_is_not_called_something_else() -> None:
    data = io.BytesIO()
    tifffile.imwrite(data, RAMP.astype(np.float64))
    with pytest.raises(ImageDecodeError, match="the TIFF file is damaged, or of a kind that cannot be read; save it as"):
        open_image(data.getvalue())


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_float_and_32_bit_need_a_declared_range(dtype: type) -> None:
    values = np.linspace(-100, 100, 64).reshape(8, 8).astype(dtype)
    with pytest.raises(ImageDecodeError, match="SMinSampleValue"):
        open_image(tiff(values))
    np.testing.assert_allclose(preprocess(tiff(values, {340: -100.0, 341: 100.0}), RAW)[0], (values + 100.0) / 200, atol=1e-6)


@pytest.mark.parametrize(
    "tags",
    [
        {340: 5.0, 341: 5.0},
        {340: 6.0, 341: 5.0},
        {341: float("nan")},
        {340: 0.0, 341: float("inf")},
        {340: 0.0, 341: 1e-42},  # nothing in float32 can be divided by these two
        {340: -3e38, 341: 3e38},
    ],
)
def test_declared_range_without_sense_does_not_count(tags: dict[int, float]) -> None:
    with pytest.raises(ImageDecodeError, match="value range"):
        open_image(tiff(np.ones((8, 8), np.float32), tags))


def test_undefined_float_pixels_are_refused() -> None:
    values = np.ones((8, 8), np.float32)
    values[3, 3] = np.nan
    with pytest.raises(ImageDecodeError, match="not finite"):
        open_image(tiff(values, {340: 0.0, 341: 1.0}))


def test_twelve_bit_tiff_has_a_twelve_bit_range() -> None:
    black_and_white = bytes([0x00, 0x0F, 0xFF]) * 32  # two packed samples: 0 and 4095
    assert np.unique(preprocess(raw_tiff(black_and_white, bits=12), RAW)).tolist() == [0, 1]


@pytest.mark.parametrize(("bits", "samples"), [(8, np.arange(0, 256, 4, dtype=np.uint8)), (16, RAMP.ravel())])
def test_white_is_zero_is_inverted_at_every_depth(bits: int, samples: np.ndarray) -> None:
    black_is_zero = preprocess(raw_tiff(samples.tobytes(), bits=bits, photometric=1), RAW)
    white_is_zero = preprocess(raw_tiff(samples.tobytes(), bits=bits, photometric=0), RAW)
    np.testing.assert_allclose(white_is_zero, 1 - black_is_zero, atol=1e-6)


# ---------------------------------------------------------------- orientation, transparency, colour


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(image_format: str, orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # a white square at the top left
    upright[:8, 8:16] = 128
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 95} if image_format == "JPEG" else {}
    got = open_image(encode(np.ascontiguousarray(stored), image_format, exif=exif, **options))
    assert got.size == (24, 16)
    np.testing.assert_allclose(np.asarray(got).astype(int), upright, atol=12)


def test_orientation_of_a_sixteen_bit_tiff_keeps_its_range() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    np.testing.assert_array_equal(
        preprocess(encode(RAMP, "TIFF", exif=exif), RAW), np.rot90(preprocess(encode(RAMP, "TIFF"), RAW), -1, axes=(1, 2))
    )


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
def test_transparency_lies_on_white(image_format: str) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 2:4, 3], rgba[:, 4:, 3] = 128, 255  # clear, half, opaque black
    got = np.asarray(open_image(encode(rgba, image_format, **({"lossless": True} if image_format == "WEBP" else {}))))
    assert got[0, [0, 2, 4], 0].tolist() == [255, 127, 0]


def test_grey_with_alpha_and_declared_transparent_values_lie_on_white() -> None:
    grey_alpha = np.dstack([np.zeros((8, 8), np.uint8), np.tile(np.uint8([0, 255]), (8, 4))])
    assert np.asarray(open_image(encode(grey_alpha)))[0, :2, 0].tolist() == [255, 0]
    two = np.tile(np.uint8([7, 9]), (8, 4))
    for data in (encode(two, transparency=7), encode(np.dstack([two] * 3), transparency=(7, 7, 7))):
        assert np.asarray(open_image(data))[0, :2, 0].tolist() == [255, 9]


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([200, 10, 10, 0, 0, 0])
    image.putdata([0, 1] * 32)
    assert np.asarray(open_image(encode(image)))[0, :2].tolist() == [[200, 10, 10], [0, 0, 0]]
    assert np.asarray(open_image(encode(image, transparency=0)))[0, :2].tolist() == [[255, 255, 255], [0, 0, 0]]
    assert np.asarray(open_image(encode(image, transparency=bytes([255, 0]))))[0, :2].tolist() == [[200, 10, 10], [255, 255, 255]]


def test_cmyk_jpeg_becomes_rgb() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(np.asarray(open_image(encode(red, "JPEG")))[0, 0].astype(int) - [255, 0, 0]).max() <= 3


def test_unusual_colour_spaces_are_refused() -> None:
    with pytest.raises(ImageDecodeError, match="LAB"):
        open_image(encode(Image.new("LAB", (8, 8)), "TIFF"))


# ---------------------------------------------------------------- hostile and damaged data


def test_size_is_checked_before_decoding() -> None:
    huge = raw_tiff(b"", bits=8, side=9_000) + bytes(8)  # 81 million pixels announced by a file of 130 bytes
    with pytest.raises(ImageDecodeError, match="9000 × 9000"):
        open_image(huge, max_pixels=1_000_000)
    with pytest.raises(ImageDecodeError):
        open_image(raw_tiff(b"", bits=8, side=60_000))
    assert open_image(encode(COLOUR), max_pixels=37 * 53).size == (53, 37)


def test_many_pages_are_refused_without_visiting_them() -> None:
    pages = encode(GREY, "TIFF", save_all=True, append_images=[Image.fromarray(GREY)])
    with pytest.raises(ImageDecodeError, match="several pages"):
        open_image(pages)
    page = raw_tiff(b"", bits=8)[8:]
    chain = b"".join(page[:-4] + struct.pack("<I", 8 + len(page) * (k + 1)) for k in range(20_000))
    started = time.thread_time()
    with pytest.raises(ImageDecodeError, match="several pages"):
        open_image(b"II*\0" + struct.pack("<I", 8) + chain)
    assert time.thread_time() - started < 1


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_animations_are_refused(image_format: str) -> None:
    data = encode(COLOUR, image_format, save_all=True, append_images=[Image.fromarray(255 - COLOUR)])
    with pytest.raises(ImageDecodeError, match="several pages or frames"):
        open_image(data)


def test_second_picture_of_a_phone_is_ignored() -> None:
    data = encode(COLOUR, "MPO", save_all=True, append_images=[Image.fromarray(255 - COLOUR)])
    assert np.abs(np.asarray(open_image(data)).astype(int).mean() - COLOUR.mean()) < 2


def small_files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.ImageDescription] = 6, "a wall"
    colour, grey = COLOUR[:9, :7], GREY[:9, :7]
    return {
        "png": encode(colour, exif=exif),
        "png16": encode(RAMP),
        "palette": encode(Image.fromarray(grey).quantize(4), transparency=1),
        "jpeg": encode(colour, "JPEG", exif=exif),
        "mpo": encode(colour, "MPO", save_all=True, append_images=[Image.fromarray(colour)]),
        "tiff": encode(colour, "TIFF", exif=exif),
        "lzw": encode(RAMP, "TIFF", compression="tiff_lzw"),
        "float": tiff(RAMP.astype(np.float32), {340: 0.0, 341: 65535.0}),
        "bmp": encode(colour, "BMP"),
        "webp": encode(np.dstack([colour, grey]), "WEBP", exif=exif),
    }


FILES = small_files()


@pytest.mark.parametrize("name", FILES)
def test_cut_file_is_refused_or_complete(name: str) -> None:
    """At every length: ImageDecodeError, or (where only an end marker was lost) the very pixels of the whole file."""
    whole = np.asarray(open_image(FILES[name]))
    refused = 0
    for length in range(len(FILES[name])):
        try:
            np.testing.assert_array_equal(np.asarray(open_image(FILES[name][:length])), whole)
        except ImageDecodeError:
            refused += 1
    assert refused >= len(FILES[name]) // 2


@pytest.mark.parametrize("as_errors", [False, True])
@settings(max_examples=700)
@given(st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_bytes_raise_nothing_else(as_errors: bool, name: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(FILES[name])
    for position, value in changes:
        data[position % len(data)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error" if as_errors else "ignore")
        try:
            pixels = preprocess(bytes(data), SMALL, max_pixels=1_000_000)
        except ImageDecodeError:
            return
    assert pixels.shape == (3, 8, 8)
    assert np.isfinite(pixels).all()


def test_damaged_orientation_block_is_no_crash() -> None:
    """A tag whose stored type does not fit its value made Pillow raise struct.error while it rewrote the block."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.ImageDescription] = 6, "hello"
    data = encode(COLOUR, "JPEG", exif=exif)
    entry = data.index(struct.pack(">HH", 0x010E, 2) if b"MM\0*" in data else struct.pack("<HH", 0x010E, 2))
    for wrong_type in range(14):
        for type_byte in (entry + 2, entry + 3):
            changed = bytearray(data)
            changed[type_byte] = wrong_type
            try:
                assert open_image(bytes(changed)).size == (37, 53)
            except ImageDecodeError as error:
                assert "damaged" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("data", [b"", b"not an image", b"<svg/>", b"\x89PNG\r\n\x1a\n", bytes(1000), b"GIF89a" + bytes(50)])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ImageDecodeError):
        open_image(data)


# ---------------------------------------------------------------- files


def test_path_and_bytes_give_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "misnamed.jpg"
    path.write_bytes(encode(COLOUR))
    for source in (path, str(path)):
        np.testing.assert_array_equal(preprocess(source), preprocess(path.read_bytes()))


def test_path_of_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"wand-\xff\xe4.png")
    path.write_bytes(encode(COLOUR))
    assert preprocess(path, SMALL).shape == (3, 8, 8)
    path.write_bytes(b"no image")
    with pytest.raises(ImageDecodeError, match=r"wand-") as caught:
        preprocess_batch([path], SMALL)
    str(caught.value).encode()  # fit for a log or a JSON file


def test_what_is_no_file_is_refused_at_once_and_leaks_nothing(tmp_path: Path, open_files: Callable[[], list[str]]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", ".", "missing.png", "loop", "nul\0byte"):
        with pytest.raises(InputError, match=r"not a regular file|cannot read"):
            preprocess(f"{tmp_path}/{name}")
    with pytest.raises(InputError):
        preprocess("/dev/zero")
    assert open_files() == []


def test_large_file_is_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(1 << 32)  # sparse
    with pytest.raises(InputError, match="4,294,967,296"):
        read_file(path)


def test_batch_is_the_images_in_order_and_names_the_bad_one(tmp_path: Path) -> None:
    one, other = encode(COLOUR), encode(GREY)
    batch = preprocess_batch([one, other, one], SMALL)
    for pixels, data in zip(batch, (one, other, one), strict=True):
        np.testing.assert_array_equal(pixels, preprocess(data, SMALL))
    assert preprocess_batch([], SMALL).shape == (0, 3, 8, 8)
    with pytest.raises(ImageDecodeError, match="image 1:"):
        preprocess_batch([one, b"bad"], SMALL)
    with pytest.raises(InputError, match=r"gone\.png"):
        preprocess_batch([one, tmp_path / "gone.png"], SMALL)
