"""Videos: every frame has one number, one time and the same pixels wherever reading begins; damage and tricks cost frames, never more."""

from __future__ import annotations

import io
import re
import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtl_common.errors import ConfigError, ImageDecodeError
from hqtl_common.frame_choice import Every
from hqtl_common.videos import VIDEO_SUFFIXES, VideoFrames
from tests.films import decoded, pictures, write_film

PIXELS = 1 << 20
KINDS = {
    "ffv1.mkv": ("ffv1", "bgr0"),
    "mpeg4.avi": ("mpeg4", "yuv420p"),
    "h264.mp4": ("libx264", "yuv420p"),
    "h264.avi": ("libx264", "yuv420p"),  # times of decoding in place of those of presentation
    "hevc.mov": ("libx265", "yuv420p"),  # key frames that are followed by frames shown before them
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
    "mpeg2.mpg": ("mpeg2video", "yuv420p"),
    "h264.m2ts": ("libx264", "yuv420p"),
    "mjpeg.avi": ("mjpeg", "yuvj420p"),
    "wmv2.wmv": ("wmv2", "yuv420p"),
    "h264.flv": ("libx264", "yuv420p"),
}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name, (codec, pix_fmt) in KINDS.items():
        write_film(folder / name, pictures(30), codec, pix_fmt, gop=8, rate=25)
    return folder


def opened(source: Path | bytes, max_pixels: int = PIXELS) -> VideoFrames:
    return VideoFrames(io.BytesIO(source) if isinstance(source, bytes) else source.open("rb"), max_pixels)


def read_all(data: bytes, start: int = 0) -> list[object]:
    """What is said of every third frame from ``start`` on: its bytes, or the error."""
    video, found = opened(data), []
    for index in range(start, len(video), 3):
        try:
            found.append(video.read(index).tobytes())
        except ImageDecodeError as error:
            found.append(str(error))
    video.close()
    return [*found, video.broken]


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_the_same_in_any_order(films: Path, name: str) -> None:
    expected = decoded(films / name)
    video = opened(films / name)
    assert len(video) == len(expected) == 30
    assert video.broken is None
    for index in (0, 1, 7, 8, 9, 29, 16, 15, 3, 3, 28, 20):
        np.testing.assert_array_equal(video.read(index), expected[index], err_msg=f"{name} {index}")
        assert video.time_of(index) == pytest.approx(index / 25, abs=0.0011)  # some containers count milliseconds
    video.close()


