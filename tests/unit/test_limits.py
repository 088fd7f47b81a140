"""What a key may do: nothing that was not granted, and nothing that costs unless granted by name and amount."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from hqtl_common.errors import UnknownBackendError
from serving.errors import ForbiddenError, QuotaError
from serving.keys import LOCAL, Grants, new_key
from serving.limits import check_request, check_spending, day_start, may_use


def key(**grants: object):  # type: ignore[no-untyped-def]
    return new_key("k", Grants(**grants))[1]  # type: ignore[arg-type]


PAID = {"qpu_seconds_per_day": 60, "jobs_per_day": 5}


@pytest.mark.parametrize(
    ("grants", "backend", "allowed"),
    [
        ({}, "statevector", True),
        ({}, "fake_lima", True),
        ({}, "ibm:ibm_fez", False),
        (PAID, "ibm:ibm_fez", True),
        ({"qpu_seconds_per_day": 60}, "ibm:ibm_fez", False),
        ({"jobs_per_day": 5}, "ibm:ibm_fez", False),
        ({**PAID, "backends": ("fake_*",)}, "ibm:ibm_fez", False),
        ({"backends": ("fake_*",)}, "fake_lima", True),
        ({"backends": ("fake_*",)}, "statevector", False),
        ({"backends": ("FAKE_*",)}, "fake_lima", False),
        ({"backends": ("aer", "stat*")}, "statevector", True),
        ({"backends": ()}, "statevector", False),
        ({"qpu_seconds_per_day": None, "jobs_per_day": None}, "ibm:ibm_fez", True),
    ],
)
def test_backends(grants: dict[str, object], backend: str, allowed: bool) -> None:
    assert may_use(key(**grants), backend) is allowed
    if allowed:
        check_request(key(**grants), backend, None)
    else:
        with pytest.raises(ForbiddenError, match="may not use the backend"):
            check_request(key(**grants), backend, None)


def test_without_authentication_nothing_can_be_spent() -> None:
    assert may_use(LOCAL, "fake_lima")
    assert not may_use(LOCAL, "ibm:ibm_fez")
    with pytest.raises(QuotaError):
        check_spending(LOCAL, jobs_today=0, qpu_seconds_today=0, qpu_seconds=0.1)


def test_an_unknown_backend_is_no_question_of_rights() -> None:
    with pytest.raises(UnknownBackendError):
        may_use(key(), "magic")


@pytest.mark.parametrize(("granted", "asked", "allowed"), [(None, 10**9, True), (100, 100, True), (100, 101, False), (100, None, True)])
def test_shots(granted: int | None, asked: int | None, allowed: bool) -> None:
    if allowed:
        check_request(key(max_shots=granted), "statevector", asked)
    else:
        with pytest.raises(ForbiddenError, match="at most 100 shots per image; got 101"):
            check_request(key(max_shots=granted), "statevector", asked)


def test_spending_stops_at_what_was_granted() -> None:
    spender = key(**PAID)
    check_spending(spender, jobs_today=4, qpu_seconds_today=50, qpu_seconds=10)
    with pytest.raises(QuotaError, match="5 jobs a day and has submitted 5") as jobs:
        check_spending(spender, jobs_today=5, qpu_seconds_today=0)
    with pytest.raises(QuotaError, match=r"60 QPU seconds a day; 50\.0 are spent and this needs 10\.1") as seconds:
        check_spending(spender, jobs_today=0, qpu_seconds_today=50, qpu_seconds=10.1)
    assert all(1 <= error.value.retry_after_s <= 86400 for error in (jobs, seconds))
    check_spending(key(qpu_seconds_per_day=None, jobs_per_day=None), jobs_today=10**6, qpu_seconds_today=1e9, qpu_seconds=1e9)


def test_the_day_begins_at_midnight_utc() -> None:
    assert day_start(datetime(2026, 11, 22, 1, 30, tzinfo=timezone(timedelta(hours=9)))) == datetime(2026, 11, 21, tzinfo=UTC)
