"""What may be spent in a day: by one key, and by all of them together."""

from __future__ import annotations

from serving import limits
from serving.errors import QuotaError
from serving.jobs.records import Estimate, Spent
from serving.keys import Key
from serving.settings import ServiceSettings

__all__ = ["Budget"]


class Budget:
    """Bounds what paid jobs may cost; whoever asks it holds the file of the jobs, so that nobody else spends meanwhile.

    Args:
        settings: The operator's limits for all keys together.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._jobs, self._seconds = settings.max_paid_jobs_per_day, settings.max_qpu_seconds_per_day

    def check(self, key: Key, needs: Estimate, mine: Spent, everybody: Spent) -> None:
        """Refuse a job that would go beyond the day of its key or of the service.

        Args:
            key: Whose job it is.
            needs: What it needs.
            mine: What the key has spent since the day began.
            everybody: What all keys have.

        Raises:
            QuotaError: It would.
        """
        limits.check_spending(key, jobs_today=mine.jobs, qpu_seconds_today=mine.qpu_seconds, jobs=needs.jobs, qpu_seconds=needs.qpu_seconds)
        if self._jobs is not None and everybody.jobs + needs.jobs > self._jobs:
            raise QuotaError(
                f"this service submits {self._jobs:,} paid jobs a day and has submitted {everybody.jobs:,}", limits.seconds_left()
            )
        if self._seconds is not None and everybody.qpu_seconds + needs.qpu_seconds > self._seconds:
            raise QuotaError(
                f"this service spends {self._seconds:g} QPU seconds a day; {everybody.qpu_seconds:.1f} are spent "
                f"and this needs {needs.qpu_seconds:.1f}",
                limits.seconds_left(),
            )

    def left(self, key: Key, mine: Spent, everybody: Spent) -> dict[str, float | None]:
        """What the key, and what the service has left of the day, JSON-ready; None is without limit."""
        grants = key.grants
        return {
            "qpu_seconds_left": _left(grants.qpu_seconds_per_day, mine.qpu_seconds),
            "jobs_left": _left(grants.jobs_per_day, mine.jobs),
            "service_qpu_seconds_left": _left(self._seconds, everybody.qpu_seconds),
            "service_jobs_left": _left(self._jobs, everybody.jobs),
        }


def _left(limit: float | None, spent: float) -> float | None:
    return None if limit is None else max(0, limit - spent)
