"""Requests to the service: the key, the form, and errors out of the envelope."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

from hqtl_common.errors import HqtlError

__all__ = ["ApiError", "Transport", "form_of"]


class ApiError(HqtlError):
    """What the service answered instead of what was asked, or why it could not be asked.

    Args:
        status: Of HTTP; 0 where no answer came.
        code: For programs.
        message: For people.
        detail: About the code.
        request_id: Also in the log of the service.
        retry_after: Seconds, where the service says when to come again.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        detail: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code} ({status}): {message}")
        self.status, self.code, self.message = status, code, message
        self.detail, self.request_id, self.retry_after = detail or {}, request_id, retry_after


class Transport:
    """Asks one service.

    Args:
        url: Of the service.
        key: An API key, None for a service without authentication.
        timeout_s: Seconds without an answer after which a request is given up.
    """

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        self.url, self._timeout_s = url.rstrip("/"), timeout_s
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._opener = build_opener(_NoRedirect())

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: bytes | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The body of the answer.

        Args:
            method: Of HTTP.
            path: Below the address of the service.
            query: What is None stays out.
            body: What is sent.
            kind: Its content type.
            headers: Besides the key.

        Raises:
            ApiError: The service refused it or cannot be reached.
        """
        given = urlencode({name: value for name, value in query.items() if value is not None})
        sent = {**self._headers, **(headers or {}), **({} if kind is None else {"Content-Type": kind})}
        request = Request(f"{self.url}{path}{'?' if given else ''}{given}", body, sent, method=method)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                found: bytes = answer.read()
                return found
        except HTTPError as error:
            raise _error(error) from None
        except (HTTPException, OSError) as error:  # URLError is one of the latter
            raise ApiError(0, "unreachable", f"{self.url} does not answer: {getattr(error, 'reason', error)}") from error


class _NoRedirect(HTTPRedirectHandler):
    """A key goes to no other address than the one it was given for."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def form_of(files: Sequence[tuple[str, bytes]], fields: Mapping[str, str]) -> tuple[bytes, str]:
    """A multipart form (RFC 7578) and its content type."""
    boundary = uuid.uuid4().hex
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value.encode() for name, value in fields.items()]
    for name, data in files:
        quoted = name.replace("\\", "\\\\").replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        head = f'Content-Disposition: form-data; name="image"; filename="{quoted}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        parts.append(head.encode("utf-8", "surrogateescape") + data)
    mark = f"--{boundary}".encode()
    return mark + b"".join(b"\r\n" + part + b"\r\n" + mark for part in parts) + b"--\r\n", f"multipart/form-data; boundary={boundary}"


def _error(answer: HTTPError) -> ApiError:
    status, text = int(answer.status or 0), answer.read()
    after = answer.headers.get("Retry-After", "")
    retry = float(after) if after.isdigit() else None
    try:
        found = json.loads(text)["error"]
        return ApiError(status, found["code"], found["message"], found["detail"], found["request_id"], retry)
    except (ValueError, KeyError, TypeError):  # of a proxy in between
        return ApiError(status, "http", text[:200].decode("utf-8", "replace"), retry_after=retry)
