"""The calls of the client, one per route."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from serving.client.transport import ApiError, Transport, form_of
from serving.client.values import Answer, Estimate, Inspection, Job, Options

__all__ = ["Client"]

Image = bytes | str | os.PathLike[str]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_PASSING = (0, 429, 502, 503, 504)  # of a service that is restarted, or of a proxy before it


class Client:
    """Asks one service.

    Args:
        url: Of the service.
        key: An API key, None for a service without authentication.
        timeout_s: Seconds without an answer after which a request is given up.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 70.0) -> None:
        self._transport = Transport(url, key, timeout_s)

    def __repr__(self) -> str:
        return f"Client({self._transport.url!r})"

    def predict(self, images: Iterable[Image], options: Options | None = None, *, idempotency_key: str | None = None) -> Answer | Job:
        """Classify images: the answer, or a job where the backend is paid or slow and no fallback was chosen.

        Raises:
            ApiError: The service refused it or cannot be reached.
        """
        values = self._send_form("/v1/predict", images, options, idempotency_key)
        return Answer.of(values) if "predictions" in values else Job.of(values)

    def submit(self, images: Iterable[Image], options: Options | None = None, *, idempotency_key: str | None = None) -> Job:
        """Keep a request as a job. Without an idempotency key one is made, so that repeating a lost call is up to the caller.

        Raises:
            ApiError: The service refused it or cannot be reached.
        """
        return Job.of(self._send_form("/v1/jobs", images, options, idempotency_key or uuid.uuid4().hex))

    def job(self, identifier: str) -> Job:
        """A job.

        Raises:
            ApiError: There is none of this key, or the service cannot be reached.
        """
        return Job.of(self._json("GET", f"/v1/jobs/{quote(identifier, safe='')}"))

    def jobs(self, *, state: str | None = None, before: str | None = None, limit: int = 20) -> list[Job]:
        """The latest jobs of the key, without their answers.

        Raises:
            ApiError: The service refused it or cannot be reached.
        """
        query = {"state": state, "before": before, "limit": limit}
        return [Job.of(one) for one in self._json("GET", "/v1/jobs", query)["jobs"]]

    def cancel(self, identifier: str) -> Job:
        """Cancel a job, at its provider as well; see ``cancelling``.

        Raises:
            ApiError: It is finished, there is none, or the service cannot be reached.
        """
        return Job.of(self._json("DELETE", f"/v1/jobs/{quote(identifier, safe='')}"))

    def wait(self, job: Job | str, timeout_s: float | None = None) -> Job:
        """Wait until a job is finished; a service that is restarted meanwhile is asked again.

        Raises:
            ApiError: There is no such job; it failed or was cancelled, with its own code.
            TimeoutError: It is not finished in time.
        """
        identifier = job if isinstance(job, str) else job.id
        until, pause = time.monotonic() + (float("inf") if timeout_s is None else timeout_s), _FIRST_PAUSE_S
        while True:
            try:
                found = self.job(identifier)
                if found.is_finished:
                    return _successful(found)
            except ApiError as error:
                if error.status not in _PASSING:
                    raise
                pause = max(pause, error.retry_after or 0.0)
            if time.monotonic() + pause > until:
                raise TimeoutError(f"job {identifier} is not finished after {timeout_s:g} s")
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)

    def estimate(self, images: int, options: Options | None = None) -> Estimate:
        """What so many images would need on the backend of the options.

        Raises:
            ApiError: The options do not fit, or the service cannot be reached.
        """
        fields = (options or Options()).fields
        query = {name: value for name, value in fields.items() if name in ("backend", "shots", "mitigation")}
        return Estimate.of(self._json("GET", "/v1/estimate", query | {"images": str(images)}))

    def inspect(self, image: Image, options: Options | None = None, *, tile: int | None = None, stride: int | None = None) -> Inspection:
        """Classify a large image tile by tile; of the options only backend, shots, seed, threshold and deadline_s.

        Raises:
            ApiError: The service refused it or cannot be reached.
        """
        return Inspection.of(json.loads(self._inspect(image, options, tile, stride, "json")))

    def inspect_map(
        self,
        image: Image,
        options: Options | None = None,
        *,
        tile: int | None = None,
        stride: int | None = None,
        form: Literal["png", "geojson"] = "png",
    ) -> bytes:
        """The same as a heat map, or as GeoJSON.

        Raises:
            ApiError: The service refused it or cannot be reached.
        """
        return self._inspect(image, options, tile, stride, form)

    def model(self) -> dict[str, Any]:
        """The manifest of the bundle, and the limits.

        Raises:
            ApiError: The service cannot be reached.
        """
        return self._json("GET", "/v1/model")

    def backends(self) -> list[dict[str, Any]]:
        """The backends on offer.

        Raises:
            ApiError: The service cannot be reached.
        """
        found: list[dict[str, Any]] = self._json("GET", "/v1/backends")["backends"]
        return found

    def _inspect(self, image: Image, options: Options | None, tile: int | None, stride: int | None, form: str) -> bytes:
        fields = {**(options or Options()).fields, "tile": tile, "stride": stride, "format": form}
        return self._transport.ask("POST", "/v1/inspect", fields, _read(image)[1], "application/octet-stream")

    def _send_form(self, path: str, images: Iterable[Image], options: Options | None, name: str | None) -> dict[str, Any]:
        body, kind = form_of([_read(image) for image in images], (options or Options()).fields)
        found: dict[str, Any] = json.loads(
            self._transport.ask("POST", path, {}, body, kind, {} if name is None else {"Idempotency-Key": name})
        )
        return found

    def _json(self, method: str, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._transport.ask(method, path, query or {}))
        return found


def _successful(job: Job) -> Job:
    if job.state == "done":
        return job
    error = job.error or {"code": "cancelled", "message": "it was cancelled"}
    raise ApiError(200, error["code"], f"job {job.id}: {error['message']}")


def _read(image: Image) -> tuple[str, bytes]:
    if isinstance(image, bytes):
        return "image", image
    return Path(image).name, Path(image).read_bytes()
