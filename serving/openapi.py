"""What the routes take and give, as schemas for the OpenAPI document; a test holds every answer against them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from hqtl_common.manifest import Manifest
from hqtl_common.records import ExecutionRecord
from serving.auth import OPEN_PATHS
from serving.examples import EXAMPLES
from serving.forms import IMAGE_FIELD, PredictOptions
from serving.keys import Grants
from serving.settings import ServiceSettings

__all__ = [
    "BackendsAnswer",
    "ErrorAnswer",
    "HealthAnswer",
    "IndexAnswer",
    "ModelAnswer",
    "PredictAnswer",
    "RuntimeAnswer",
    "describe",
    "errors",
    "predict_body",
]

_MEANING = {
    400: ("body", "The body is not what its header announces."),
    401: ("unauthorized", "No key, or none that is good."),
    403: ("forbidden_backend", "The backend, or what was asked of it, is not granted."),
    404: ("not_found", "There is no such job of this key, or the service keeps no jobs."),
    408: ("slow_client", "The body did not arrive in time."),
    409: ("conflict", "The Idempotency-Key was used for another request, or the job is finished."),
    413: ("too_large", "Too many bytes, pixels or images."),
    415: ("unknown_image_format", "Another type of body, or no image of an allowed format."),
    422: ("field", "A damaged image, or a field that is unknown or out of range."),
    429: ("overloaded", "Too many requests are in work or came in a minute, or a quota is used up."),
    502: ("job_failed", "The backend failed."),
    503: ("backend_unavailable", "The backend, the keys or the service cannot be used now."),
    504: ("deadline", "Not done in time."),
}
_REQUEST_ID = {"description": "The id of the request, also in the log", "schema": {"type": "string"}}
_RETRY_AFTER = {"description": "Seconds to wait", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
# Where pydantic cannot place a bound (behind a validator of ours) it leaves its own word beside the alternatives.
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_KEY: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key made by hqtl-keys add"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key"},
}


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Error(_Exact):
    code: Annotated[str, Field(description="For programs")]
    message: Annotated[str, Field(description="For people: what was expected, what came, what to do")]
    detail: dict[str, Any] | None
    request_id: str


class ErrorAnswer(_Exact):
    """Every error of every route."""

    error: _Error


class HealthAnswer(_Exact):
    """The service runs."""

    status: Literal["alive", "ready"]


class IndexAnswer(_Exact):
    """Where things are."""

    service: Literal["hqtl"]
    version: str
    routes: list[str]


class _Prediction(_Exact):
    filename: Annotated[str, Field(description="As sent; empty for the one image of an octet stream")]
    label: str
    probability: Annotated[float, Field(ge=0, le=1, description="Of the label")]
    probabilities: dict[str, float]
    interval: Annotated[tuple[float, float] | None, Field(description="95 % interval of the probability from shot noise; null when exact")]
    angles: Annotated[list[float], Field(description="Radians")]
    expvals: Annotated[list[float], Field(description="⟨Z_i⟩ of each qubit")]
    expval_stds: Annotated[list[float] | None, Field(description="Their standard errors; null when exact")]
    logits: list[float]
    calibration: Annotated[str | None, Field(description="Which temperature and threshold of the bundle were applied")]
    familiarity: Annotated[float | None, Field(description="Share of held-out images that are as far from the training; null if unknown")]
    review: Annotated[list[str], Field(description="Why a person should look at it: unfamiliar, interval, close; empty if nothing does")]
    shots_used: Annotated[int, Field(description="Of this image; with max_shots only")] = 0


class _Explanation(_Exact):
    features: Annotated[list[list[float]], Field(description="Of each image, before the pre_net")]
    weights: Annotated[list[list[float]], Field(description="Of the head, radians")]
    circuit: Annotated[str, Field(description="The head in OpenQASM 3")]


class RuntimeAnswer(_Exact):
    """How the backbone runs."""

    precision: Annotated[Literal["fp32", "fp16", "int8"], Field(description="What the backbone computes with")]
    providers: Annotated[list[str], Field(description="Where it computes, the preferred one first: cpu, cuda, tensorrt")]


class PredictAnswer(_Exact):
    """The answers in the order of the images, and what produced them."""

    predictions: list[_Prediction]
    execution: ExecutionRecord
    runtime: RuntimeAnswer | None = None
    explanation: _Explanation | None = None


class ModelAnswer(Manifest):
    """The manifest of the bundle, its own hash, how its backbone runs here, and the limits of this service."""

    manifest_sha256: str
    runtime: RuntimeAnswer
    limits: dict[str, float]


class _Backend(_Exact):
    name: str
    available: Annotated[bool, Field(description="The package behind it is installed")]
    allowed: Annotated[bool, Field(description="The key may use it")]
    price_class: Literal["free", "paid"]
    calibration: Annotated[
        str | None, Field(description="Date of its noise data: of a machine the last one, of a simulator's once it has run")
    ]
    calibration_age_days: float | None
    queue: Annotated[int | None, Field(ge=0, description="Jobs that wait for the machine; null where there is none, or it is not known")]
    operational: Annotated[bool | None, Field(description="The machine takes jobs; null likewise")]
    unknown_because: Annotated[str | None, Field(description="Why the machine's queue is not known; null if it is, or there is none")]
    checked: Annotated[AwareDatetime | None, Field(description="When the machine was asked")]
    summary: str
    exact: bool
    shots: bool
    noise: str | None
    paid: bool
    diff_methods: list[str]


class _KeyAnswer(_Exact):
    id: str
    name: str
    grants: Grants


class BackendsAnswer(_Exact):
    """What may be chosen, and what the key may use of it."""

    default: str
    backends: list[_Backend]
    limits: dict[str, float]
    key: _KeyAnswer


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route for these statuses of the envelope."""
    return {status: _response(status) for status in statuses}


