"""Errors → HTTP, in this one place: a status, and one envelope for every error of every route.

``{"error": {"code", "message", "detail", "request_id"}}``: ``code`` is for programs, ``message`` for people, ``detail`` an object
or null. A backend that no version knows is a wrong value (422); one that exists but is not offered is forbidden (403).
"""

from __future__ import annotations

import logging
import re
import uuid
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hqtl_common import errors as common
from serving import errors as own

__all__ = ["STATUS", "ErrorGuard", "answer_error", "code_of", "envelope", "install", "status_of"]

logger = logging.getLogger("hqtl.service")

REQUEST_ID_HEADER = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RETRY_AFTER_S = 1
_PROTOCOL = re.compile(r"/v2(/|$)")  # its clients want a text where ours have an object

# The first class that an error is an instance of decides.
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (own.BodyError, 400),
    (own.MediaTypeError, 415),
    (own.TooLargeError, 413),
    (common.UnknownImageFormatError, 415),
    (common.InputError, 422),
    (common.ConfigError, 422),
    (common.UnknownBackendError, 422),
    (own.ForbiddenBackendError, 403),
    (common.CapabilityError, 422),
    (common.BackendUnavailableError, 503),
    (common.BackendAuthError, 503),
    (common.BudgetExceededError, 503),
    (common.BackendTimeoutError, 504),
    (common.BackendError, 502),
    (own.UnauthorizedError, 401),
    (own.ForbiddenError, 403),
    (own.NotFoundError, 404),
    (own.ConflictError, 409),
    (own.OverloadedError, 429),
    (own.QuotaError, 429),
    (own.RateLimitError, 429),
    (own.NotReadyError, 503),
    (own.KeysUnavailableError, 503),
    (own.SlowClientError, 408),
    (own.DeadlineError, 504),
)


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for what is not the client's and not expected."""
    if isinstance(error, own.RejectedImageError):
        return status_of(error.reason)
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def code_of(error: Exception) -> str:
    """The code of an error: its class in snake case without ``Error``, for example ``image_decode``."""
    if isinstance(error, own.RejectedImageError):
        return code_of(error.reason)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).lower()


def envelope(request: Request, status: int, code: str, message: str, detail: dict[str, Any] | None = None) -> JSONResponse:
    """The one form of an error, but for the Open Inference Protocol; 429 and 503 say when to try again, 401 how to ask.

    Leaves the code at ``request.state.error_code``.
    """
    headers = {"retry-after": str(_RETRY_AFTER_S)} if status in (429, 503) else {"www-authenticate": "Bearer"} if status == 401 else None
    request.state.error_code = code
    if _PROTOCOL.match(request.scope["path"]):
        return JSONResponse({"error": message}, status, headers)
    return JSONResponse(
        {"error": {"code": code, "message": message, "detail": detail, "request_id": request.state.request_id}}, status, headers
    )


def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The envelope of an error of our trees; one that no table expects is raised again."""
    status = status_of(error)
    if status == 500:
        raise error
    if status > 500:
        logger.warning("%s: %s", type(error).__name__, error, extra={"request_id": request.state.request_id})
    answer = envelope(request, status, code_of(error), str(error), _detail(error))
    if isinstance(error, own.QuotaError | own.RateLimitError):
        answer.headers["retry-after"] = str(error.retry_after_s)
    return answer


class ErrorGuard:
    """The outermost layer: gives every request an id, and answers for errors that nothing else expected.

    An id sent by the client in ``X-Request-ID`` is kept if it is plain; the answer always carries one.

    Args:
        app: The application to guard.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (REQUEST_ID_HEADER.encode(), request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.info("the client went away", extra={"request_id": request_id})
        except Exception:
            logger.exception("unexpected error", extra={"request_id": request_id})
            if started:
                raise
            message = "an error of the service, not of the request; its log has the request id"
            await envelope(Request(scope), 500, "internal", message)(scope, receive, send_with_id)


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error with the envelope."""
    app.add_exception_handler(common.HqtlError, _answer_own)
    app.add_exception_handler(HTTPException, _answer_framework)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_middleware(ErrorGuard)


def _request_id(scope: Scope) -> str:
    sent = next((value for name, value in scope["headers"] if name == REQUEST_ID_HEADER.encode()), b"").decode("latin-1")
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


async def _answer_own(request: Request, error: Exception) -> JSONResponse:
    return answer_error(request, error)


async def _answer_framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    message = f"{phrase}: {request.method} {request.url.path}" if error.detail == phrase else str(error.detail)
    answer = envelope(request, error.status_code, phrase.lower().replace(" ", "_").replace("-", "_"), message)
    answer.headers.update(error.headers or {})
    return answer


async def _answer_validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [{"field": ".".join(map(str, problem["loc"])), "message": problem["msg"]} for problem in error.errors()]
    return envelope(request, 422, "field", f"{problems[0]['field']}: {problems[0]['message']}", {"problems": problems})


def _detail(error: Exception) -> dict[str, Any] | None:
    match error:
        case own.RejectedImageError():
            return {"index": error.index, "filename": error.filename}
        case own.FieldError():
            return {"field": error.field}
        case common.JobFailedError():
            return {"job_id": error.job_id}
    return None
