"""The BentoML service. ``HQTL_BUNDLE=BUNDLE bentoml serve`` starts it; see :mod:`serving.settings` for all variables.

Importing this module needs neither a bundle nor any of the packages behind the backends, so that ``bentoml build`` can do it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import bentoml

from hqtl_common.errors import HqtlError
from serving.settings import ServiceSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["HybridService"]


class _LateApp:
    """The application that the service mounts before it can be made."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


_late_app = _LateApp()


@bentoml.service(
    name="hqtl",
    workers=1,  # one owner of the backbone; ONNX Runtime uses all cores
    traffic={"timeout": 60},  # above every deadline of our own, so that each error has our envelope
    http={"host": "127.0.0.1", "port": 3000},
)
@bentoml.asgi_app(_late_app, path="/")
class HybridService:
    """Classifies images with a hybrid quantum bundle: POST /v1/predict, GET /v1/model, GET /v1/backends."""

    def __init__(self) -> None:
        from serving.app import create_app
        from serving.predictor import Predictor

        try:
            self._predictor = Predictor(ServiceSettings.from_environment(os.environ))
        except HqtlError as error:
            _end_worker(error)
            raise
        _late_app.app = create_app(self._predictor)

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def verify() -> None:
        """Load the bundle and classify a blank image with it; end ``bentoml serve`` with one line if that fails.

        BentoML calls it in the main process, before any worker starts.
        """
        from serving.predictor import Predictor

        try:
            settings = ServiceSettings.from_environment(os.environ)
            Predictor(settings).close()
        except HqtlError as error:
            raise SystemExit(_line(error)) from None
        os.environ["HQTL_BUNDLE"] = str(settings.bundle.absolute())  # a worker has another working directory

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Stop the threads."""
        self._predictor.close()


def _line(error: HqtlError) -> str:
    return " ".join(f"hqtl service: {error}".split())


def _end_worker(error: HqtlError) -> None:
    """In a worker of ``bentoml serve``, end it all: BentoML would start this worker again for ever."""
    if bentoml.server_context.worker_index is not None:
        print(_line(error), file=sys.stderr, flush=True)
        os.kill(os.getppid(), signal.SIGTERM)
        os._exit(1)
