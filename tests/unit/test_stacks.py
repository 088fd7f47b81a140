"""The pages of a TIFF, the slices of a volume and the pieces of a chunk: bounded, in order, and the same as when read whole."""

from __future__ import annotations

import gzip
import io
import signal
import struct
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hqtl_common.errors import ImageDecodeError, UnknownImageFormatError
from hqtl_common.preprocess import open_image
from hqtl_common.rasters import open_page, raster_of_values
from hqtl_common.slices import VolumeSlices
from hqtl_common.tiff_chain import MAX_PAGES, PageChain, has_second_page
from hqtl_common.tiff_windows import TiffWindows
from hqtl_common.volumes import read_volume
from serving.scoring.answers import Facts, Failure, StackPart
from serving.scoring.heads import Part
from serving.scoring.listing import Batch, Done, Segment, plan_batches, write_segment
from serving.scoring.pieces import Unit, cut_pieces, unit_of
from serving.scoring.rows import part_text
from tests.unit.test_volumes import RAMP, SAME, npy

PART = Part(np.zeros(4, np.float32), None)


def tiff(*pages: Image.Image) -> bytes:
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=list(pages[1:]))
    return file.getvalue()


GREY, COLOUR = Image.new("L", (20, 10), 7), Image.new("RGB", (30, 40), (9, 8, 7))
DEEP, CMYK = Image.fromarray(np.full((5, 6), 999, np.uint16)), Image.new("CMYK", (8, 8), (10, 20, 30, 40))


class TestPages:
    @pytest.mark.parametrize("byteorder", ["<", ">"])
    @pytest.mark.parametrize("bigtiff", [False, True])
    def test_a_second_page_is_found_without_reading_on(self, byteorder: str, bigtiff: bool) -> None:
        for count in (1, 2):
            file = io.BytesIO()
            with tifffile.TiffWriter(file, byteorder=byteorder, bigtiff=bigtiff) as writer:
                for _ in range(count):
                    writer.write(np.zeros((4, 5), np.uint8), metadata=None)
            assert has_second_page(file) == (count == 2)

    @given(st.binary(max_size=40))
    def test_no_bytes_are_too_odd_to_look_at(self, data: bytes) -> None:
        for start in (b"", b"II*\0", b"MM\0+", b"II+\0\x08\0\0\0"):
            assert has_second_page(io.BytesIO(start + data)) in (True, False)

    def test_each_page_is_an_image_of_its_own(self, tmp_path: Path) -> None:
        pages = [GREY, COLOUR, DEEP, CMYK]
        (tmp_path / "a.tif").write_bytes(tiff(*pages))
        windows = TiffWindows((tmp_path / "a.tif").open("rb"), tmp_path / "a.tif")
        assert (windows.chain.places, windows.chain.is_broken) == ([0, 1, 2, 3], False)
        for place in (0, 3, 1, 2):
            expected = np.asarray(open_image(tiff(pages[place])))
            with open_page(windows, place) as raster:
                found = raster.read(0, 0, raster.width, raster.height)
                assert (raster.width, raster.height, raster.num_pages) == (*pages[place].size, 1)
            np.testing.assert_array_equal(found if found.ndim == expected.ndim else np.stack([found] * 3, axis=2), expected)
        with pytest.raises(ImageDecodeError, match="30 × 40 pixels; at least 1 and at most 1,000"), open_page(windows, 1, 1000):
            pass
        windows.close()

    def test_a_chain_that_ends_too_early_is_told(self) -> None:
        data = tiff(GREY, GREY, GREY)
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            assert not PageChain(file).is_broken
            third = file.pages[2].offset
        for length, found in ((third, (2, True)), (third + 4, (3, False))):  # the third page is not there, or cannot be read
            with tifffile.TiffFile(io.BytesIO(data[:length])) as file:
                chain = PageChain(file)
                assert (len(chain.places), chain.is_broken) == found

    def test_a_circle_ends(self) -> None:
        tags = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (273, 4, 1, 8)]
        page = struct.pack("<H", 4) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        data = b"II*\0" + struct.pack("<I", 8) + page + struct.pack("<I", 8)
        with tifffile.TiffFile(io.BytesIO(data)) as file, pytest.raises(ImageDecodeError, match=f"more than {MAX_PAGES:,} pages"):
            PageChain(file)


