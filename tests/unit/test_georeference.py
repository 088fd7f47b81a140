"""Map coordinates of pixels, against rasterio."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hqtl_common.errors import ConfigError, ImageDecodeError, InputError
from hqtl_common.georeference import GeoReference, read_georeference
from hqtl_common.rasters import open_raster

rasterio = pytest.importorskip("rasterio", reason="needs rasterio, the independent reader of GeoTIFF")

NORTH_UP = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_400_000.0)
TURNED = (0.4, 0.3, 500_000.0, 0.3, -0.4, 5_400_000.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 300, 400), dtype=np.uint8)


def geotiff(path: Path, transform: tuple[float, ...] | None, crs: str | None, **options: Any) -> Path:
    profile: dict[str, Any] = {"driver": "GTiff", "width": 400, "height": 300, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    place = {} if transform is None else {"transform": rasterio.Affine(*transform), "crs": crs}
    with rasterio.open(path, "w", **profile, **place, **options) as file:
        file.write(PIXELS)
    return path


def reference_of(path: Path) -> GeoReference | None:
    with open_raster(path) as raster:
        return raster.georeference


@pytest.mark.parametrize("transform", [NORTH_UP, TURNED])
@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:3857"])
@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate", "BIGTIFF": "YES"}])
def test_position_and_pixels_are_those_of_rasterio(tmp_path: Path, transform: tuple[float, ...], crs: str, options: dict[str, Any]) -> None:
    path = geotiff(tmp_path / "a.tif", transform, crs, **options)
    reference = reference_of(path)
    assert reference is not None
    assert reference.crs == crs
    with rasterio.open(path) as file, open_raster(path) as raster:
        for point in ((0, 0), (17.5, 230.25)):
            assert reference.map_point(*point) == pytest.approx(file.transform @ point, rel=1e-12)
        window = file.read(window=((100, 220), (30, 290)))
        assert np.array_equal(np.moveaxis(raster.read(30, 100, 260, 120), 2, 0), window)


def test_longitude_and_latitude(tmp_path: Path) -> None:
    reference = reference_of(geotiff(tmp_path / "a.tif", NORTH_UP, "EPSG:32632"))
    assert reference is not None
    ((longitude, latitude),) = reference.lonlat([(0, 0)])
    assert longitude == pytest.approx(9.0, abs=1e-9)  # 500 km east is the meridian of zone 32
    assert latitude == pytest.approx(48.75301, abs=1e-5)
    assert reference.lonlat([]) == []
    assert GeoReference((1, 0, 9.5, 0, -1, 48), "EPSG:4326").lonlat([(1, 1)]) == [(10.5, 47)]


def test_a_system_without_a_number_is_spelled_out(tmp_path: Path) -> None:
    reference = reference_of(geotiff(tmp_path / "a.tif", NORTH_UP, "+proj=tmerc +lat_0=1 +lon_0=9 +ellps=bessel"))
    assert reference is not None
    assert reference.crs is not None
    assert "Transverse_Mercator" in reference.crs
    assert reference.lonlat([(0, 0)])[0][1] == pytest.approx(49.6, abs=0.2)


def test_pixels_that_are_points_lie_half_a_pixel_off() -> None:
    tags = {"ModelPixelScale": [2, 2, 0], "ModelTiepoint": [0, 0, 0, 100, 50, 0], "ProjectedCSTypeGeoKey": 32632}
    area, point = (read_georeference(tags | {"GTRasterTypeGeoKey": kind}, Path()) for kind in (1, 2))
    assert area is not None
    assert point is not None
    assert area.map_point(0, 0) == point.map_point(0.5, 0.5) == (100, 50)


def test_a_picture_without_a_position_has_none(tmp_path: Path) -> None:
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        path = geotiff(tmp_path / "a.tif", None, None)
    assert reference_of(path) is None


def test_holes_of_a_sparse_file_are_empty(tmp_path: Path) -> None:
    options = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate", "SPARSE_OK": True}
    profile = {"driver": "GTiff", "width": 400, "height": 300, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=rasterio.Affine(*NORTH_UP), crs="EPSG:32632", **options) as file:
        file.write(PIXELS[0, :128, :128], 1, window=((0, 128), (0, 128)))
    with open_raster(tmp_path / "a.tif") as raster:
        window = raster.read(0, 0, 400, 300)
    assert np.array_equal(window[:128, :128], PIXELS[0, :128, :128])
    assert not window[128:].any()


@pytest.mark.parametrize(("crs", "message"), [(None, "names no coordinate system"), ("EPSG:1", "unknown coordinate system 'EPSG:1'")])
def test_a_system_that_does_not_serve_is_refused(crs: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GeoReference(NORTH_UP, crs).lonlat([(0, 0)])


@pytest.mark.parametrize(
    ("transform", "crs", "message"),
    [
        (NORTH_UP, 'LOCAL_CS["bridge deck",UNIT["metre",1]]', "cannot be converted"),
        ((1, 0, 1e20, 0, -1, 5), "EPSG:32633", "cannot be converted|no places on the earth"),
        (NORTH_UP, "EPSG:4326", "no places on the earth"),
    ],
)
def test_coordinates_that_are_nowhere_are_refused(transform: tuple[float, ...], crs: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GeoReference(transform, crs).lonlat([(0, 0), (300, 300)])


def test_an_image_across_the_180th_meridian_stays_in_one_piece() -> None:
    found = GeoReference((1, 0, 165_900, 0, -1, 100_000), "EPSG:32601").lonlat([(0, 0), (1000, 0), (1000, 900), (0, 900)])
    assert [longitude for longitude, _ in found] == pytest.approx([179.9985, 180.0075, 180.0075, 179.9985], abs=1e-4)


def test_a_system_without_a_number_of_a_file_with_an_odd_name(tmp_path: Path) -> None:
    path = geotiff(tmp_path / "a.tif", NORTH_UP, "+proj=tmerc +lat_0=1 +lon_0=9 +ellps=bessel")
    odd = path.rename(tmp_path / "n\udcff\n.tif")
    found = reference_of(odd)
    assert found is not None
    assert "Transverse_Mercator" in (found.crs or "")


@pytest.mark.parametrize("place", [float("nan"), float("inf"), -1e300])
def test_a_position_that_is_no_number_is_none(place: float) -> None:
    assert read_georeference({"ModelPixelScale": [2, 2, 0], "ModelTiepoint": [0, 0, 0, place, 50, 0]}, Path()) is None


def test_damaged_tags_are_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = geotiff(tmp_path / "a.tif", NORTH_UP, "EPSG:32632")
    monkeypatch.setattr("hqtl_common.tiff_windows.read_georeference", lambda tags, path: tags["ModelTransformation"])
    with pytest.raises(ImageDecodeError, match="damaged"):
        reference_of(path)


def test_without_rasterio_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio.warp", None)
    with pytest.raises(ConfigError, match="need the package rasterio"):
        GeoReference(NORTH_UP, "EPSG:32632").lonlat([(0, 0)])
