"""``POST /v1/inspect``: a large image as per-tile answers, as GeoJSON, or as a heat map."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import BaseModel, ConfigDict

from hqtl_common.errors import HqtlError
from hqtl_common.records import ExecutionRecord
from serving.bodies import OCTETS
from serving.desk import Desk
from serving.errors import MediaTypeError
from serving.inspection import Inspected, Inspector
from serving.intake import PredictRequest
from serving.limits import refuse_paid
from serving.openapi import RuntimeAnswer, errors, predict_body
from serving.predictor import Predictor
from serving.queries import query_options
from serving.report.heatmaps import draw_map, png_of
from serving.report.regions import find_regions

__all__ = ["InspectAnswer", "add_inspect_route"]

Form = Literal["json", "geojson", "png"]

_OPTIONS = ("backend", "shots", "seed", "threshold", "mitigation", "deadline_s")
_OWN = ("tile", "stride", "format")
_TYPES: dict[str, Form] = {"application/geo+json": "geojson", "image/png": "png"}
_PICTURE_EDGE = 2048
_KEPT = ("label", "probability", "probabilities", "interval", "familiarity", "review")


class _Tile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    x: int
    y: int
    width: int
    height: int
    label: str
    probability: float
    probabilities: dict[str, float]
    interval: tuple[float, float] | None
    familiarity: float | None
    review: list[str]


class InspectAnswer(BaseModel):
    """The tiles of an image row by row, in its pixels; ``label`` is the positive one."""

    model_config = ConfigDict(extra="forbid")

    width: int
    height: int
    label: str
    tiles: list[_Tile]
    execution: ExecutionRecord
    runtime: RuntimeAnswer


class _Features(BaseModel):
    type: Literal["FeatureCollection"]
    coordinates: Literal["lonlat", "pixels", "map"]
    coordinate_system: str | None
    features: list[dict[str, Any]]


def add_inspect_route(app: FastAPI, desk: Desk, predictor: Predictor, inspector: Inspector) -> None:
    """``POST /v1/inspect``."""
    listed = [one for one in predict_body(predictor.settings)["parameters"] if one["name"] in _OPTIONS]
    image = {"type": "string", "format": "binary", "description": "PNG, JPEG, TIFF, BMP or WebP, told by its content"}
    done = {
        "model": InspectAnswer,
        "content": {
            "application/geo+json": {"schema": _Features.model_json_schema()},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
        },
    }

    @app.post(
        "/v1/inspect",
        summary="Classify a large image tile by tile",
        openapi_extra={"parameters": listed, "requestBody": {"required": True, "content": {OCTETS: {"schema": image}}}},
        responses={200: done, **errors(400, 401, 403, 408, 413, 415, 422, 429, 502, 503, 504)},
    )
    async def inspect(
        request: Request,
        tile: Annotated[int, Query(ge=16, le=8192, description="Edge of a tile in pixels")] = predictor.bundle.preprocess.size,
        stride: Annotated[int | None, Query(ge=1, le=8192, description="From tile to tile; the edge if left out")] = None,
        form: Annotated[Form | None, Query(alias="format", description="In place of the header Accept")] = None,
    ) -> Response:
        options = query_options(request, _OPTIONS, _OWN)
        refuse_paid(predictor.backend_of(options))
        _check_type(request)
        wanted = form or _TYPES.get(request.headers.get("accept", "").partition(",")[0].partition(";")[0].strip(), "json")

        async def answer(asked: PredictRequest) -> Response:
            return await asyncio.to_thread(_render, await inspector.inspect(asked), wanted, predictor, options.threshold)

        with ExitStack() as held:
            read = partial(inspector.read, options=options, tile=tile, stride=stride or tile, held=held)
            return await desk.work_on(request, read, answer)


def _render(found: Inspected, form: Form, predictor: Predictor, threshold: float | None) -> Response:
    """The answer in one of its forms; takes seconds where the image is large."""
    manifest = predictor.bundle.manifest
    if form == "png":
        return Response(_heat_map(found, manifest.positive_label, threshold or manifest.threshold), media_type="image/png")
    if form == "geojson":
        return JSONResponse(_geojson(found), media_type="application/geo+json")
    return JSONResponse({**_tiles(found, manifest.positive_label), "runtime": predictor.runtime})


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != OCTETS or request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError(f"the body must be the bytes of one image as {OCTETS}, not compressed; got {kind or 'no content type'!r}")


def _boxes(found: Inspected) -> list[tuple[int, int, int, int]]:
    """Left, upper edge, width and height of each tile, as far as it lies in the image."""
    grid = found.grid
    return [(x, y, min(grid.size, grid.width - x), min(grid.size, grid.height - y)) for x, y in grid]


def _tiles(found: Inspected, positive: str) -> dict[str, Any]:
    tiles = []
    for (x, y, width, height), one in zip(_boxes(found), found.predictions, strict=True):
        values = one.to_dict()
        tiles.append({"x": x, "y": y, "width": width, "height": height, **{name: values[name] for name in _KEPT}})
    about = {"width": found.grid.width, "height": found.grid.height, "label": positive}
    return {**about, "tiles": tiles, "execution": found.execution.to_dict()}


def _geojson(found: Inspected) -> dict[str, Any]:
    """A polygon per tile: in longitude and latitude where the image knows them, else in its map's or its own pixels' unit."""
    place, rings = found.image.georeference, [_ring(*box) for box in _boxes(found)]
    kind, crs = ("pixels", None) if place is None else ("map", place.crs)
    if place is not None:
        try:
            flat = iter(place.lonlat([point for ring in rings for point in ring]))
            rings, kind, crs = [[next(flat) for _ in ring] for ring in rings], "lonlat", "OGC:CRS84"
        except HqtlError:  # no coordinate system, or none that can be converted here
            rings = [[place.map_point(x, y) for x, y in ring] for ring in rings]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[list(point) for point in ring]]},
            "properties": {"label": one.label, "probabilities": one.probabilities, "review": list(one.review)},
        }
        for ring, one in zip(rings, found.predictions, strict=True)
    ]
    return {"type": "FeatureCollection", "coordinates": kind, "coordinate_system": crs, "features": features}


def _ring(x: int, y: int, width: int, height: int) -> list[tuple[float, float]]:
    """Counter-clockwise where y points up, as on a map; closed."""
    left, upper, right, lower = float(x), float(y), float(x + width), float(y + height)
    return [(left, upper), (left, lower), (right, lower), (right, upper), (left, upper)]


def _heat_map(found: Inspected, positive: str, threshold: float | None) -> bytes:
    scores = np.array([one.probabilities[positive] for one in found.predictions])
    marked = np.array([one.label == positive for one in found.predictions])
    return png_of(draw_map(_picture(found), found.grid, scores, find_regions(found.grid, marked), positive, threshold))


def _picture(found: Inspected) -> Image.Image:
    """The image in mode RGB, small enough to be looked at; deep grey stretched to what it holds."""
    values = found.image.values
    step = max(1, -(-max(values.shape[:2]) // _PICTURE_EDGE))
    picture = Image.fromarray(values).reduce(step) if step > 1 else Image.fromarray(values)
    if picture.mode == "F":
        shown = np.asarray(picture)
        low, high = np.percentile(shown, (0.5, 99.5))
        picture = Image.fromarray(np.clip((shown - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8))
    return picture.convert("RGB")
