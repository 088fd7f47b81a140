"""The routes of jobs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse

from serving.desk import Desk
from serving.jobs.answers import EstimateAnswer, JobAnswer, JobsAnswer
from serving.jobs.records import State
from serving.openapi import errors, predict_body
from serving.queries import query_fields, query_options
from serving.settings import ServiceSettings

__all__ = ["IDEMPOTENCY_KEY", "LOCATION", "add_job_routes"]

IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"},
    "description": "The client's own name for the request: sent again with the same name, it gives the same job",
}
LOCATION = {"Location": {"description": "Of the job", "schema": {"type": "string"}}}
_LISTED = ("state", "before", "limit")
_ESTIMATED = ("backend", "shots", "mitigation")
_ASKING = (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503, 504)


def add_job_routes(app: FastAPI, desk: Desk, settings: ServiceSettings) -> None:
    """``/v1/jobs`` and ``/v1/estimate``."""
    kept: dict[int | str, dict[str, Any]] = {
        202: {"model": JobAnswer, "headers": LOCATION, "description": "Kept; its answer comes later"},
        200: {"model": JobAnswer, "headers": LOCATION, "description": "Kept before under this Idempotency-Key, and finished"},
    }
    body = predict_body(settings)
    parameters = body["parameters"]
    body["parameters"] = [*parameters, IDEMPOTENCY_KEY]

    @app.post("/v1/jobs", summary="Keep a request as a job", status_code=202, openapi_extra=body, responses={**kept, **errors(*_ASKING)})
    async def submit(request: Request) -> JSONResponse:
        reply = await desk.submit(request)
        return JSONResponse(reply.body, reply.status, reply.headers)

    @app.get("/v1/jobs", summary="The jobs of the key", responses={200: {"model": JobsAnswer}, **errors(400, 401, 403, 404, 422, 429, 503)})
    async def jobs(
        request: Request,
        state: State | None = None,
        before: Annotated[str | None, Query(min_length=1, max_length=64, description="The id of a job: only earlier ones")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> JSONResponse:
        query_fields(request, _LISTED)
        return JSONResponse(await desk.office.listing(request.state.key, state, before, limit))

    @app.get("/v1/jobs/{job_id}", summary="A job", responses={200: {"model": JobAnswer}, **errors(401, 403, 404, 422, 429, 503)})
    async def job(request: Request, job_id: str) -> JSONResponse:
        return JSONResponse(await desk.office.find(request.state.key, job_id))

    @app.delete(
        "/v1/jobs/{job_id}",
        summary="Cancel a job",
        responses={
            200: {"model": JobAnswer, "description": "Cancelled"},
            202: {"model": JobAnswer, "description": "The provider is being asked to cancel it"},
            **errors(401, 403, 404, 409, 422, 429, 503),
        },
    )
    async def cancel(request: Request, job_id: str) -> JSONResponse:
        found = await desk.office.cancel(request.state.key, job_id)
        return JSONResponse(found, 200 if found["state"] == "cancelled" else 202)

    @app.get(
        "/v1/estimate",
        summary="What a request would cost",
        responses={200: {"model": EstimateAnswer}, **errors(400, 401, 403, 404, 422, 429, 503)},
        openapi_extra={"parameters": [one for one in parameters if one["name"] in _ESTIMATED]},
    )
    async def estimate(request: Request, images: int = Query(1, ge=1, le=settings.max_images)) -> JSONResponse:
        options = query_options(request, _ESTIMATED, ("images",))
        return JSONResponse(await desk.office.estimate(request.state.key, options, images))
