"""Faults that the emulated platform commits on demand: a schedule that code or the admin endpoint fills.

========================  ==================================================================================================
kind                      what happens (default routes in brackets)
========================  ==================================================================================================
``drop``                  the connection closes before the request is processed [every route of the runtime]
``drop_after``            the request is processed, then the connection closes without an answer [jobs.submit]
``error``                 answer ``status`` (500) instead of processing, with ``Retry-After`` if ``seconds`` is given
                          [every route of the runtime]
``error_after``           the request is processed, then the answer is ``status`` (504) [jobs.submit]
``rate_limit``            429 with ``Retry-After: seconds`` [jobs.submit]
``expired_token``         401 as for a bearer token that has run out [every route of the runtime]
``slow``                  the answer comes ``seconds`` later [every route of the runtime]
``truncate``              the body ends in the middle; its length is declared correctly [jobs.results]
``cut_body``              the body ends in the middle and the connection closes [jobs.results]
``wrong_shape``           a result with one of ``detail`` missing: rows (default), shots, pubs, register [jobs.results]
``unknown_status``        the job is said to be in the state ``detail`` ("Paused") [jobs.get]
``maintenance``           the backend is not operational [backends.status, backends.list]
``calibration``           the backend is calibrated anew before the request is processed; errors × ``factor`` [jobs.submit]
``listing_lag``           the job accepted by this request is in no listing for ``seconds`` [jobs.submit]
``ran_too_long``          the job accepted by this request is cancelled for running too long: reason code 1305, or with
                          ``detail="status"`` the status "Cancelled - Ran too long" [jobs.submit]
``fail``                  the job accepted by this request fails with the reason ``detail`` [jobs.submit]
========================  ==================================================================================================
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ROUTE_NAMES", "Fault", "FaultKind", "FaultSchedule"]

FaultKind = Literal[
    "drop",
    "drop_after",
    "error",
    "error_after",
    "rate_limit",
    "expired_token",
    "slow",
    "truncate",
    "cut_body",
    "wrong_shape",
    "unknown_status",
    "maintenance",
    "calibration",
    "listing_lag",
    "ran_too_long",
    "fail",
]

ROUTE_NAMES = (
    "iam.token",
    "search.instances",
    "catalog.plan",
    "version.get",
    "instance.get",
    "usage.get",
    "backends.list",
    "backends.configuration",
    "backends.properties",
    "backends.status",
    "jobs.submit",
    "jobs.list",
    "jobs.get",
    "jobs.delete",
    "jobs.results",
    "jobs.metrics",
    "jobs.logs",
    "jobs.cancel",
    "jobs.tags",
    "sessions.create",
    "sessions.get",
    "sessions.update",
    "sessions.cancel",
)

_RUNTIME = ("backends.*", "jobs.*", "sessions.*", "usage.*")
_DEFAULT_ROUTES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(get_args(FaultKind), ("jobs.submit",)),
    **dict.fromkeys(("drop", "error", "expired_token", "slow"), _RUNTIME),
    **dict.fromkeys(("truncate", "cut_body", "wrong_shape"), ("jobs.results",)),
    "unknown_status": ("jobs.get",),
    "maintenance": ("backends.status", "backends.list"),
}
_DETAILS: dict[str, set[str]] = {"wrong_shape": {"", "rows", "shots", "pubs", "register"}, "ran_too_long": {"", "status"}}


class Fault(BaseModel):
    """One entry of the schedule.

    Args:
        kind: What happens, see the table above.
        routes: Names of routes as in ``ROUTE_NAMES``, ``*`` allowed; None: the kind's own.
        count: How often it happens; None: without end.
        probability: Chance for each matching request.
        after: Matching requests that pass unharmed first.
        seconds: Real seconds, where the kind takes a time.
        status: HTTP status, where the kind takes one.
        factor: By which a new calibration multiplies the reported errors.
        detail: See the table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FaultKind
    routes: tuple[str, ...] | None = None
    count: int | None = Field(default=1, ge=1)
    probability: float = Field(default=1.0, ge=0.0, le=1.0)
    after: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0.0)
    status: int | None = Field(default=None, ge=400, le=599)
    factor: float = Field(default=1.0, gt=0.0)
    detail: str = ""

    @model_validator(mode="after")
    def _can_happen(self) -> Fault:
        for pattern in self.routes or ():
            if not any(fnmatchcase(name, pattern) for name in ROUTE_NAMES):
                raise ValueError(f"no route is called {pattern!r}; there are {', '.join(ROUTE_NAMES)}")
        if self.detail not in _DETAILS.get(self.kind, {self.detail}):
            raise ValueError(f"the detail of {self.kind} is one of {sorted(_DETAILS[self.kind])}, not {self.detail!r}")
        return self

    def matches(self, route: str) -> bool:
        """True if a request on ``route`` can meet this fault."""
        return any(fnmatchcase(route, pattern) for pattern in self.routes or _DEFAULT_ROUTES[self.kind])


@dataclass
class _Entry:
    fault: Fault
    chance: random.Random
    seen: int = 0
    fired: int = 0

    def draw(self, route: str) -> bool:
        if (self.fault.count is not None and self.fired >= self.fault.count) or not self.fault.matches(route):
            return False
        self.seen += 1
        if self.seen <= self.fault.after or self.chance.random() >= self.fault.probability:
            return False
        self.fired += 1
        return True


class FaultSchedule:
    """The faults still to come; safe to use from several threads.

    Args:
        seed: Of the chances of faults with a probability.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._entries: list[_Entry] = []
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        """Append to the schedule."""
        with self._lock:
            for fault in faults:
                self._entries.append(_Entry(fault, random.Random(f"{self._seed}/{len(self._entries)}")))

    def clear(self) -> None:
        """Forget all faults, those that have happened too."""
        with self._lock:
            self._entries.clear()

    def draw(self, route: str) -> Mapping[str, Fault]:
        """The faults that meet one request on ``route``, by kind; they count as having happened."""
        with self._lock:
            return {entry.fault.kind: entry.fault for entry in self._entries if entry.draw(route)}

    def state(self) -> list[dict[str, Any]]:
        """Every fault with the number of times that it happened."""
        with self._lock:
            return [{**entry.fault.model_dump(mode="json"), "fired": entry.fired} for entry in self._entries]
