"""What one key may do, checked before anything runs or is spent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

from hqtl_common.backends.registry import backend_capabilities
from serving.errors import FieldError, ForbiddenError, QuotaError
from serving.keys import Key

__all__ = ["check_request", "check_spending", "day_start", "may_use", "refuse_paid", "seconds_left"]


def may_use(key: Key, backend: str) -> bool:
    """True if a key was granted a backend; a paid one needs QPU seconds and jobs as well.

    Raises:
        UnknownBackendError: No such backend.
    """
    grants = key.grants
    if not any(fnmatchcase(backend, pattern) for pattern in grants.backends):
        return False
    return not backend_capabilities(backend).paid or (grants.qpu_seconds_per_day != 0 and grants.jobs_per_day != 0)


def check_request(key: Key, backend: str, shots: int | None) -> None:
    """Refuse what the key was not granted.

    Args:
        key: Whose request it is.
        backend: One that the service offers.
        shots: Most shots per image that the request asks for, None = exact.

    Raises:
        ForbiddenError: Another backend, or more shots.
    """
    if not may_use(key, backend):
        raise ForbiddenError(f"the key {key.id} may not use the backend {backend!r}; GET /v1/backends says what it may use")
    if key.grants.max_shots is not None and (shots or 0) > key.grants.max_shots:
        raise ForbiddenError(f"the key {key.id} may use at most {key.grants.max_shots:,} shots per image; got {shots:,}")


def refuse_paid(backend: str) -> None:
    """Refuse a paid backend where an answer is given at once.

    Raises:
        FieldError: It is one.
    """
    if backend_capabilities(backend).paid:
        raise FieldError("backend", f"must be one that answers at once; {backend} is paid: use POST /v1/jobs")


def check_spending(key: Key, *, jobs_today: int, qpu_seconds_today: float, jobs: int = 1, qpu_seconds: float = 0.0) -> None:
    """Refuse a job that would go beyond the key's day; the ledger knows what it has spent since :func:`day_start`.

    Args:
        key: Whose jobs they are.
        jobs_today: Submitted since the day began.
        qpu_seconds_today: Spent, and estimated for what still runs.
        jobs: Of this request.
        qpu_seconds: Estimate for this request.

    Raises:
        QuotaError: The day's jobs or seconds would be exceeded.
    """
    grants = key.grants
    if grants.jobs_per_day is not None and jobs_today + jobs > grants.jobs_per_day:
        raise QuotaError(f"the key {key.id} may submit {grants.jobs_per_day:,} jobs a day and has submitted {jobs_today:,}", seconds_left())
    if grants.qpu_seconds_per_day is not None and qpu_seconds_today + qpu_seconds > grants.qpu_seconds_per_day:
        limit = grants.qpu_seconds_per_day
        raise QuotaError(
            f"the key {key.id} may spend {limit:g} QPU seconds a day; {qpu_seconds_today:.1f} are spent and this needs {qpu_seconds:.1f}",
            seconds_left(),
        )


def day_start(now: datetime | None = None) -> datetime:
    """When the day of the quotas began (UTC)."""
    return (now or datetime.now(UTC)).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def seconds_left() -> int:
    """Until the next day of the quotas begins."""
    now = datetime.now(UTC)
    return max(1, int((day_start(now) + timedelta(days=1) - now).total_seconds()))