def predict_body(settings: ServiceSettings) -> dict[str, Any]:
    """``openapi_extra`` of the prediction: a form, or one image with the options in the query."""
    options = PredictOptions.model_json_schema()["properties"]
    fields = {name: _plain(schema) for name, schema in options.items()}
    for name, maximum in (("shots", settings.max_shots), ("max_shots", settings.max_shots), ("deadline_s", settings.deadline_s)):
        fields[name]["maximum"] = maximum
    fields["backend"] |= {"enum": list(settings.backends)}
    if settings.webhook_hosts:
        scheme = "https?" if settings.webhook_private else "https"
        fields["webhook"] |= {"pattern": f"^{scheme}://({'|'.join(map(re.escape, settings.webhook_hosts))})(/[!-~]*)?$"}
    else:
        del fields["webhook"]
    image = {"type": "string", "format": "binary", "description": "PNG, JPEG, TIFF, BMP or WebP, told by its content"}
    form = {
        "type": "object",
        "required": [IMAGE_FIELD],
        "additionalProperties": False,
        "properties": {IMAGE_FIELD: {"type": "array", "items": image, "minItems": 1, "maxItems": settings.max_images}, **fields},
    }
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form, "encoding": {IMAGE_FIELD: {"contentType": "application/octet-stream"}}},
                "application/octet-stream": {"schema": image},
            },
        },
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "schema": schema,
                "description": "Or a field of the form, but not both",
            }
            for name, schema in fields.items()
        ],
    }


def describe(app: FastAPI) -> None:
    """Make the document of ``app`` say what every route has in common: the key, and the headers of the answers."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schema["components"]["securitySchemes"] = _SCHEMES
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    operation["security"] = [] if path in OPEN_PATHS else _KEY
                    _add_headers(operation["responses"])
                    _add_examples(operation["responses"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _response(status: int) -> dict[str, Any]:
    code, text = _MEANING[status]
    detail: dict[str, Any] = {"index": 0, "filename": "wall.png"} if status in (413, 415) else {"field": "shots"} if status == 422 else {}
    example = {"error": {"code": code, "message": text, "detail": detail, "request_id": "5f0c"}}
    return {"model": ErrorAnswer, "description": text, "content": {"application/json": {"example": example}}}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A field as it may be sent: pydantic's ``null`` means that it is left out."""
    shown = next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)
    bounds = {_BOUNDS[key]: value for key, value in schema.items() if key in _BOUNDS}
    kept = {key: value for key, value in shown.items() if key not in ("title", "default", "anyOf", *_BOUNDS)}
    return {**kept, **bounds, **({"description": schema["description"]} if "description" in schema else {})}


def _add_headers(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        headers = response.setdefault("headers", {})
        headers["X-Request-ID"] = _REQUEST_ID
        if status in ("429", "503"):
            headers["Retry-After"] = _RETRY_AFTER


def _add_examples(responses: dict[str, Any]) -> None:
    """To every good answer in JSON whose schema has a name, or is a choice of such."""
    for status, response in responses.items():
        body = response.get("content", {}).get("application/json", {})
        schema = body.get("schema", {})
        names = [one["$ref"].rpartition("/")[2] for one in schema.get("anyOf", [schema]) if "$ref" in one]
        if int(status) < 400 and names and names[0] in EXAMPLES:
            body["example"] = EXAMPLES[names[0]]
