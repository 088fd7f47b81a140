"""The emulated platform on HTTP: a server on loopback, which is the platform and the plain-HTTP proxy in front of it.

The client derives host names that resolve nowhere (``quantum.ibm.test``, ``iam.ibm.test``, …) and reaches them through its
``HTTP_PROXY``, which is this server. Nothing is ever forwarded: any other host, and every tunnel, is refused.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from pydantic import TypeAdapter, ValidationError

from training.emulator.faults import Fault, FaultSchedule
from training.emulator.platform import Platform, PlatformError
from training.emulator.routes import find_route
from training.emulator.wire import Answer, Request, json_answer, refusal

__all__ = ["DOMAIN", "Application", "Server"]

LOGGER = logging.getLogger("training.emulator")

DOMAIN = "ibm.test"
_LOOPBACK = {"127.0.0.1", "localhost"}
_ADMIN = "/_emulator/"
_MAX_BODY = 2**30
_FAULTS: TypeAdapter[list[Fault]] = TypeAdapter(list[Fault])


class Application:
    """What the server does with a request: faults, authorization, route, statistics.

    Args:
        platform: The state.
        faults: The schedule.
    """

    def __init__(self, platform: Platform, faults: FaultSchedule) -> None:
        self.platform, self.faults = platform, faults
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._refused_hosts: Counter[str] = Counter()

    def stats(self) -> dict[str, Any]:
        """Counts since the start; ``jobs_executed`` are those that used a machine, which a bill would list."""
        jobs = self.platform.book.select(lambda job: True)
        with self._lock:
            counts = {
                "requests": self._requests,
                "statuses": self._statuses,
                "unknown": self._unknown,
                "refused_hosts": self._refused_hosts,
            }
            return {
                "submits_received": self._requests["jobs.submit"],
                "jobs_accepted": len(jobs),
                "jobs_executed": sum(job.executed for job in jobs),
                "jobs": dict(Counter(job.status for job in jobs)),
                "qpu_seconds": sum(job.charged for job in jobs),
                **{name: dict(count) for name, count in counts.items()},
            }

    def refuse_host(self, host: str) -> Answer:
        """The answer to a request for a host that is not the platform's."""
        with self._lock:
            self._refused_hosts[host] += 1
        return refusal(PlatformError(403, 0, f"The emulator carries no traffic to {host}."))

    def answer(self, request: Request) -> tuple[Answer | None, int | None]:
        """What goes back, None for a dropped connection, and after how many bytes of the body to hang up."""
        found = find_route(request.method, request.path)
        name = found[0].name if found else "unknown"
        faults = self.faults.draw(name)
        started = time.monotonic()
        answer, cut = self._with_faults(replace(request, faults=faults, arguments=found[1] if found else ()), found, faults)
        status = "dropped" if answer is None else str(answer.status)
        with self._lock:
            self._requests[name] += 1
            self._statuses[f"{name} {status}"] += 1
            if found is None:
                self._unknown[f"{request.method} {request.path[:200]}"] += 1
        LOGGER.info("%s %s %s %.0f ms %s", request.method, name, status, 1e3 * (time.monotonic() - started), " ".join(faults))
        return answer, cut

    def _with_faults(self, request: Request, found: Any, faults: Mapping[str, Fault]) -> tuple[Answer | None, int | None]:
        if fault := faults.get("slow"):
            self.closing.wait(fault.seconds)
        if "drop" in faults:
            return None, None
        try:
            self._refuse_early(faults)
            answer = self._process(request, found)
        except PlatformError as error:
            return refusal(error), None
        except Exception:
            LOGGER.exception("the emulator failed on %s %s", request.method, request.path)
            return refusal(PlatformError(500, 0, "The emulator itself has failed; its log says more.")), None
        return _spoiled(answer, faults)

    @staticmethod
    def _refuse_early(faults: Mapping[str, Fault]) -> None:
        if fault := faults.get("error"):
            raise PlatformError(fault.status or 500, 0, fault.detail or "Internal server error.", retry_after=fault.seconds or None)
        if fault := faults.get("rate_limit"):
            raise PlatformError(429, 1202, "Too many requests.", "Reduce the rate of requests.", retry_after=fault.seconds)
        if "expired_token" in faults:
            raise PlatformError(401, 1201, "Invalid credentials: the token has expired.", "Request a new token.")

    def _process(self, request: Request, found: Any) -> Answer:
        if found is None:
            raise PlatformError(404, 0, f"There is no {request.method} {request.path}.")
        route = found[0]
        if route.authorized and not self.platform.tokens.accepts(request.authorization):
            raise PlatformError(401, 1201, "Invalid credentials.", "Request a new token.")
        answer: Answer = route.handler(self.platform, request)
        return answer

    def administer(self, request: Request) -> Answer:
        """``GET /_emulator/stats`` and ``GET``, ``POST``, ``DELETE /_emulator/faults`` (a list of faults)."""
        match request.method, request.path.removeprefix(_ADMIN):
            case "GET", "stats":
                return json_answer(self.stats())
            case "POST", "faults":
                try:
                    self.faults.add(*_FAULTS.validate_json(request.body))
                except ValidationError as error:
                    return refusal(PlatformError(400, 0, str(error)))
            case "DELETE", "faults":
                self.faults.clear()
            case "GET", "faults":
                pass
            case _:
                return refusal(PlatformError(404, 0, "There are /_emulator/stats and /_emulator/faults."))
        return json_answer(self.faults.state())


