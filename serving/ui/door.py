"""The door of the page: a browser shows its key once and keeps it in a cookie that no script can read.

What passes goes on with the key in the header that every other client sends, so that one place decides who gets in. Of Gradio's
many routes only those that the page needs can be reached: no upload, no file, no queue, no proxy.
"""

from __future__ import annotations

import asyncio
import re
from http.cookies import CookieError, SimpleCookie
from importlib.resources import files
from urllib.parse import parse_qs

from jinja2 import Environment
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hqtl_common.errors import HqtlError
from serving.auth import is_loopback
from serving.errors import ForbiddenError, NotFoundError, OverloadedError, SlowClientError, TooLargeError, UnauthorizedError
from serving.http_errors import answer_error
from serving.keys import KeyRing
from serving.settings import MAX_DEADLINE_S, ServiceSettings
from serving.ui.calls import PageCalls

__all__ = ["COOKIE", "HOME", "PageDoor"]

COOKIE = "hqtl_key"
HOME = "/ui/"
_LOGIN, _LOGOUT = "/ui/login", "/ui/logout"
_READ = re.compile(r"/ui/(|config|theme\.css|favicon\.ico|manifest\.json|(assets|static|svelte)/(?!.*\.\.)[\w./@-]+)")
_RUN = re.compile(r"/ui/gradio_api/run/predict")
_MAX_LOGIN_BYTES = 4096
_LOGIN_S = 10
_MAX_RUNNING = 4
_TIMEOUT_S = 2 * MAX_DEADLINE_S  # the upload, and then a request within its own deadline
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,  # the browser itself asks nobody else
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


class PageDoor:
    """ASGI middleware before :class:`serving.auth.Authenticate`.

    Args:
        app: What is behind it.
        ring: The keys; None without authentication.
        settings: The limits, and the backends on offer.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing | None, settings: ServiceSettings) -> None:
        self.app = app
        self._ring = ring
        self._calls = PageCalls(settings)
        self._max_bytes = _largest_call(settings)
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or not re.match(r"/ui(/|$)", scope["path"]):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.decode() not in _HEADERS]
                message["headers"] = [*kept, *((name.encode(), value.encode()) for name, value in _HEADERS.items())]
            await send(message)

        try:
            async with asyncio.timeout(_LOGIN_S):
                answer = await self._answer(request)
        except HqtlError as error:
            answer = answer_error(request, error)
        except TimeoutError:
            answer = answer_error(request, SlowClientError(f"the login did not arrive within {_LOGIN_S} s"))
        if answer is None and request.method == "POST":
            await self._run(request, receive, send_guarded)
            return
        await (answer or self.app)(scope, receive, send_guarded)

    async def _run(self, request: Request, receive: Receive, send: Send) -> None:
        """A call of the page, which is held in memory as a whole: few at once, and not for ever."""
        if self._running >= _MAX_RUNNING:
            error = OverloadedError(f"{self._running} calls of the page are in work, the limit of this service; try again later")
            await answer_error(request, error)(request.scope, receive, send)
            return
        self._running += 1
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._pass_on(request, receive, send)
        except HqtlError as error:
            await answer_error(request, error)(request.scope, receive, send)
        except TimeoutError:
            await answer_error(request, SlowClientError("the call of the page was not done in time"))(request.scope, receive, send)
        finally:
            self._running -= 1

    async def _pass_on(self, request: Request, receive: Receive, send: Send) -> None:
        if self._ring is not None:
            self._ring.find(_bearer(request.scope))  # before anything is read
        body = self._calls.check(await _read(request, self._max_bytes))
        headers = [(name, value) for name, value in request.scope["headers"] if name not in (b"content-length", b"content-type")]
        request.scope["headers"] = [*headers, (b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        given = False

        async def receive_checked() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(request.scope, receive_checked, send)

    async def _answer(self, request: Request) -> Response | None:
        """What the door says itself; None lets the request pass."""
        path, method = request.url.path, request.method
        if path == HOME.rstrip("/"):
            return RedirectResponse(HOME, 307)
        _check_origin(request)
        if (method, path) == ("POST", _LOGIN) and self._ring is not None:
            return await self._let_in(request, self._ring)
        if (method, path) == ("POST", _LOGOUT):
            return _away(request)
        if method == "GET" and path == HOME and not self._is_in(request):
            return _login_page(401 if COOKIE in request.cookies else 200)
        if not (_READ.fullmatch(path) if method in ("GET", "HEAD") else method == "POST" and _RUN.fullmatch(path)):
            raise NotFoundError(f"the page has nothing at {path!r}")
        if method == "POST" and not 0 < _length(request) <= self._max_bytes:
            raise TooLargeError(f"a request of the page must have at most {self._max_bytes:,} bytes, and say how many")
        self._show_key(request)
        return None

    def _is_in(self, request: Request) -> bool:
        if self._ring is None:
            return True
        try:
            self._ring.find(_token(request))
        except UnauthorizedError:
            return False
        return True

    def _show_key(self, request: Request) -> None:
        """Put the key where every other client has it, and take the cookie away: nothing behind the door needs it."""
        kept = [(name, value) for name, value in request.scope["headers"] if name not in (b"cookie", b"authorization", b"x-api-key")]
        token = [] if self._ring is None else [(b"authorization", f"Bearer {_token(request)}".encode("latin-1", "replace"))]
        request.scope["headers"] = [*kept, *token]

    async def _let_in(self, request: Request, ring: KeyRing) -> Response:
        if not 0 < _length(request) <= _MAX_LOGIN_BYTES:
            raise TooLargeError(f"a login has at most {_MAX_LOGIN_BYTES:,} bytes")
        token = parse_qs((await _read(request, _MAX_LOGIN_BYTES)).decode("latin-1")).get("key", [""])[0].strip()
        try:
            ring.find(token)
        except UnauthorizedError:
            return _login_page(401, refused=True)
        answer = RedirectResponse(HOME, 303)
        answer.set_cookie(COOKIE, token, path="/ui", httponly=True, samesite="strict", secure=not is_loopback(request.url.hostname))
        return answer


def _largest_call(settings: ServiceSettings) -> int:
    """Bytes of the call that carries the largest image."""
    return 4 * max(settings.max_bytes, settings.max_inspect_bytes) // 3 + 65_536


def _token(request: Request) -> str:
    cookie = SimpleCookie()
    try:
        cookie.load(request.headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookie[COOKIE].value if COOKIE in cookie else ""


async def _read(request: Request, max_bytes: int) -> bytearray:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:  # whatever its header says
            raise TooLargeError(f"the request has more than {max_bytes:,} bytes")
    return body


def _bearer(scope: Scope) -> str:
    return Headers(scope=scope).get("authorization", "").removeprefix("Bearer ")


def _check_origin(request: Request) -> None:
    """A page of another origin must not use the browser's cookie."""
    origin = request.headers.get("origin")
    if request.method == "POST" and origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise ForbiddenError("only the page itself may send this")


def _length(request: Request) -> int:
    declared = request.headers.get("content-length", "")
    return int(declared) if re.fullmatch(r"[0-9]{1,12}", declared) else 0


def _away(request: Request) -> Response:
    answer = RedirectResponse(HOME, 303)
    answer.delete_cookie(COOKIE, path="/ui", httponly=True, samesite="strict", secure=not is_loopback(request.url.hostname))
    return answer


def _login_page(status: int, *, refused: bool = False) -> Response:
    template = Environment(autoescape=True).from_string(files("serving.ui").joinpath("login.html.j2").read_text("utf-8"))
    return HTMLResponse(template.render(refused=refused, login=_LOGIN), status)
