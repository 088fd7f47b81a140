"""Volumes: what the formats declare is what comes out, resampled as Pillow would, and hostile files are refused."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hqtl_common import PreprocessSpec
from hqtl_common.errors import ConfigError, ImageDecodeError, InputError, UnknownImageFormatError
from hqtl_common.preprocess import preprocess, preprocess_batch, suffixes_of
from hqtl_common.volumes import MAX_EDGE, read_volume

SPEC = PreprocessSpec(size=8, depth=4)
RAMP = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tiff(pages: list[np.ndarray], tags: dict[int, float] | None = None) -> bytes:
    buffer = io.BytesIO()
    images = [Image.fromarray(page) for page in pages]
    images[0].save(buffer, "TIFF", save_all=True, append_images=images[1:], tiffinfo=tags or {})
    return buffer.getvalue()


def nifti(array: np.ndarray, *, limits: tuple[float, float] = (0, 0), kind: type = nibabel.Nifti1Image) -> bytes:
    """(z, y, x) values; NIfTI stores (x, y, z)."""
    image = kind(array.T, np.eye(4))
    image.header["cal_min"], image.header["cal_max"] = limits
    data: bytes = image.to_bytes()
    return data


def same_size(data: bytes, shape: tuple[int, ...] = RAMP.shape) -> np.ndarray:
    return read_volume(data, shape)  # type: ignore[arg-type]


DEEP = RAMP.astype(np.uint16) * 257
UNIT = RAMP.astype(np.float32) / 255

SAME: dict[str, Callable[[], bytes]] = {
    "npy uint8": lambda: npy(RAMP),
    "npy by columns": lambda: npy(np.asfortranarray(RAMP)),
    "npy uint16": lambda: npy(DEEP),
    "npy big-endian": lambda: npy(DEEP.astype(">u2")),
    "npy float": lambda: npy(UNIT),
    "npy double": lambda: npy(UNIT.astype(np.float64)),
    "tiff uint8": lambda: tiff(list(RAMP)),
    "tiff uint16": lambda: tiff(list(DEEP)),
    "tiff float declared": lambda: tiff(list(UNIT * 3 - 1), {340: -1.0, 341: 2.0}),
    "nifti uint8": lambda: nifti(RAMP),
    "nifti 2": lambda: nifti(RAMP, kind=nibabel.Nifti2Image),
    "nifti gz": lambda: gzip.compress(nifti(RAMP), mtime=0),
    "nifti float": lambda: nifti(UNIT),
    "nifti declared": lambda: nifti(RAMP.astype(np.int16) - 100, limits=(-100, 155)),
    "nifti fourth axis": lambda: nifti(RAMP[None]),
}


@pytest.mark.parametrize("name", SAME)
def test_every_format_says_the_same(name: str) -> None:
    np.testing.assert_allclose(same_size(SAME[name]()), UNIT, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 6, 7), (3, 4, 5), (9, 12, 20), (5, 3, 14)])
def test_resampling_is_pillows_along_every_axis(shape: tuple[int, int, int]) -> None:
    planes = [np.asarray(Image.fromarray(plane).resize(shape[:0:-1], Image.Resampling.BILINEAR)) for plane in UNIT]
    columns = Image.fromarray(np.stack(planes).reshape(len(planes), -1))
    expected = np.asarray(columns.resize((columns.width, shape[0]), Image.Resampling.BILINEAR)).reshape(shape)
    np.testing.assert_allclose(same_size(npy(UNIT), shape), expected, atol=1e-5)


def test_pixels_are_three_equal_channels_normalised_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy(RAMP))
    pixels = preprocess(tmp_path / "a.npy", SPEC)
    assert (pixels.shape, pixels.dtype) == (SPEC.pixels_shape, np.float32)
    for channel, mean, std in zip(pixels, SPEC.mean, SPEC.std, strict=True):
        np.testing.assert_allclose(channel * std + mean, read_volume(npy(RAMP), (4, 8, 8)), atol=1e-6)
    np.testing.assert_array_equal(preprocess_batch([npy(RAMP)], SPEC)[0], pixels)


def test_suffixes_follow_the_spec() -> None:
    assert suffixes_of(SPEC) == (".nii", ".nii.gz", ".npy", ".tif", ".tiff")
    assert ".npy" not in suffixes_of(PreprocessSpec())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (npy(UNIT * 2), r"must lie in \[0, 1\]"),
        (npy(np.full((2, 2, 2), np.nan, np.float32)), "not finite"),
        (npy(RAMP.astype(np.int16)), "uint8, uint16 or float"),
        (npy(RAMP.astype(np.uint32)), "range of uint32 voxels .* is unknown"),
        (npy(RAMP[0]), "three axes"),
        (npy(np.zeros((2, 2, 2), dtype=[("a", "u1")])), "uint8, uint16 or float"),
        (npy(RAMP[:1]), "three axes"),
        (npy(np.zeros((2, 2, MAX_EDGE + 1), np.uint8)), "three axes"),
        (npy(RAMP)[:-1], "damaged or cut off"),
        (tiff([RAMP[0]]), "three axes"),
        (tiff([RAMP[0], RAMP[1, :3]]), "one size"),
        (tiff([np.zeros((4, 4, 3), np.uint8)] * 2), "must be grey"),
        (tiff(list(UNIT)), "value range of a float image is unknown"),
        (nifti(RAMP.astype(np.int16)), "range of int16 voxels in a NIfTI file without cal_min"),
        (nifti(RAMP)[:-1], "cut off"),
        (gzip.compress(nifti(RAMP), mtime=0)[:-9], "cut off"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(data: bytes, says: str) -> None:
    with pytest.raises(ImageDecodeError, match=says):
        same_size(data)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n", b"x" * 1000, gzip.compress(b"nothing", mtime=0)])
def test_other_formats_are_unknown(data: bytes) -> None:
    with pytest.raises(UnknownImageFormatError):
        same_size(data)


def test_an_object_array_is_never_unpickled() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[[print]]], dtype=object), allow_pickle=True)
    with pytest.raises(ImageDecodeError):
        same_size(buffer.getvalue())


@pytest.mark.parametrize("make", [npy, nifti])
def test_a_header_alone_asks_for_no_memory(make: Callable[[np.ndarray], bytes]) -> None:
    """512 × 512 × 512 voxels of eight bytes are claimed and not there."""
    whole = make(np.zeros((2, 2, 2)))
    if make is npy:
        claimed = whole.replace(b"(2, 2, 2), }" + b" " * 9, b"(512, 512, 512), }   ")
    else:
        claimed = whole[:42] + np.array([512] * 3, "<i2").tobytes() + whole[48:]
    assert len(claimed) == len(whole)
    with pytest.raises(ImageDecodeError, match="cut off"):
        same_size(claimed)


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hqtl_common.volumes.MAX_UNPACKED", 1000)
    with pytest.raises(ImageDecodeError, match="unpacks to more than"):
        same_size(gzip.compress(bytes(100_000), mtime=0))


def test_nifti_without_nibabel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ConfigError, match=r"hqtl\[volumes\]"):
        same_size(nifti(RAMP))


@settings(max_examples=150)
@given(
    st.sampled_from(["npy uint16", "npy float", "tiff uint16", "nifti declared", "nifti float", "nifti gz"]),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_raise_nothing_else(name: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(SAME[name]())
    for position, value in changes:
        data[position % len(data)] = value
    try:
        volume = read_volume(bytes(data), (2, 4, 4))
    except ImageDecodeError:
        return
    assert volume.min() >= 0
    assert volume.max() <= 1.0001


def test_an_image_is_no_volume_and_a_volume_no_image() -> None:
    with pytest.raises(InputError, match="several pages"):
        preprocess(tiff(list(RAMP)), PreprocessSpec(size=8))
    with pytest.raises(ImageDecodeError, match="three axes"):
        preprocess(tiff([RAMP[0]]), SPEC)


def test_spec_of_a_volume_round_trips_and_that_of_an_image_has_no_new_field() -> None:
    assert PreprocessSpec.from_dict(SPEC.to_dict()) == SPEC
    assert set(PreprocessSpec().to_dict()) == {"size", "mean", "std"}
    for bad in (0, 2.5, 1 << 21):
        with pytest.raises(ConfigError, match="depth"):
            PreprocessSpec(size=8, depth=bad)  # type: ignore[arg-type]
