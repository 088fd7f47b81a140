"""A large image over HTTP: the answers are the library's on the same tiles, in three forms, and nothing comes in that should not."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from hqtl_common import HybridClassifier, ModelBundle
from hqtl_common.rasters import open_raster
from hqtl_common.tiles import read_tile, tile_grid
from serving import inspect_routes
from serving.app import create_app
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from tests.asgi import Client

OCTETS = {"content-type": "application/octet-stream"}


def wall(width: int = 700, height: int = 500, seed: int = 0) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(values: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **options)
    return buffer.getvalue()


def geotiff(values: NDArray[Any], path: Path, code: int) -> bytes:
    tags = [
        (33550, "d", 3, (0.125, 0.125, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 10.0, 50.0, 0.0), True),
        (34735, "H", 12, (1, 1, 0, 2, 1024, 0, 1, 2 if code == 4326 else 1, 2048 if code == 4326 else 3072, 0, 1, code), True),
    ]
    tifffile.imwrite(path, values, photometric="minisblack" if values.ndim == 2 else "rgb", extratags=tags)
    return path.read_bytes()


@pytest.fixture(scope="module")
def client(bundle: ModelBundle) -> Iterator[Client]:
    limits = {"max_inspect_bytes": 4_000_000, "max_inspect_pixels": 1_000_000, "max_tiles": 40, "max_total_shots": 10_000}
    predictor = Predictor(ServiceSettings(bundle=bundle.path, threads=1, decoders=1, **limits))
    app = create_app(predictor, None)
    yield Client(app)
    app.state.inspector.close()
    predictor.close()


def inspect(client: Client, data: bytes, accept: str = "", **query: Any) -> Any:
    return client.post("/v1/inspect", params=query, content=data, headers={**OCTETS, "accept": accept})


@pytest.mark.parametrize(("tile", "stride"), [(224, 224), (300, 150), (1000, 1000)])
def test_tiles_are_those_of_the_library(client: Client, bundle: ModelBundle, tmp_path: Path, tile: int, stride: int) -> None:
    path = tmp_path / "wall.png"
    path.write_bytes(encoded(wall()))
    answer = inspect(client, path.read_bytes(), tile=tile, stride=stride)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    grid = tile_grid(700, 500, tile, stride, edges="pad")
    with open_raster(path) as raster:
        whole = len(grid) == 1
        windows = [raster.read(0, 0, 700, 500)] if whole else [read_tile(raster, x, y, tile) for x, y in grid]
    with HybridClassifier(bundle, threads=1) as classifier:
        expected = classifier.predict_many([encoded(np.asarray(window)) for window in windows])
    assert [one["probabilities"] for one in found["tiles"]] == [pytest.approx(one.probabilities, abs=1e-5) for one in expected]
    assert [(one["x"], one["y"]) for one in found["tiles"]] == list(grid)
    assert (found["width"], found["height"], found["label"]) == (700, 500, "crack")
    assert sum(one["width"] * one["height"] for one in found["tiles"]) >= 700 * 500
    assert found["execution"]["num_rows"] == len(grid)


def test_options_are_those_of_a_prediction(client: Client) -> None:
    sampled = inspect(client, encoded(wall()), shots=300, seed=4, threshold=0.9).json()
    assert sampled == {**inspect(client, encoded(wall()), shots=300, seed=4, threshold=0.9).json(), "execution": sampled["execution"]}
    assert all(one["interval"] for one in sampled["tiles"])
    assert [one["label"] == "crack" for one in sampled["tiles"]] == [one["probabilities"]["crack"] >= 0.9 for one in sampled["tiles"]]


def test_a_heat_map(client: Client) -> None:
    by_header, by_option = inspect(client, encoded(wall()), "image/png", stride=112), inspect(client, encoded(wall()), format="png")
    for answer in (by_header, by_option):
        assert answer.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(answer.content)) as drawn:
            assert (drawn.width, drawn.height > 500) == (700, True)


def test_geojson_in_pixels_on_a_map_and_in_longitude_and_latitude(client: Client, tmp_path: Path) -> None:
    plain = inspect(client, encoded(wall()), "application/geo+json").json()
    assert (plain["coordinates"], plain["coordinate_system"], len(plain["features"])) == ("pixels", None, 12)
    assert plain["features"][0]["geometry"]["coordinates"] == [[[0, 0], [0, 224], [224, 224], [224, 0], [0, 0]]]
    placed = inspect(client, geotiff(wall(), tmp_path / "a.tif", 4326), format="geojson").json()
    assert (placed["type"], placed["coordinates"]) == ("FeatureCollection", "lonlat")
    assert placed["features"][0]["geometry"]["coordinates"][0][:3] == [[10, 50], [10, 22], [38, 22]]
    assert [one["properties"] for one in placed["features"]] == [one["properties"] for one in plain["features"]]
    unknown = inspect(client, geotiff(wall()[..., 0], tmp_path / "b.tif", 1), format="geojson").json()
    assert (unknown["coordinates"], unknown["features"][0]["geometry"]["coordinates"][0][0]) == ("map", [10, 50])


def test_deep_grey_is_not_cut_to_eight_bits(client: Client) -> None:
    low = (wall()[..., 0].astype(np.uint16) << 4) + 7  # all within the lowest sixteenth
    tiles = inspect(client, encoded(low, "TIFF")).json()["tiles"]
    assert len({one["probability"] for one in tiles}) > 1
    assert inspect(client, encoded(low, "TIFF"), "image/png").status_code == 200


ROTATED = Image.Exif()
ROTATED[0x0112] = 6


def test_a_rotated_photograph_stands_upright(client: Client) -> None:
    answer = inspect(client, encoded(wall(), "JPEG", exif=ROTATED.tobytes())).json()
    assert (answer["width"], answer["height"]) == (500, 700)


@pytest.mark.parametrize(
    ("data", "query", "status", "code"),
    [
        (b"", {}, 422, "image_decode"),
        (b"GIF89a" + bytes(50), {}, 415, "unknown_image_format"),
        (encoded(wall())[:5000], {}, 422, "image_decode"),
        (encoded(np.zeros((1001, 1000), np.uint8)), {}, 413, "too_large"),
        (bytes(4_000_001), {}, 413, "too_large"),
        (encoded(wall()), {"tile": 64}, 413, "too_large"),
        (encoded(wall()), {"tile": 15}, 422, "field"),
        (encoded(wall()), {"stride": 0}, 422, "field"),
        (encoded(wall()), {"stride": 225}, 422, "field"),
        (encoded(wall()), {"format": "gif"}, 422, "field"),
        (encoded(wall()), {"shots": "1000"}, 422, "field"),  # × 12 tiles
        (encoded(wall()), {"colour": "red"}, 422, "field"),
        (encoded(wall()), {"webhook": "https://example.org/"}, 422, "field"),
        (encoded(wall()), {"backend": "ibm:ibm_fez"}, 422, "field"),
        (encoded(wall()), {"backend": "quantum"}, 422, "unknown_backend"),
        (encoded(wall()), {"deadline_s": "1000"}, 422, "field"),
    ],
)
def test_what_cannot_be_used_is_refused(client: Client, data: bytes, query: dict[str, Any], status: int, code: str) -> None:
    answer = inspect(client, data, **query)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def test_large_images_hold_their_room_to_the_end_and_nobody_else_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing, drawn = threading.Semaphore(0), threading.Event()

    def draw(*values: Any) -> Any:
        drawing.release()
        assert drawn.wait(300)
        return render(*values)

    render = inspect_routes._render
    monkeypatch.setattr(inspect_routes, "_render", draw)

    async def ask(caller: httpx.AsyncClient, edge: int = 990) -> httpx.Response:  # of a million pixels, two of which have room
        return await caller.post("/v1/inspect", content=encoded(wall(1000, edge)), headers=OCTETS)

    async def run() -> list[int]:
        async with client.connect() as caller:
            held = [asyncio.create_task(ask(caller)) for _ in range(2)]
            try:
                for _ in held:
                    assert await asyncio.to_thread(drawing.acquire, timeout=300)
                answers = [await caller.get("/livez"), await ask(caller)]
                held.append(asyncio.create_task(ask(caller, 10)))
                assert await asyncio.to_thread(drawing.acquire, timeout=300)
            finally:
                drawn.set()
            return [one.status_code for one in (*answers, *await asyncio.gather(*held), await ask(caller))]

    assert asyncio.run(run()) == [200, 429, 200, 200, 200, 200]


def test_only_the_bytes_of_an_image_come_in(client: Client) -> None:
    for headers in ({}, {"content-type": "application/json"}, {**OCTETS, "content-encoding": "gzip"}):
        answer = client.post("/v1/inspect", content=b'{"url": "http://169.254.169.254/"}', headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "media_type")


def test_an_answer_is_as_the_document_says(client: Client) -> None:
    schemas = client.app.openapi()["components"]["schemas"]
    answer = inspect(client, encoded(wall())).json()
    assert set(answer) == set(schemas["InspectAnswer"]["properties"])
    assert set(answer["tiles"][0]) == set(schemas["_Tile"]["properties"])
    assert json.dumps(client.app.openapi()).count("application/geo+json") == 1
