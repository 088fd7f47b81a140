"""How the paid machines are now: their queues and calibrations, asked in the background and kept for some seconds.

Nobody who asks waits longer than a moment: what is not known yet, or cannot be asked, is null with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from hqtl_common.errors import HqtlError

if TYPE_CHECKING:
    from hqtl_common.backends.ibm import MachineState

__all__ = ["Machines", "Provider", "age_days", "open_machine"]

logger = logging.getLogger("hqtl.machines")

_FRESH_S = 15.0
_MOMENT_S = 2.0
_ASKED = "the platform is being asked; ask again in some seconds"


class Provider(Protocol):
    """See :class:`hqtl_common.backends.ibm.IBMProvider`."""

    def state(self) -> MachineState:
        """Queue and calibration."""
        ...


@dataclass(slots=True)
class _Watched:
    """What is known of one machine."""

    provider: Provider | None = None
    state: MachineState | None = None
    reason: str | None = _ASKED
    checked: datetime | None = None
    checked_s: float = float("-inf")
    is_asking: bool = False


class Machines:
    """See the module.

    Args:
        open_provider: Logs in and finds a machine by the name of its backend.
    """

    def __init__(self, open_provider: Callable[[str], Provider]) -> None:
        self._open = open_provider
        self._watched: dict[str, _Watched] = {}
        self._changed = threading.Condition()

    async def describe(self, backends: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Backends with how their machines are, JSON-ready; what is old is asked again meanwhile.

        Args:
            backends: Each with ``name``, ``paid``, and ``calibration`` of what it has run on.
        """
        names = [one["name"] for one in backends if one["paid"]]
        asked = [name for name in names if self._refresh(name)]
        if asked:
            await asyncio.to_thread(self._wait_for, asked)
        return [_described(one, self._watched[one["name"]] if one["paid"] else None) for one in backends]

    def _refresh(self, name: str) -> bool:
        """Let a thread ask, unless what is known is fresh; True for the first to ask, who may wait a moment."""
        with self._changed:
            found = self._watched.setdefault(name, _Watched())
            if found.is_asking or time.monotonic() - found.checked_s < _FRESH_S:
                return False
            found.is_asking = True
            threading.Thread(target=self._ask, args=(name, found), name=f"machine-{name}", daemon=True).start()
            return found.checked is None

    def _ask(self, name: str, found: _Watched) -> None:
        state, reason, provider = None, None, found.provider
        try:
            provider = provider or self._open(name)
            state = provider.state()
        except HqtlError as error:
            reason, provider = str(error), None  # the next time it logs in again
        except Exception:
            logger.exception("the machine %s cannot be asked", name)
            reason, provider = "it cannot be asked; the log of the service says why", None
        with self._changed:
            found.state, found.reason, found.provider = state, reason, provider
            found.checked, found.checked_s, found.is_asking = datetime.now(UTC), time.monotonic(), False
            self._changed.notify_all()

    def _wait_for(self, names: list[str]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: all(self._watched[name].checked for name in names), _MOMENT_S)


def open_machine(name: str) -> Provider:
    """The machine of a backend, after a login.

    Raises:
        HqtlError: See :func:`hqtl_common.backends.ibm.open_provider`.
    """
    from hqtl_common.backends.ibm import open_provider

    return open_provider(name, mode="job", dynamical_decoupling=None, twirling=False, rep_delay=None)


def age_days(calibration: str | None) -> float | None:
    """Days since a date (ISO 8601; UTC where it does not say), None where it is none."""
    try:
        date = datetime.fromisoformat(calibration or "")
    except ValueError:
        return None
    return round((datetime.now(UTC) - (date if date.tzinfo else date.replace(tzinfo=UTC))).total_seconds() / 86400, 2)


def _described(backend: dict[str, Any], found: _Watched | None) -> dict[str, Any]:
    state = found and found.state
    calibration = (state and state.calibration) or backend["calibration"]
    return {
        **backend,
        "calibration": calibration,
        "calibration_age_days": age_days(calibration),
        "queue": state and state.queue,
        "operational": state and state.is_operational,
        "unknown_because": found and found.reason,
        "checked": found and found.checked and found.checked.isoformat(timespec="seconds"),
    }