def test_reading_late_decodes_no_more_than_from_the_key_frame_before(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in {"ffv1.mkv": 8, "h264.mp4": 8, "h264.avi": 30}.items():
        video, count = opened(films / name), 0
        packets = video._packets_from

        def counted(start: int | None, packets: object = packets) -> object:
            nonlocal count
            for packet in packets(start):  # type: ignore[operator]
                count += 1
                yield packet

        monkeypatch.setattr(video, "_packets_from", counted)
        video.read(27)
        assert 0 < count <= most + 3, name  # decoders hold back a few
        video.close()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_damage_is_told_the_same_wherever_reading_begins(films: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(KINDS)))
    content = bytearray((films / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(len(content) // 10, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        whole = read_all(bytes(content))
    except ImageDecodeError as error:
        with pytest.raises(ImageDecodeError, match=re.escape(str(error))):
            read_all(bytes(content))
        return
    for start in (3, 12, 24):
        assert read_all(bytes(content), start) == whole[start // 3 :]


def test_a_video_that_is_cut_off_says_where(films: Path) -> None:
    long = write_film(films / "long.mkv", pictures(30), rate=5)
    data = long.read_bytes()
    video = opened(data[: len(data) // 2])
    assert 10 < len(video) < 20
    np.testing.assert_array_equal(video.read(9), pictures(30)[9])
    assert str(video.broken).startswith("the file is cut off: it was to last until 6.0 s and ends at ")
    video.close()


def test_a_damaged_frame_costs_those_up_to_the_next_key_frame(films: Path) -> None:
    data = bytearray((films / "mjpeg.avi").read_bytes())
    with av.open(str(films / "mjpeg.avi")) as file:
        packet = [packet for packet in file.demux(video=0) if packet.size][4]
        start = data.index(bytes(packet))
    data[start : start + packet.size] = b"\0" * packet.size
    video = opened(bytes(data))
    with pytest.raises(ImageDecodeError, match=r"frame 4 at 0\.160 s cannot be decoded"):
        video.read(4)
    np.testing.assert_array_equal(video.read(5), decoded(films / "mjpeg.avi")[5])
    video.close()


def test_what_is_no_video_is_refused(films: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("x")
    for content in (
        b"",
        b"nothing",
        f"#EXTM3U\n#EXTINF:1,\nfile://{films / 'h264.mp4'}\n".encode(),
        b"ffconcat version 1.0\nfile h264.mp4\n",
    ):
        with pytest.raises(ImageDecodeError, match="the video cannot be opened"):
            opened(content)
    with pytest.raises(ImageDecodeError, match="the frames have 64 × 48 pixels; at most 3,000 are allowed"):
        opened(films / "h264.mp4", 3000)
    with av.open(str(tmp_path / "sound.mkv"), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.rate = 8000
        file.mux(stream.encode(sound))
    with pytest.raises(ImageDecodeError, match="no picture track"):
        opened(tmp_path / "sound.mkv")


def test_without_the_package_the_error_says_what_to_install(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"pip install 'hqtl\[video\]'"):
        opened(films / "h264.mp4")


def test_deep_grey_keeps_its_depth(tmp_path: Path) -> None:
    ramp = (np.arange(64 * 48, dtype=np.uint32).reshape(48, 64) * 21).astype(np.uint16)
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray16le"
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(ramp, "gray16le")), *stream.encode()):
            file.mux(packet)
    video = opened(tmp_path / "a.mkv")
    np.testing.assert_array_equal(video.read(0), ramp.astype(np.float32) / np.float32(65535))
    video.close()


def test_a_turned_telephone_gives_upright_frames(films: Path) -> None:
    data = bytearray((films / "h264.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    assert struct.unpack_from(">9i", data, matrix) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)  # shown turned clockwise by 90°
    video = opened(bytes(data))
    np.testing.assert_array_equal(video.read(3), np.rot90(decoded(films / "h264.mp4")[3], -1))
    video.close()


class TestEvery:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (None, Every()),
            ("1s", Every()),
            ("10", Every(10)),
            ("0.5s", Every(seconds=Fraction(1, 2))),
            ("1/3s", Every(seconds=Fraction(1, 3))),
        ],
    )
    def test_is_read(self, text: str | None, expected: Every) -> None:
        assert Every.parse(text) == expected

    @pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "0s", "-2s", "s", "nans", "infs", "1/0s", "2 m", "1e9s"])
    def test_refuses_nonsense(self, text: str) -> None:
        with pytest.raises(ConfigError, match="frames are chosen by number, for example 10, or by seconds"):
            Every.parse(text)

    @given(
        gaps=st.lists(st.integers(1, 5000), max_size=60),
        start=st.integers(-(10**9), 10**9),
        span=st.fractions(Fraction(1, 1000), 20, max_denominator=1000),
    )
    def test_takes_the_first_frame_of_each_span(self, gaps: list[int], start: int, span: Fraction) -> None:
        times = [start]
        for gap in gaps:
            times.append(times[-1] + gap)
        clock = Fraction(1, 1000)
        seconds = [(time - start) * clock for time in times]
        expected = [index for index, now in enumerate(seconds) if all(now // span != before // span for before in seconds[:index])]
        assert Every(seconds=span).of(times, clock) == expected

    def test_counts_frames(self, films: Path) -> None:
        video = opened(films / "h264.mp4")
        assert video.chosen(Every(7)) == [0, 7, 14, 21, 28]
        assert video.chosen(Every.parse("0.5s")) == [0, 13, 25]
        assert video.chosen(Every()) == [0, 25]
        video.close()


def test_suffixes_are_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in VIDEO_SUFFIXES)
