"""The installed client, unmodified, does with the emulator what it does with the platform."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.primitives import BitArray
from qiskit.providers.exceptions import QiskitBackendNotFoundError
from qiskit_aer.noise import NoiseModel
from qiskit_aer.primitives import SamplerV2 as AerSampler
from qiskit_ibm_runtime import Batch, EstimatorV2, QiskitRuntimeService, SamplerV2, Session
from qiskit_ibm_runtime.exceptions import (
    IBMInputValueError,
    IBMRuntimeError,
    RuntimeInvalidStateError,
    RuntimeJobFailureError,
    RuntimeJobMaxTimeoutError,
    RuntimeJobNotFound,
    RuntimeJobTimeoutError,
)
from qiskit_ibm_runtime.fake_provider import FakeLimaV2

from tests.ibm_emulator.conftest import Running, isa_head, submit, values
from training.emulator import INSTANCES, Emulator

OPEN, PAID = (instance.crn for instance in INSTANCES)
PARAMS = 8


def expvals(bits: BitArray) -> np.ndarray[Any, Any]:
    """⟨Z_i⟩ of every row, (R, 4)."""
    shots = np.unpackbits(bits.array, axis=-1, bitorder="big")[..., ::-1][..., :4]
    return 1.0 - 2.0 * shots.mean(axis=1)


def test_the_account_has_instances_and_machines(service: QiskitRuntimeService) -> None:
    assert {(instance["crn"], instance["plan"], instance["pricing_type"]) for instance in service.instances()} == {
        (OPEN, "open", "free"),
        (PAID, "pay-as-you-go", "paygo"),
    }
    assert service.active_instance() == PAID
    assert [backend.name for backend in service.backends(min_num_qubits=5, operational=True)] == ["ibm_lima"]
    assert service.least_busy(min_num_qubits=4).name == "ibm_lima"
    with pytest.raises(QiskitBackendNotFoundError):
        service.backend("ibm_kolkata")


def test_an_instance_may_be_given_by_name_or_not_at_all(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert QiskitRuntimeService(instance="open").active_instance() == OPEN
    monkeypatch.delenv("QISKIT_IBM_INSTANCE")
    assert QiskitRuntimeService(plans_preference=["pay-as-you-go"]).backend("ibm_lima").name == "ibm_lima"
    with pytest.raises(IBMInputValueError, match="does not have access"):
        QiskitRuntimeService(instance=OPEN.replace("emulated", "another"))


def test_a_machine_is_its_snapshot(backend: Any) -> None:
    snapshot = FakeLimaV2()
    assert backend.num_qubits == 5
    assert backend.properties().last_update_date.astimezone(UTC) == datetime(2021, 3, 15, 4, 36, 3, tzinfo=UTC)
    assert backend.properties().t1(0) == pytest.approx(snapshot.properties().t1(0))
    assert backend.target["cx"][0, 1].error == pytest.approx(snapshot.target["cx"][0, 1].error)
    assert (backend.status().operational, backend.status().status_msg, backend.status().pending_jobs) == (True, "active", 0)


def test_a_parameter_array_has_the_noise_of_the_snapshot(backend: Any) -> None:
    circuit, table = isa_head(backend), values(200)
    job = SamplerV2(mode=backend).run([(circuit, table)], shots=1024)
    options = {"noise_model": NoiseModel.from_backend(FakeLimaV2()), "method": "density_matrix", "max_parallel_experiments": 0}
    reference = AerSampler(seed=11, options={"backend_options": options}).run([(circuit, table)], shots=1024)
    measured, expected = expvals(job.result()[0].data.meas), expvals(reference.result()[0].data.meas)
    assert measured.shape == (200, 4)
    error = np.sqrt((1 - expected**2 + 1e-3) * (2 / 1024))
    assert np.max(np.abs(measured - expected) / error) < 5
    assert np.std((measured - expected) / error) == pytest.approx(1.0, abs=0.15)


def test_pubs_of_any_shape(backend: Any) -> None:
    circuit, table = isa_head(backend), values(6)
    result = SamplerV2(mode=backend).run([(circuit, table.reshape(2, 3, PARAMS), 20), (circuit, table[0], 30)]).result()
    assert [(pub.data.meas.array.shape, pub.data.shape) for pub in result] == [((2, 3, 20, 1), (2, 3)), ((30, 1), ())]
    assert result.metadata["version"] == 2


def test_a_new_process_finds_the_job_by_its_id(backend: Any, service: QiskitRuntimeService) -> None:
    job = submit(backend, tags=("hqtl",))
    first = job.result()[0].data.meas.array
    again = QiskitRuntimeService().job(job.job_id())
    assert np.array_equal(again.result()[0].data.meas.array, first)
    assert (again.status(), again.tags, again.backend().name, again.primitive_id) == ("DONE", ["hqtl"], "ibm_lima", "sampler")
    assert abs(again.creation_date - datetime.now(UTC)) < timedelta(minutes=10)
    assert np.array_equal(np.asarray(again.inputs["pubs"][0][1]), values(2))
    assert again.properties().backend_name == "ibm_lima"
    assert again.logs() == ""
    with pytest.raises(RuntimeJobNotFound):
        service.job("nothing")
    with pytest.raises(RuntimeJobNotFound):
        QiskitRuntimeService(instance=OPEN).job(job.job_id())


def test_jobs_are_found_by_tag_state_and_time(backend: Any, service: QiskitRuntimeService) -> None:
    before = datetime.now(UTC)
    jobs = [submit(backend, seed=number, tags=("all", f"number {number}")) for number in range(3)]
    for job in jobs:
        job.wait_for_final_state(300)
    identifiers = [job.job_id() for job in jobs]

    def found(**filters: Any) -> list[str]:
        return [job.job_id() for job in service.jobs(**filters)]

    assert found(job_tags=["number 1"]) == found(job_tags=["all", "number 1"]) == [identifiers[1]]
    assert found(limit=None, job_tags=["all"]) == identifiers[::-1]
    assert found(limit=None, descending=False) == identifiers
    assert found(limit=1, skip=1) == [identifiers[1]]
    assert found(backend_name="ibm_lima", program_id="sampler", pending=False, created_after=before) == identifiers[::-1]
    assert found(pending=True) == found(created_before=before) == found(backend_name="ibm_fez") == found(job_tags=["none"]) == []
    assert jobs[0].update_tags(["new"]) == ["new"]
    assert found(job_tags=["new"]) == [identifiers[0]]
    service.delete_job(identifiers[0])
    assert found(job_tags=["new"]) == []


def test_a_batch_and_a_session_hold_jobs(backend: Any, service: QiskitRuntimeService, emulator: Emulator) -> None:
    for mode in (Batch, Session):
        with mode(backend=backend, max_time="1h") as held:
            assert held.status() == "Pending"
            jobs = [submit(held, seed=seed) for seed in range(2)]
            for job in jobs:
                job.result()
            assert held.status() == "In progress, accepting new jobs"
        assert held.status() == "Closed"
        assert held.details()["max_time"] == 3600
        assert held.usage() == pytest.approx(sum(job.usage() for job in jobs))
        assert {job.job_id() for job in service.jobs(session_id=held.session_id)} == {job.job_id() for job in jobs}
        with pytest.raises(IBMRuntimeError, match="closed"):
            submit(mode.from_id(held.session_id, service))
    assert emulator.stats()["jobs"] == {"Completed": 4}


def test_the_platform_refuses_jobs_of_a_closed_session(backend: Any, service: QiskitRuntimeService, emulator: Emulator) -> None:
    session = Session(backend=backend)
    same = Session.from_id(session.session_id, service)
    session.close()
    with pytest.raises(IBMRuntimeError, match="Session has been closed"):
        submit(same)
    assert emulator.stats()["jobs_accepted"] == 0


def test_cancelling_a_session_cancels_its_jobs(running: Running) -> None:
    with running(queue_seconds=(1e5, 1e5), time_factor=1.0):
        backend = QiskitRuntimeService().backend("ibm_lima")
        session = Session(backend=backend)
        job = submit(session)
        session.cancel()
        assert job.status() == "CANCELLED"


def test_the_open_plan_has_batches_and_no_sessions(running: Running) -> None:
    with running(plan="open") as emulator:
        backend = QiskitRuntimeService().backend("ibm_lima")
        with pytest.raises(Exception, match=r"1352.*not authorized to run a session when using the open plan"):
            Session(backend=backend)
        with Batch(backend=backend) as batch:
            submit(batch).result()
        assert emulator.stats()["jobs"] == {"Completed": 1}


def test_time_is_counted_and_charged(running: Running) -> None:
    with running(plan="open", open_seconds=5.0) as emulator:
        service = QiskitRuntimeService()
        backend = service.backend("ibm_lima")
        job = submit(backend, rows=10, shots=1000)
        job.result()
        circuit = isa_head(backend)
        expected = 2 + (250e-6 + circuit.estimate_duration(backend.target)) * 10_000
        assert job.usage() == job.metrics()["usage"]["quantum_seconds"] == pytest.approx(expected)
        assert job.usage_estimation["quantum_seconds"] == pytest.approx(expected)
        usage = service.usage()
        assert usage["usage_consumed_seconds"] == pytest.approx(expected)
        assert usage["usage_remaining_seconds"] == pytest.approx(5.0 - expected)
        submit(backend, seed=1, rows=10, shots=1000).result()
        with pytest.warns(UserWarning, match="has met its usage limit"):
            waiting = submit(backend, seed=2)
        with pytest.raises(RuntimeJobTimeoutError):
            waiting.result(timeout=0.3)
        assert emulator.stats()["jobs_executed"] == 2
        assert QiskitRuntimeService(instance=PAID).usage()["usage_consumed_seconds"] == 0


def test_a_shorter_rep_delay_costs_less(backend: Any) -> None:
    plain, quick = submit(backend, shots=1000), submit(backend, shots=1000, execution={"rep_delay": 0.0001})
    assert plain.usage_estimation["quantum_seconds"] - quick.usage_estimation["quantum_seconds"] == pytest.approx(0.3)


def test_a_waiting_job_can_be_cancelled_and_a_finished_one_not(running: Running) -> None:
    with running(queue_seconds=(1e5, 1e5), time_factor=1.0) as emulator:
        backend = QiskitRuntimeService().backend("ibm_lima")
        job = submit(backend)
        assert job.status() == "QUEUED"
        assert backend.status().pending_jobs == 1
        job.cancel()
        assert QiskitRuntimeService().job(job.job_id()).status() == "CANCELLED"
        with pytest.raises(RuntimeInvalidStateError, match="cancelled"):
            job.result()
        with pytest.raises(RuntimeInvalidStateError, match="cannot be cancelled"):
            job.cancel()
        assert (emulator.stats()["jobs_executed"], emulator.stats()["qpu_seconds"]) == (0, 0)


def test_the_queue_and_the_machine_take_scaled_time(running: Running) -> None:
    with running(queue_seconds=(100.0, 200.0), time_factor=0.002):
        backend = QiskitRuntimeService().backend("ibm_lima")
        job = submit(backend, rows=100, shots=1000)  # 27 s of QPU
        job.result()
        created, began, ended = (datetime.fromisoformat(job.metrics()["timestamps"][name]) for name in ("created", "running", "finished"))
        assert 0.2 <= (began - created).total_seconds() < 100
        assert (ended - began).total_seconds() >= job.usage() * 0.002


def test_a_job_longer_than_its_limit_is_cancelled(backend: Any, emulator: Emulator) -> None:
    job = submit(backend, rows=10, shots=1000, max_execution_time=3)
    with pytest.raises(RuntimeJobMaxTimeoutError, match="Ran too long"):
        job.result()
    assert job.status() == "ERROR"
    assert job.usage() == 3
    assert emulator.stats()["jobs_executed"] == 1


def test_what_the_platform_cannot_run_fails_without_costs(running: Running) -> None:
    with running(max_executions=100) as emulator:
        backend = QiskitRuntimeService().backend("ibm_lima")
        job = submit(backend, rows=4, shots=26)
        with pytest.raises(RuntimeJobFailureError, match="104 executions are more than the 100"):
            job.result()
        job = submit(backend, execution={"meas_type": "kerneled"})
        with pytest.raises(RuntimeJobFailureError, match="classified"):
            job.result()
        with pytest.raises(IBMRuntimeError, match="Only the Sampler is emulated"):
            EstimatorV2(mode=backend).run([(QuantumCircuit(5), "ZIIII")])
        assert emulator.stats()["qpu_seconds"] == 0


def test_a_result_depends_on_content_and_seed_alone(running: Running) -> None:
    def counts(order: tuple[int, ...], **options: Any) -> dict[int, bytes]:
        with running(**options):
            backend = QiskitRuntimeService().backend("ibm_lima")
            jobs = {number: submit(backend, rows=3, seed=number, tags=(f"{options}",)) for number in order}
            return {number: job.result()[0].data.meas.array.tobytes() for number, job in jobs.items()}

    first = counts((0, 1, 2))
    assert len(set(first.values())) == 3
    assert counts((2, 0, 1), queue_seconds=(0.0, 30.0), time_factor=0.001) == first
    assert counts((0,), seed=1)[0] != first[0]


def test_the_runtime_can_also_be_reached_without_a_proxy(emulator: Emulator) -> None:
    service = QiskitRuntimeService(url_resolver=lambda url, instance, private, channel: f"{emulator.address}/api/v1")
    assert submit(service.backend("ibm_lima")).result()[0].data.meas.num_shots == 32
