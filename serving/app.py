"""The HTTP routes, behind one door. Bytes come in and JSON goes out; no address is ever fetched and nothing is unpickled."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

import hqtl_common
from hqtl_common.errors import ConfigError
from serving.auth import Authenticate
from serving.desk import PREDICT, Desk
from serving.http_errors import install
from serving.inspect_routes import add_inspect_route
from serving.inspection import Inspector
from serving.jobs.answers import FallbackAnswer, JobAnswer
from serving.jobs.office import JobOffice
from serving.jobs.routes import IDEMPOTENCY_KEY, LOCATION, add_job_routes
from serving.keys import KeyRing
from serving.machines import Machines, Provider, open_machine
from serving.metrics import CONTENT_TYPE_LATEST
from serving.open_inference import add_open_inference
from serving.openapi import BackendsAnswer, HealthAnswer, IndexAnswer, ModelAnswer, PredictAnswer, describe, errors, predict_body
from serving.predictor import Predictor
from serving.rates import RequestRates
from serving.settings import ServiceSettings
from serving.traffic import Traffic

__all__ = ["create_app", "open_ring"]

_ADDRESSES: dict[str, Any] = {"openapi_url": "/v1/openapi.json", "docs_url": None, "redoc_url": None, "redirect_slashes": False}
_ABOUT = "Classifies photographs with a hybrid quantum bundle: a frozen network, a small quantum circuit on a backend of your choice."


def open_ring(settings: ServiceSettings) -> KeyRing | None:
    """The keys that the settings name; None where they say that there is no authentication.

    Raises:
        ConfigError: The file of the keys cannot be used.
    """
    from serving.keys import default_path

    if settings.insecure_no_auth:
        return None
    path = settings.keys or default_path()
    if not path.exists():
        raise ConfigError(
            f"there is no file of keys {str(path)!r}: make one with hqtl-keys add NAME --file {path}, "
            "or set HQTL_INSECURE_NO_AUTH=1 to serve this machine only"
        )
    return KeyRing(path)


def create_app(predictor: Predictor, ring: KeyRing | None, office: JobOffice | None = None) -> FastAPI:
    """The application of one predictor; whoever made the predictor and the office closes them, and ``app.state.inspector``.

    Args:
        predictor: Answers the requests.
        ring: Who is let in; None serves this machine without authentication.
        office: Keeps jobs; None where there are none.
    """
    app = FastAPI(title="hqtl", version=hqtl_common.__version__, description=_ABOUT, **_ADDRESSES)
    app.state.desk = desk = Desk(predictor, ring, office)
    _add_health(app, desk)
    _add_descriptions(app, desk, predictor)

    _add_predict(app, desk, predictor.settings)
    add_job_routes(app, desk, predictor.settings)
    app.state.inspector = inspector = Inspector(predictor)
    add_inspect_route(app, desk, predictor, inspector)
    add_open_inference(app, desk, predictor)
    describe(app)
    app.add_middleware(Authenticate, ring=ring, rates=RequestRates(_meeting_place()))
    if predictor.settings.ui:
        _add_page(app, predictor, ring)
    install(app)
    app.add_middleware(Traffic, metrics=predictor.metrics)  # the last one is the outermost
    return app


def _open_machine(predictor: Predictor, name: str) -> Provider:
    predictor.load(name)
    return open_machine(name)


def _meeting_place() -> Path | None:
    """A folder that BentoML's workers have in common."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder and Path(folder).is_dir() else None


def _add_page(app: FastAPI, predictor: Predictor, ring: KeyRing | None) -> None:
    from serving.ui.door import PageDoor
    from serving.ui.late import LatePage, check_installed

    def make() -> None:
        from serving.ui.page import mount_page

        mount_page(app, predictor.bundle, predictor.settings)

    check_installed()
    app.add_middleware(LatePage, make=make)
    app.add_middleware(PageDoor, ring=ring, settings=predictor.settings)


def _add_predict(app: FastAPI, desk: Desk, settings: ServiceSettings) -> None:
    kept = {"model": JobAnswer, "headers": LOCATION, "description": "It costs, or was not done in time, and goes on as a job"}
    answers: dict[int | str, dict[str, Any]] = {200: {"model": PredictAnswer | FallbackAnswer}, 202: kept}
    body = predict_body(settings)
    body["parameters"] = [*body["parameters"], IDEMPOTENCY_KEY]

    @app.post(
        PREDICT,
        summary="Classify one or more images",
        openapi_extra=body,
        responses={**answers, **errors(400, 401, 403, 408, 409, 413, 415, 422, 429, 502, 503, 504)},
    )
    async def predict(request: Request) -> JSONResponse:
        reply = await desk.answer(request)
        return JSONResponse(reply.body, reply.status, reply.headers)


def _add_health(app: FastAPI, desk: Desk) -> None:
    @app.get("/livez", summary="The process runs", responses={200: {"model": HealthAnswer}})
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @app.get("/healthz", summary="The process runs", responses={200: {"model": HealthAnswer}})
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @app.get("/readyz", summary="Requests are taken", responses={200: {"model": HealthAnswer}, **errors(503)})
    async def readyz() -> JSONResponse:
        desk.check_ready()
        return JSONResponse({"status": "ready"})


def _add_descriptions(app: FastAPI, desk: Desk, predictor: Predictor) -> None:
    closed = errors(401, 403, 429, 503)
    machines = Machines(partial(_open_machine, predictor))

    @app.get("/", summary="Where things are", responses={200: {"model": IndexAnswer}, **closed})
    async def index() -> JSONResponse:
        paths = app.openapi()["paths"]
        routes = [f"{method.upper()} {path}" for path, operations in paths.items() for method in operations]
        return JSONResponse({"service": "hqtl", "version": hqtl_common.__version__, "routes": [*routes, f"GET {app.openapi_url}"]})

    @app.get("/v1/model", summary="The bundle, and the limits of this service", responses={200: {"model": ModelAnswer}, **closed})
    async def model() -> JSONResponse:
        return JSONResponse(desk.describe_model())

    @app.get(
        "/v1/backends",
        summary="The backends on offer, and which of them the key may use",
        responses={200: {"model": BackendsAnswer}, **closed},
    )
    async def backends(request: Request) -> JSONResponse:
        described = desk.describe_backends(request.state.key)
        return JSONResponse({**described, "backends": await machines.describe(described["backends"])})

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses={**text, **closed})
    def metrics() -> Response:
        return Response(predictor.metrics.render(), media_type=CONTENT_TYPE_LATEST)
