"""``bentoml serve`` killed between submit and result of a paid job: the next start brings the result, and one job was paid."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hqtl_common import ModelBundle
from hqtl_common.ledger import Ledger
from serving.client import Answer, Client, Options
from tests.e2e.test_bentoml import Served, make_key, wait_until
from tests.ibm_emulator.conftest import end_waiting
from tests.integration.test_service import PHOTOS
from training.emulator import Emulator, EmulatorOptions, emulated_environment, start

MACHINE = "ibm:ibm_lima"
SECRETS = (b"emulated-api-key", b"crn:v1:")
QUEUE_S = 1e5


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with start(EmulatorOptions(backends=("ibm_lima",), queue_seconds=(QUEUE_S, QUEUE_S), time_factor=1.0)) as emulator:
        yield emulator


def kill(served: Served) -> None:
    """Everything at once, as when the machine loses power."""
    for process in [served.process, *served.process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    served.process.wait()


def test_killed_between_submit_and_result(bundle: ModelBundle, emulator: Emulator, tmp_path: Path) -> None:
    keys, jobs = tmp_path / "keys.json", tmp_path / "jobs.sqlite"
    token = make_key(keys, qpu_seconds_per_day=100, jobs_per_day=5)
    variables = {
        "HQTL_BUNDLE": str(bundle.path),
        "HQTL_BACKENDS": f"statevector,{MACHINE}",
        "HQTL_KEYS": str(keys),
        "HQTL_JOBS": str(jobs),
        "HQTL_JOBS_POLL_S": "0.2",
        "HQTL_JOBS_SETTLE_S": "2",
        **emulated_environment(emulator, plan="pay-as-you-go"),
    }

    def served() -> Served:
        served = Served(tmp_path, "serving.service:HybridService", **variables)
        served.token = token
        return served

    images, asked = [data for _, data in PHOTOS[:2]], Options(backend=MACHINE, shots=300, fallback="statevector")
    first = served()
    try:
        first.wait_ready()
        now = Client(first.url, token).predict(images, asked, idempotency_key="order-7")
        assert isinstance(now, Answer)
        assert now.job_id is not None
        wait_until(lambda: emulator.stats()["jobs_accepted"] == 1)
    finally:
        kill(first)
    assert emulator.stats()["jobs_executed"] == 0, "it was to die before the result"
    end_waiting(emulator)
    second = served()
    try:
        second.wait_ready()
        client = Client(second.url, token)
        job = client.wait(now.job_id, timeout_s=300)
        again = client.predict(images, asked, idempotency_key="order-7")
        assert isinstance(again, Answer)
        assert again.job_id == now.job_id
    finally:
        second.process.terminate()
        second.process.wait(300)
        log = second.log.read_text()
    stats = emulator.stats()
    assert (stats["submits_received"], stats["jobs_executed"]) == (1, 1)
    (entry,) = Ledger(jobs).find()
    assert job.job_ids == [entry.job_id]
    assert (job.backend_used, job.qpu_seconds) == (MACHINE, stats["qpu_seconds"])
    assert job.answer is not None
    assert job.fallback is not None
    assert all(one.interval for one in job.answer.predictions)
    assert job.fallback.predictions == now.predictions
    assert "Traceback" not in log
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not [secret for secret in SECRETS if secret in written]
