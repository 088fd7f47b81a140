"""Reading a form while it arrives: any cut of the stream gives the same parts, and every limit holds."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import BodyError, FieldError, MediaTypeError, RejectedImageError, TooLargeError
from serving.forms import FormReader, Part, PredictOptions, read_parts
from serving.settings import ServiceSettings

BOUNDARY = b"cut-here"
SETTINGS = ServiceSettings(bundle=Path("b"), max_images=3, max_bytes=1000, max_body_bytes=5000)


def file_part(data: bytes, disposition: bytes = b'name="image"; filename="a.png"') -> bytes:
    return b"--cut-here\r\nContent-Disposition: form-data; " + disposition + b"\r\nContent-Type: text/evil\r\n\r\n" + data + b"\r\n"


def field_part(name: str, value: str) -> bytes:
    return f'--cut-here\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--cut-here--\r\n"


def read(chunks: Iterable[bytes], settings: ServiceSettings = SETTINGS) -> list[Part]:
    reader = FormReader(BOUNDARY, settings)
    parts = [part for chunk in chunks for part in reader.feed(chunk)]
    reader.finish()
    return parts


def read_async(body: bytes, **headers: str) -> list[Part]:
    async def arrive() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    async def collect() -> list[Part]:
        return [part async for part in read_parts({name.replace("_", "-"): value for name, value in headers.items()}, arrive(), SETTINGS)]

    return asyncio.run(collect())


@given(
    images=st.lists(st.binary(max_size=300), max_size=3),
    cuts=st.lists(st.integers(0, 1500), max_size=12),
    tricky=st.sampled_from([b"", b"\r\n", b"\r\n--cut-her", b"\r\n--cut-here", b"--cut-here--"]),
)
def test_the_cut_of_the_stream_does_not_matter(images: list[bytes], cuts: list[int], tricky: bytes) -> None:
    images = [image.replace(b"\r\n--cut-here", b"") + tricky.removesuffix(b"\r\n--cut-here") for image in images]
    body = form(field_part("seed", "7"), *(file_part(image) for image in images))
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    parts = read(body[a:b] for a, b in itertools.pairwise(places))
    assert [(part.name, part.filename) for part in parts] == [("seed", None)] + [("image", "a.png")] * len(images)
    assert [bytes(part.data) for part in parts] == [b"7", *images]


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ('name="image"; filename="Riß.png"'.encode(), "Riß.png"),
        (b'name="image"; filename="Ri\xdf.png"', "Riß.png"),
        (b"name=\"image\"; filename*=utf-8''Ri%C3%9F.png", "Riß.png"),
        (b'name=image; filename="a\\"b.png"', 'a"b.png'),
        (b'name="image"; filename=""', ""),
        (b'name="image"; filename="../../etc/passwd"', "../../etc/passwd"),
    ],
)
def test_names_of_files(disposition: bytes, filename: str) -> None:
    assert [part.filename for part in read([form(file_part(b"x", disposition))])] == [filename]


@pytest.mark.parametrize(
    ("body", "expected", "message"),
    [
        (form(field_part("image", "http://example.org/a.png")), FieldError, "'image': must be a file.*got text"),
        (
            form(field_part("colour", "red")),
            FieldError,
            "'colour': is unknown; known are image, backend, shots, max_shots, seed, threshold, mitigation",
        ),
        (form(field_part("seed", "1"), field_part("seed", "1")), FieldError, "'seed': is given twice"),
        (form(file_part(b"1", b'name="seed"; filename="s"')), FieldError, "'seed': must be text; got a file"),
        (form(field_part("backend", "x" * 1025)), FieldError, "'backend': must have at most 1,024 bytes"),
        (form(*[file_part(b"x")] * 4), TooLargeError, "more than 3 images"),
        (form(file_part(b"x"), file_part(b"x" * 1001)), RejectedImageError, r"image 1 \('a.png'\): the image has more than 1,000 bytes"),
        (form(file_part(b"x", b'filename="a"')), BodyError, "no name"),
        (b"", BodyError, "ends before the closing boundary"),
        (form(file_part(b"x"))[:-6], BodyError, "ends before the closing boundary"),
        (b"hello", BodyError, "not a multipart form"),
        (b"--cut-here\r\nno header\r\n\r\n", BodyError, "not a multipart form"),
        (b"--cut-here\r\n" + b"a: b\r\n" * 1000, BodyError, "not a multipart form"),
        (b"--cut-here\r\na: " + b"b" * 100_000, BodyError, "not a multipart form"),
    ],
)
def test_refusals(body: bytes, expected: type[Exception], message: str) -> None:
    with pytest.raises(expected, match=message):
        read([body])
    with pytest.raises(expected, match=message):
        read([body[k : k + 7] for k in range(0, len(body), 7)])


class TestReadParts:
    multipart = "multipart/form-data; boundary=cut-here"

    def test_a_good_form(self) -> None:
        assert [part.name for part in read_async(form(file_part(b"x"), field_part("seed", "1")), content_type=self.multipart)] == [
            "image",
            "seed",
        ]

    @pytest.mark.parametrize("kind", [None, "", "application/json", "image/png", "multipart/mixed; boundary=cut-here", "multipart"])
    def test_other_types_are_refused(self, kind: str | None) -> None:
        with pytest.raises(MediaTypeError, match=r"must be multipart/form-data .* or one image as application/octet-stream"):
            read_async(b"{}", **({} if kind is None else {"content_type": kind}))

    @pytest.mark.parametrize("kind", [multipart, "application/octet-stream"])
    def test_compression_is_refused(self, kind: str) -> None:
        with pytest.raises(MediaTypeError, match="must not be compressed; got the content encoding 'gzip'"):
            read_async(b"", content_type=kind, content_encoding="gzip")

    @pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "x" * 1000])
    def test_a_boundary_is_needed(self, boundary: str) -> None:
        with pytest.raises(BodyError, match="boundary"):
            read_async(b"", content_type=f"multipart/form-data{boundary}")

    @pytest.mark.parametrize("headers", [{"content_length": "5001"}, {"content_length": "9" * 5000}, {"content_length": "10"}, {}])
    def test_the_body_is_bounded_whatever_its_header_says(self, headers: dict[str, str]) -> None:
        with pytest.raises(TooLargeError, match="5,000 bytes"):
            read_async(form(*[file_part(b"x" * 1000)] * 3) + b"x" * 2500, content_type=self.multipart, **headers)


class TestOptions:
    def test_values(self) -> None:
        options = PredictOptions.from_fields({"backend": "aer", "shots": "10", "seed": str(2**63 - 1), "threshold": "0.25"})
        assert (options.backend, options.shots, options.seed, options.threshold) == ("aer", 10, 2**63 - 1, 0.25)
        assert PredictOptions.from_fields({}) == PredictOptions()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("backend", ""),
            *(("shots", value) for value in ["", "0", "-1", "1.0", "1e3", "1_000", "ten", " 5", "٣", "9" * 30, "None", "true"]),
            *(("seed", value) for value in ["", "-1", str(2**63), "0x10", "9" * 5000]),
            *(("threshold", value) for value in ["", "0", "1", "-0.5", "nan", "inf", "half", "1e999"]),
        ],
    )
    def test_a_wrong_value_names_the_field(self, field: str, value: str) -> None:
        with pytest.raises(FieldError, match=rf"^field '{field}': must be .*; got ") as caught:
            PredictOptions.from_fields({field: value})
        assert caught.value.field == field