def _spoiled(answer: Answer, faults: Mapping[str, Fault]) -> tuple[Answer | None, int | None]:
    """The answer after the faults that strike once a request has been processed."""
    if "drop_after" in faults:
        return None, None
    if fault := faults.get("error_after"):
        return refusal(PlatformError(fault.status or 504, 0, fault.detail or "Gateway timeout.")), None
    if "truncate" in faults:
        return replace(answer, body=answer.body[: len(answer.body) // 2]), None
    return answer, len(answer.body) // 2 if "cut_body" in faults else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "emulated-platform"
    disable_nagle_algorithm = True
    application: ClassVar[Application]

    def do_CONNECT(self) -> None:
        """A tunnel, which HTTPS through a proxy would need."""
        self.close_connection = True
        self._send(self.application.refuse_host(self.path), None)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request line can hold a query; ``Application`` logs names of routes."""

    def serve(self) -> None:
        """One request of any method."""
        url = urlsplit(self.path)
        host = url.hostname or urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(min(length, _MAX_BODY))
        if len(body) < length:  # the client has died while sending
            self.close_connection = True
            return
        request = Request(
            method=self.command,
            path=url.path,
            query=parse_qs(url.query),
            body=body,
            authorization=self.headers.get("Authorization", ""),
            crn=self.headers.get("Service-CRN", ""),
        )
        self._send(*self._answer(request, host))

    def _answer(self, request: Request, host: str) -> tuple[Answer | None, int | None]:
        if host in _LOOPBACK and request.path.startswith(_ADMIN):
            return self.application.administer(request), None
        if host in _LOOPBACK or host == DOMAIN or host.endswith(f".{DOMAIN}"):
            return self.application.answer(request)
        return self.application.refuse_host(host), None

    def _send(self, answer: Answer | None, cut: int | None) -> None:
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body if cut is None else answer.body[:cut])
        self.close_connection = self.close_connection or cut is not None


class Server(ThreadingHTTPServer):
    """Serves an application on a port of 127.0.0.1; 0 chooses a free one."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, application: Application, port: int = 0) -> None:
        methods = {f"do_{method}": _Handler.serve for method in ("GET", "POST", "PUT", "PATCH", "DELETE")}
        handler = type("Handler", (_Handler,), {"application": application, **methods})
        super().__init__(("127.0.0.1", port), handler)
        self.application = application
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="emulator", daemon=True)

    @property
    def address(self) -> str:
        """URL of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """Serve in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and hang up on everyone."""
        self.application.closing.set()
        self.shutdown()
        self._thread.join()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # also wakes the thread that reads, whatever the client does
            self.shutdown_request(connection)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has died in the middle is no news."""
        level = logging.DEBUG if isinstance(sys.exception(), ConnectionError) else logging.ERROR
        LOGGER.log(level, "connection lost", exc_info=True)