class TestSlices:
    @pytest.mark.parametrize("name", [name for name in SAME if "tiff" not in name and "pages" not in name])
    def test_are_those_of_the_whole_volume(self, name: str, tmp_path: Path) -> None:
        data = SAME[name]()
        if data.startswith((b"II", b"MM")):
            pytest.skip("pages are no slices")
        (tmp_path / "a").write_bytes(data)
        volume = VolumeSlices((tmp_path / "a").open("rb"))
        slices = [volume.read(index) for index in range(len(volume))]
        unit = np.stack([plane if plane.dtype == np.float32 else plane.astype(np.float32) / np.float32(255) for plane in slices])
        np.testing.assert_array_equal(unit, read_volume(data, RAMP.shape))  # type: ignore[arg-type]
        np.testing.assert_array_equal(volume.read(1), slices[1])
        volume.close()

    def test_bytes_stay_bytes(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", RAMP)
        volume = VolumeSlices((tmp_path / "a.npy").open("rb"))
        np.testing.assert_array_equal(volume.read(3), RAMP[3], strict=True)
        volume.close()

    def test_a_compressed_volume_that_is_cut_off_keeps_its_first_slices(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        cube = rng.integers(0, 256, (6, 40, 40), dtype=np.uint8)
        data = gzip.compress(nibabel.Nifti1Image(cube.T, np.eye(4)).to_bytes())
        (tmp_path / "a.nii.gz").write_bytes(data[: len(data) // 2])
        volume = VolumeSlices((tmp_path / "a.nii.gz").open("rb"))
        np.testing.assert_array_equal(volume.read(1), cube[1])
        with pytest.raises(EOFError):
            volume.read(5)
        volume.close()

    @pytest.mark.parametrize(
        ("data", "error", "message"),
        [
            (b"", UnknownImageFormatError, "not a .npy cube"),
            (b"text", UnknownImageFormatError, "not a .npy cube"),
            (npy(np.zeros((4, 4), np.uint8)), ImageDecodeError, "three axes"),
            (npy(np.zeros((4, 4, 4), np.complex64)), ImageDecodeError, "uint8, uint16 or float"),
        ],
    )
    def test_what_is_no_volume_is_refused(self, data: bytes, error: type[Exception], message: str, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(data)
        with (tmp_path / "a").open("rb") as file, pytest.raises(error, match=message):
            VolumeSlices(file)

    def test_a_bomb_is_not_unpacked(self, tmp_path: Path) -> None:
        header = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).header
        header.set_data_offset(2**31)
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 4))
        with (tmp_path / "a.nii.gz").open("rb") as file, pytest.raises(ImageDecodeError, match="unpacks to more than"):
            VolumeSlices(file)


def test_pixels_in_memory_are_read_like_a_file() -> None:
    values = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    raster = raster_of_values(values)
    assert (raster.width, raster.height, raster.bands, raster.is_deep, raster.georeference) == (5, 4, 3, False, None)
    np.testing.assert_array_equal(raster.read(1, 2, 3, 2), values[2:4, 1:4])


class TestPieces:
    @given(
        sizes=st.lists(st.integers(1, 7), min_size=1, max_size=9),
        chunk_size=st.integers(1, 5),
        data=st.data(),
    )
    def test_any_piece_is_a_place_to_go_on(
        self, sizes: list[int], chunk_size: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Pieces from any one on are those of the undivided run, whatever the files hold."""
        listing = tmp_path_factory.mktemp("list") / "listing"
        paths = [f"{number:02}".encode() for number in range(len(sizes))]
        segments = [write_segment(listing, 0, paths, lambda files: None)]
        whole = pieces_of(listing, segments, sizes, chunk_size, 0, 0, Done())
        assert [path for piece, _ in whole for path in piece.paths] == [
            path for path, size in zip(paths, sizes, strict=True) for _ in range(size)
        ]
        assert all(len(piece.paths) == chunk_size for piece, _ in whole if not piece.ends)
        assert len({piece.chunk for piece, _ in whole}) == len(whole)  # each draws noise of its own
        at = data.draw(st.integers(0, len(whole) - 1))
        listing_at, chunks, done = (0, 0, Done()) if at == 0 else whole[at - 1][1]
        assert pieces_of(listing, segments, sizes, chunk_size, listing_at, chunks, done) == whole[at:]


def pieces_of(listing: Path, segments: list[Segment], sizes: list[int], chunk_size: int, start: int, chunk: int, done: Done) -> list:
    """Each piece, and where a run goes on behind it."""

    def units() -> object:
        for batch in plan_batches(listing, segments, start, chunk, 2, chunk_size, done):
            for place, path in enumerate(batch.paths):
                count = sizes[int(path)]
                for number in range(0 if place else batch.part, count):
                    stack = StackPart("page", number, None, number, count) if count > 1 else None
                    yield unit_of(batch, place, Facts(), Failure("a", "b"), stack=stack)

    found = []
    position = (start, chunk, done)
    for piece in cut_pieces(units(), chunk_size):  # type: ignore[arg-type]
        at, chunks, before = position
        stack = piece.stack or (None,) * len(piece.paths)
        files = sum(part is None or part.ends for part in stack)
        last = stack[-1]
        inside = Done(before.files + files, 0 if last is None or last.ends else last.number + 1, before.pieces + 1)
        position = (piece.listing_end, chunks + 1, Done()) if piece.ends else (at, chunks, inside)
        found.append((piece, position))
    return found


def test_the_last_picture_of_a_chunk_is_known_as_such() -> None:
    batch = Batch(3, (b"a", b"b"), ends_chunk=True, listing_end=4)
    ends = [
        unit_of(batch, place, Facts(), Failure("a", "b"), stack=stack).ends_chunk
        for place, stack in [(0, None), (1, None), (1, StackPart("frame", 0, 0.0, 0, 2)), (1, StackPart("frame", 9, 1.0, 1, 2))]
    ]
    assert ends == [False, True, False, True]
    assert Unit(batch, b"a", Facts(), None, (PART,)).stack is None


def test_a_picture_that_takes_too_long_ends_the_process() -> None:
    code = (
        "from serving.scoring import tile_process\n"
        "tile_process._COMPUTING_S = 0.3\n"
        "def items():\n"
        "    yield 1\n"
        "    while True: pass\n"
        "print(*tile_process._timed(items()))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == -signal.SIGPROF


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (("page", 3, None), "page 3"),
        (("frame", 1500, 62.0404), "frame 1,500 at 1:02.040"),
        (("frame", 0, 0.0), "frame 0 at 0:00.000"),
        (("frame", 9, 3725.5), "frame 9 at 1:02:05.500"),
        (("slice", None, None), "slice (which one is not known)"),
    ],
)
def test_parts_in_words(place: tuple[str, int | None, float | None], text: str) -> None:
    assert part_text(*place) == text
