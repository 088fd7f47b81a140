"""The routes of the Open Inference Protocol, for clients of KServe and Triton; its errors are ``{"error": "text"}``."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

import hqtl_common
from serving.desk import Desk
from serving.errors import NotFoundError
from serving.forms import IMAGE_FIELD
from serving.inference import HEAD_LENGTH, PARAMETERS, PIXELS, InferenceCall
from serving.openapi import errors
from serving.predictor import Predictor
from serving.tensors import InferenceHead, Scalar

__all__ = [
    "InferAnswer",
    "LiveAnswer",
    "ModelMetadata",
    "ModelReadyAnswer",
    "ProtocolError",
    "ReadyAnswer",
    "ServerAnswer",
    "TensorMetadata",
    "add_open_inference",
]

_PLATFORM = "hqtl_onnx"
_PATHS = {"/v2/models/{name}": True, "/v2/models/{name}/versions/{version}": False}  # and whether the document shows it


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProtocolError(_Exact):
    """Every error of the protocol; the request's id is in the header X-Request-ID."""

    error: str


class LiveAnswer(_Exact):
    """The process runs."""

    live: Literal[True]


class ReadyAnswer(_Exact):
    """Requests are taken."""

    ready: Literal[True]


class ModelReadyAnswer(ReadyAnswer):
    """The model answers."""

    name: str


class ServerAnswer(_Exact):
    """What this service is."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Exact):
    """One tensor; −1 in its shape is the number of images."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(_Exact):
    """The model: one of the two inputs is given; the last two outputs are there where the backend samples."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: Annotated[dict[str, str], Field(description="classes: the labels in the order of probabilities, as JSON")]


class _OutputAnswer(_Exact):
    name: str
    datatype: Literal["FP32", "FP64", "BYTES"]
    shape: list[int]
    data: list[float] | list[str]


class InferAnswer(_Exact):
    """The tensors, flat in row-major order."""

    model_name: str
    model_version: str
    id: str = ""
    parameters: dict[str, Scalar]
    outputs: list[_OutputAnswer]


def add_open_inference(app: FastAPI, desk: Desk, predictor: Predictor) -> None:
    """Add the routes of the protocol.

    Args:
        app: Where to.
        desk: Takes the requests in.
        predictor: Its bundle is the model, named by ``HQTL_MODEL_NAME``; the version is the beginning of the manifest's hash.
    """
    model = _metadata(predictor)
    _add_health(app, desk, model)

    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        _check(model, name, version)
        call = InferenceCall(predictor, request.headers)
        body, length = call.write(await desk.answer_now(request, call.read), model.name, model.versions[0])
        if length is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={HEAD_LENGTH: str(length)})

    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    responses = {200: {"model": InferAnswer, "content": binary}, **_errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 502, 503, 504)}
    for path, shown in _PATHS.items():
        summary = "Classify images or pixels; also under …/versions/{version}/infer"
        app.post(f"{path}/infer", summary=summary, openapi_extra=_body(), responses=responses, include_in_schema=shown)(infer)


def _add_health(app: FastAPI, desk: Desk, model: ModelMetadata) -> None:
    @app.get("/v2/health/live", summary="The process runs", responses={200: {"model": LiveAnswer}})
    async def live() -> JSONResponse:
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", summary="Requests are taken", responses={200: {"model": ReadyAnswer}, **_errors(503)})
    async def ready() -> JSONResponse:
        desk.check_ready()
        return JSONResponse({"ready": True})

    closed = _errors(401, 403, 429, 503)

    @app.get("/v2", summary="What this service is", responses={200: {"model": ServerAnswer}, **closed})
    async def server() -> JSONResponse:
        return JSONResponse({"name": "hqtl", "version": hqtl_common.__version__, "extensions": ["binary_tensor_data", "parameters"]})

    async def describe(name: str, version: str | None = None) -> JSONResponse:
        _check(model, name, version)
        return JSONResponse(model.model_dump())

    async def model_ready(name: str, version: str | None = None) -> JSONResponse:
        _check(model, name, version)
        desk.check_ready()
        return JSONResponse({"name": name, "ready": True})

    for path, shown in _PATHS.items():
        about = {200: {"model": ModelMetadata}, **_errors(401, 403, 404, 422, 429, 503)}
        app.get(path, summary="Inputs and outputs of the model", responses=about, include_in_schema=shown)(describe)
        about = {**about, 200: {"model": ModelReadyAnswer}}
        app.get(f"{path}/ready", summary="The model answers", responses=about, include_in_schema=shown)(model_ready)


def _check(model: ModelMetadata, name: str, version: str | None) -> None:
    if name != model.name or version not in (None, *model.versions):
        asked = name if version is None else f"{name} version {version}"
        raise NotFoundError(f"there is no model {asked!r}; this service has {model.name} version {model.versions[0]}")


def _metadata(predictor: Predictor) -> ModelMetadata:
    bundle = predictor.bundle
    classes, qubits, angles, size = len(bundle.labels), bundle.head.num_qubits, bundle.head.num_angles, bundle.preprocess.size
    inputs = [(IMAGE_FIELD, "BYTES", []), (PIXELS, "FP32", [3, size, size])]
    outputs: list[tuple[str, str, list[int]]] = [
        ("labels", "BYTES", []),
        ("probabilities", "FP64", [classes]),
        ("logits", "FP64", [classes]),
        ("expvals", "FP64", [qubits]),
        ("angles", "FP32", [angles]),
        ("expval_stds", "FP64", [qubits]),
        ("intervals", "FP64", [2]),
    ]
    tensors = [[TensorMetadata(name=name, datatype=kind, shape=[-1, *shape]) for name, kind, shape in one] for one in (inputs, outputs)]
    about = {"classes": json.dumps(bundle.labels, ensure_ascii=False)}
    name = predictor.settings.model_name
    return ModelMetadata(
        name=name, versions=[predictor.bundle_hash[:12]], platform=_PLATFORM, inputs=tensors[0], outputs=tensors[1], parameters=about
    )


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    example = {"error": "what was expected, what came, and what to do"}
    content = {"application/json": {"example": example}}
    return {status: {**response, "model": ProtocolError, "content": content} for status, response in errors(*statuses).items()}


def _body() -> dict[str, Any]:
    """``openapi_extra``: the JSON, alone or with bytes behind it."""
    schema = InferenceHead.model_json_schema()
    parts = schema.pop("$defs")
    fields = schema["properties"]
    fields["inputs"]["items"] = parts["InputHead"]
    fields["outputs"]["anyOf"][0]["items"] = parts["WantedOutput"]
    values = fields["parameters"].pop("additionalProperties")
    fields["parameters"] |= {"properties": dict.fromkeys((*PARAMETERS, "binary_data_output"), values), "additionalProperties": False}
    header = {"type": "string", "pattern": "^[0-9]{1,7}$"}
    text = "Bytes of the JSON, where the bytes of tensors follow it"
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "parameters": [{"name": HEAD_LENGTH, "in": "header", "required": False, "schema": header, "description": text}],
    }
