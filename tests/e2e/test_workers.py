"""Two workers of ``bentoml serve`` on one file of jobs: whichever is asked, one owns the jobs, and a death costs nothing twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from hqtl_common import ModelBundle
from hqtl_common.ledger import Ledger
from serving.client import Client
from serving.limits import seconds_left
from tests.e2e.test_bentoml import Served, make_key, wait_until
from tests.integration.test_service import PHOTOS, body
from training.emulator import Emulator, EmulatorOptions, emulated_environment, start

MACHINE = "ibm:ibm_lima"
JOBS = 3  # through each worker
QUEUE_S = 3.0


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with start(EmulatorOptions(backends=("ibm_lima",), queue_seconds=(QUEUE_S, QUEUE_S), time_factor=1.0)) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def service(bundle: ModelBundle, emulator: Emulator, folder: Path) -> Iterator[Served]:
    served = Served(
        folder,
        "serving.service:HybridService",
        BENTOML_CONFIG_OPTIONS="services.hqtl.workers=2",
        HQTL_BUNDLE=str(bundle.path),
        HQTL_BACKENDS=f"statevector,{MACHINE}",
        HQTL_KEYS=str(folder / "keys.json"),
        HQTL_JOBS=str(folder / "jobs.sqlite"),
        HQTL_JOBS_POLL_S="0.2",
        HQTL_JOBS_SETTLE_S="15",
        HQTL_THREADS="1",
        HQTL_DECODERS="1",
        **emulated_environment(emulator, plan="pay-as-you-go"),
    )
    wait_until(lambda: seconds_left() > 120)  # of the day for which the key is given
    served.token = make_key(folder / "keys.json", qpu_seconds_per_day=100, jobs_per_day=2 * JOBS)
    try:
        served.wait_ready()
        wait_until(lambda: len(served.workers()) == 2)
        yield served
    finally:
        served.stop()


def ask(service: Served, worker: psutil.Process, method: str, path: str, token: str | None = None, **options: Any) -> httpx.Response:
    """One request that this very worker answers: both listen on one socket, so connect until it is the one that accepts."""
    headers = {"authorization": f"Bearer {token or service.token}", **options.pop("headers", {})}
    while True:
        with httpx.Client(base_url=service.url, trust_env=False, timeout=120, headers=headers) as client:
            stream = client.get("/livez").extensions["network_stream"]
            port = stream.get_extra_info("client_addr")[1]
            if any(found.raddr and found.raddr.port == port for found in worker.net_connections("inet")):
                return client.request(method, path, **options)


def submit(service: Served, worker: psutil.Process, name: str, token: str | None = None) -> httpx.Response:
    asked = body(PHOTOS[:2], backend=MACHINE, shots=100, seed=1)
    return ask(service, worker, "POST", "/v1/jobs", token, headers={"idempotency-key": name}, **asked)


def owner_of(jobs: Path) -> int:
    """The process that holds the lock of the jobs."""
    node = jobs.with_name(f"{jobs.name}.lock").stat().st_ino
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return next((int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5].endswith(f":{node}")), 0)


def test_the_owner_is_killed_in_the_middle(service: Served, emulator: Emulator, folder: Path) -> None:
    jobs, workers = folder / "jobs.sqlite", service.workers()
    pids = {worker.pid for worker in workers}
    wait_until(lambda: owner_of(jobs) in pids)
    kept = [submit(service, worker, f"order-{k}-{number}") for number in range(JOBS) for k, worker in enumerate(workers)]
    assert [answer.status_code for answer in kept] == [202] * (2 * JOBS), [answer.text for answer in kept]
    wait_until(lambda: emulator.stats()["jobs_accepted"] >= JOBS)
    first = owner_of(jobs)
    psutil.Process(first).kill()
    (survivor,) = [worker for worker in workers if worker.pid != first]
    wait_until(lambda: owner_of(jobs) not in (0, first))
    client = Client(service.url, service.token)
    done = [client.wait(answer.json()["id"], timeout_s=400) for answer in kept]
    assert all(job.answer and len(job.answer.predictions) == 2 for job in done)
    stats = emulator.stats()
    assert (stats["submits_received"], stats["jobs_executed"]) == (2 * JOBS, 2 * JOBS)
    assert sorted(entry.job_id or "" for entry in Ledger(jobs).find()) == sorted(one for job in done for one in job.job_ids)
    again = submit(service, survivor, "order-0-0")
    assert (again.status_code, again.json()["id"]) == (200, kept[0].json()["id"])
    wait_until(lambda: len(service.workers()) == 2)
    refused = [submit(service, worker, "one-too-many") for worker in service.workers()]
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in refused] == [(429, "quota")] * 2


def test_what_a_key_was_granted_holds_over_both_workers(service: Served, folder: Path) -> None:
    spender = make_key(folder / "keys.json", qpu_seconds_per_day=None, jobs_per_day=3)
    asker = make_key(folder / "keys.json", requests_per_minute=10)
    wait_until(lambda: len(service.workers()) == 2)
    workers = service.workers()
    wait_until(lambda: ask(service, workers[0], "GET", "/v1/jobs", spender).status_code == 200)
    wait_until(lambda: ask(service, workers[1], "GET", "/v1/jobs", spender).status_code == 200)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(submit, service, workers[k % 2], f"at-once-{k}", spender) for k in range(8)]
        statuses = [future.result().status_code for future in asked]
    assert sorted(statuses) == [202] * 3 + [429] * 5
    started = time.monotonic()
    answers = [ask(service, workers[k % 2], "GET", "/v1/model", asker) for k in range(24)]
    refilled = (time.monotonic() - started) / 6
    taken = sum(answer.status_code == 200 for answer in answers)
    assert 10 <= taken <= 10 + refilled + 1
    for refused in (answer for answer in answers if answer.status_code != 200):
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit")
        assert 1 <= int(refused.headers["retry-after"]) <= 6
    assert ask(service, workers[0], "GET", "/readyz", asker).status_code == 200, "health is not counted"
