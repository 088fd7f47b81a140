"""Requests, answers and routes of the emulated REST API; no sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from training.emulator.faults import Fault
from training.emulator.platform import Platform, PlatformError

__all__ = ["API", "Answer", "Handler", "Request", "Route", "json_answer", "refusal"]

API = "/api/v1"


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its credentials in any printed form.

    Args:
        method: Of HTTP.
        path: Without host and query.
        query: Decoded.
        body: Bytes.
        authorization: The header.
        crn: The header ``Service-CRN``.
        faults: That meet this request, by kind.
        arguments: Parts of the path.
    """

    method: str
    path: str
    query: Mapping[str, list[str]] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    authorization: str = field(default="", repr=False)
    crn: str = ""
    faults: Mapping[str, Fault] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """The body as an object.

        Raises:
            PlatformError: It is none.
        """
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise PlatformError(400, 0, "Invalid JSON received.", "Check the request.")
        return value

    def value(self, name: str) -> str | None:
        """A parameter of the query."""
        return self.query.get(name, [None])[0]


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Platform, Request], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    """A route: its name (as in faults and statistics), method, path with ``*`` for arguments, and function."""

    name: str
    method: str
    path: str
    handler: Handler
    authorized: bool = True

    def arguments(self, method: str, path: str) -> tuple[str, ...] | None:
        """The parts of ``path`` that stand for ``*``; None where the route does not match."""
        parts, wanted = path.strip("/").split("/"), self.path.strip("/").split("/")
        if method != self.method or len(parts) != len(wanted) or any(w not in ("*", p) for p, w in zip(parts, wanted, strict=True)):
            return None
        return tuple(p for p, w in zip(parts, wanted, strict=True) if w == "*")


def refusal(error: PlatformError) -> Answer:
    """A refusal in the platform's own form."""
    entry = {
        "code": error.code,
        "message": str(error),
        "solution": error.solution,
        "more_info": "https://quantum.cloud.ibm.com/docs/errors",
    }
    headers = () if error.retry_after is None else (("Retry-After", f"{max(1, round(error.retry_after))}"),)
    return Answer(error.status, json.dumps({"errors": [entry], "trace": "emulated"}).encode(), headers=headers)


def json_answer(value: Any, status: int = 200) -> Answer:
    """A value as JSON."""
    return Answer(status, json.dumps(value).encode())
