"""When and where a photograph or video was taken."""

from __future__ import annotations

import io

import pytest
from PIL import ExifTags, Image

from serving.photo_header import PhotoHeader, header_of, header_of_video


def photo(latitude: str, longitude: str) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: latitude, 2: (33.0, 30.0, 36.0), 3: longitude, 4: (151.0, 15.0, 0.0)})
    data = io.BytesIO()
    Image.new("L", (3, 2)).save(data, "JPEG", exif=exif)
    return data.getvalue()


@pytest.mark.parametrize(("south", "north"), [("S", -1), ("N", 1)])
@pytest.mark.parametrize(("west", "east"), [("W", -1), ("E", 1)])
def test_hemispheres(south: str, north: int, west: str, east: int) -> None:
    found = header_of(photo(south, west))
    assert (found.width, found.height) == (3, 2)
    assert (found.longitude, found.latitude) == (151.25 * east, 33.51 * north)


@pytest.mark.parametrize("letters", [("", "E"), ("S", ""), ("X", "E"), ("S", "N")])
def test_a_position_without_its_hemisphere_is_not_guessed(letters: tuple[str, str]) -> None:
    assert header_of(photo(*letters)) == PhotoHeader(3, 2)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"location": "+48.5000+011.2500/"}, (None, 11.25, 48.5)),
        ({"com.apple.quicktime.location.ISO6709": "-33.8568+151.2153+012.3/"}, (None, 151.2153, -33.8568)),
        ({"location": "+91.0+011.2500/"}, (None, None, None)),
        ({"location": "+4830.5+01115.2/"}, (None, None, None)),  # minutes
        ({"location": "in the north"}, (None, None, None)),
        ({"creation_time": "2025-03-04T05:06:07.250000Z"}, ("2025-03-04T05:06:07+00:00", None, None)),
        ({"creation_time": "2025-03-04T05:06:07"}, ("2025-03-04T05:06:07", None, None)),
        ({"creation_time": "1904-01-01T00:00:00.000000Z"}, (None, None, None)),
        ({"creation_time": "1970-01-01T00:00:00.000000Z"}, (None, None, None)),
        ({"creation_time": "yesterday"}, (None, None, None)),
        ({}, (None, None, None)),
    ],
)
def test_what_containers_say(about: dict[str, str], expected: tuple[str | None, float | None, float | None]) -> None:
    found = header_of_video(about)
    assert (found.taken, found.longitude, found.latitude) == expected
    assert found.width is None
