"""The HTTP routes. Bytes come in and JSON goes out; no address is ever fetched and nothing is unpickled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

import hqtl_common
from serving.errors import DeadlineError, OverloadedError, SlowClientError
from serving.forms import read_parts
from serving.http_errors import install
from serving.predictor import Predictor

__all__ = ["create_app"]

_ROUTES = ("POST /v1/predict", "GET /v1/model", "GET /v1/backends", "GET /v1/openapi.json", "GET /livez", "GET /readyz", "GET /metrics")

_ADDRESSES: dict[str, Any] = {"openapi_url": "/v1/openapi.json", "docs_url": None, "redoc_url": None, "redirect_slashes": False}

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "additionalProperties": False,
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
                        "backend": {"type": "string"},
                        "shots": {"type": "integer", "minimum": 1},
                        "seed": {"type": "integer", "minimum": 0},
                        "threshold": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                    },
                }
            }
        },
    }
}


def create_app(predictor: Predictor) -> FastAPI:
    """The application of one predictor; whoever made the predictor closes it."""
    app = FastAPI(title="hqtl", version=hqtl_common.__version__, **_ADDRESSES)
    desk = _Desk(predictor)
    manifest, offered = predictor.bundle.manifest.model_dump(mode="json", by_alias=True), predictor.describe_backends()

    @app.get("/", summary="Where things are")
    async def index() -> dict[str, Any]:
        return {"service": "hqtl", "version": hqtl_common.__version__, "routes": [*_ROUTES]}

    @app.post("/v1/predict", openapi_extra=_FORM, summary="Classify one or more images")
    async def predict(request: Request) -> JSONResponse:
        return JSONResponse(await desk.answer(request))

    @app.get("/v1/model", summary="The manifest of the bundle")
    async def model() -> JSONResponse:
        return JSONResponse(manifest)

    @app.get("/v1/backends", summary="The backends on offer and what each can do")
    async def backends() -> JSONResponse:
        return JSONResponse(offered)

    install(app)
    return app


class _Desk:
    """Takes predictions in: bounds how many are in work, and the time of each."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._settings = predictor.settings
        self._in_work = 0

    async def answer(self, request: Request) -> dict[str, Any]:
        """Read one request and answer it.

        Raises:
            OverloadedError: Too many requests are in work.
            SlowClientError: The deadline came while the client was still sending.
            DeadlineError: It came while the service was working.
            HqtlError: See :meth:`serving.intake.Intake.read` and :meth:`serving.predictor.Predictor.predict`.
        """
        if self._in_work >= self._settings.max_requests:
            raise OverloadedError(f"{self._in_work} requests are in work, the limit of this service; try again later")
        arrival = _Arrival(request.stream())
        self._in_work += 1
        try:
            async with asyncio.timeout(self._settings.deadline_s) as deadline:
                asked = await self._predictor.intake.read(read_parts(request.headers, arrival.chunks(), self._settings))
                return await self._predictor.predict(asked)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            limit = f"within {self._settings.deadline_s:g} s, the limit of this service"
            if arrival.waiting:
                raise SlowClientError(f"the body did not arrive {limit}") from error
            raise DeadlineError(f"the request was not done {limit}; send fewer images or shots") from error
        finally:
            self._in_work -= 1


class _Arrival:
    """The body of a request; ``waiting`` while the next chunk is the client's to send."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self.waiting = False

    async def chunks(self) -> AsyncIterator[bytes]:
        self.waiting = True
        async for chunk in self._body:
            self.waiting = False
            yield chunk
            self.waiting = True
        self.waiting = False
