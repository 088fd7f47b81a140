"""The BentoML service. ``HQTL_BUNDLE=BUNDLE bentoml serve`` starts it; see :mod:`serving.settings` for all variables.

Importing this module needs neither a bundle nor any of the packages behind the backends, so that ``bentoml build`` can do it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import bentoml

from hqtl_common.errors import ConfigError, HqtlError
from serving import logs
from serving.collector import exempt
from serving.settings import ServiceSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HybridService"]

_SWITCH_S = 0.0005  # the thread of the backbone waits no longer than this for Python, so that the cores are never idle for long


class _Front:
    """ASGI middleware that hands every request to our application: nothing of BentoML's own routes can be reached past its door."""

    app: ASGIApp | None = None  # made when the service starts, after BentoML has built the layers around it

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        sent = False

        async def watch(message: Message) -> None:
            nonlocal sent
            sent = True
            await send(message)

        if _Front.app is not None:
            await _Front.app(scope, receive, watch)
        if not sent and scope["type"] == "http":  # too early, or the client has gone: BentoML would hold the request for a minute
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0"), (b"retry-after", b"1")]})
            await send({"type": "http.response.body", "body": b""})


@bentoml.service(
    name="hqtl",
    workers=1,  # one owner of the backbone; ONNX Runtime uses all cores
    traffic={"timeout": 60},  # above every deadline of our own, so that each error has our envelope
    http={"host": "127.0.0.1", "port": 3000},
    metrics={"enabled": False},  # labelled by path, without a bound; ours have the same names
    tracing={"excluded_urls": ["."]},  # a millisecond of each request, for spans that are not collected; BENTOML_CONFIG can have them
    logging={"access": {"enabled": False}},  # ours are JSON
)
class HybridService:
    """Classifies images with a hybrid quantum bundle: POST /v1/predict, GET /v1/model, GET /v1/backends."""

    def __init__(self) -> None:
        from serving.app import create_app, open_ring
        from serving.jobs.office import open_office
        from serving.predictor import Predictor

        in_worker = bentoml.server_context.worker_index is not None
        if in_worker:
            logs.configure()
            sys.setswitchinterval(_SWITCH_S)
        try:
            settings = ServiceSettings.from_environment(os.environ)
            if in_worker:
                _check_bind(settings)
            ring = open_ring(settings)
            self._predictor = Predictor(settings)
            self._office = open_office(self._predictor)
        except HqtlError as error:
            _end_worker(error)
            raise
        if in_worker:
            from serving.connections import TimedProtocol

            TimedProtocol.patience_s = settings.header_timeout_s
        self._app = _Front.app = create_app(self._predictor, ring, self._office)
        if in_worker:
            exempt()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def verify() -> None:
        """Open all files, and classify a blank image with the bundle; end ``bentoml serve`` with one line if that fails.

        BentoML calls it in the main process, before any worker starts.
        """
        from hqtl_common.bundle import ModelBundle
        from serving.app import open_ring
        from serving.jobs.office import open_parts
        from serving.predictor import open_classifier

        try:
            settings = ServiceSettings.from_environment(os.environ)
            open_ring(settings)
            open_parts(settings)
            open_classifier(ModelBundle.load(settings.bundle), settings).close()
        except HqtlError as error:
            raise SystemExit(_line(error)) from None
        for name in ("bundle", "keys", "jobs", "webhook_ca"):  # a worker has another working directory
            if path := getattr(settings, name):
                os.environ[f"HQTL_{name.upper()}"] = str(path.absolute())

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Stop the threads."""
        self._app.state.desk.close()
        self._app.state.inspector.close()
        if self._office is not None:
            self._office.close()
        self._predictor.close()


HybridService.add_asgi_middleware(_Front)  # type: ignore[attr-defined]
if bentoml.server_context.worker_index is not None:  # a worker is about to start its server
    from serving.connections import guard_connections

    guard_connections()


def _check_bind(settings: ServiceSettings) -> None:
    """Refuse to serve without authentication where other machines can connect: a worker inherits the socket as ``--fd NUMBER``."""
    from serving.auth import is_loopback

    if not settings.insecure_no_auth or "--fd" not in sys.argv:
        return
    with socket.socket(fileno=os.dup(int(sys.argv[sys.argv.index("--fd") + 1]))) as listening:
        host = str(listening.getsockname()[0])
    if not is_loopback(host):
        raise ConfigError(
            f"HQTL_INSECURE_NO_AUTH serves 127.0.0.1 only, and this service would listen on {host}: make keys with hqtl-keys add instead"
        )


def _line(error: HqtlError) -> str:
    return " ".join(f"hqtl service: {error}".split())


def _end_worker(error: HqtlError) -> None:
    """In a worker of ``bentoml serve``, end it all: BentoML would start this worker again for ever."""
    if bentoml.server_context.worker_index is not None:
        print(_line(error), file=sys.stderr, flush=True)
        os.kill(os.getppid(), signal.SIGTERM)
        os._exit(1)
