"""Machines and jobs without a server: snapshots, content, prices."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit_ibm_runtime import RuntimeEncoder
from qiskit_ibm_runtime.utils.backend_decoder import configuration_from_server_data, properties_from_server_data

from hqtl_common.backends.snapshots import snapshot_names
from hqtl_common.errors import UnknownBackendError
from training.emulator.devices import Device
from training.emulator.runner import WorkError, decode, encode, misshape, parse_result, simulate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def device() -> Device:
    return Device("ibm_lima")


def rotation(name: str = "circuit", parameter: str = "θ", qubit: int = 1) -> QuantumCircuit:
    circuit = QuantumCircuit(5, 1, name=name)
    circuit.sx(qubit)
    circuit.rz(2 * Parameter(parameter) + 1, qubit)
    circuit.sx(qubit)
    circuit.measure(qubit, 0)
    return circuit


def parameters(*pubs: Any, **options: Any) -> str:
    return json.dumps({"pubs": [SamplerPub.coerce(pub) for pub in pubs], "options": options, "version": 2}, cls=RuntimeEncoder)


TABLE = np.linspace(0, 1, 6).reshape(3, 2, 1)


@pytest.mark.parametrize("name", snapshot_names())
def test_the_client_reads_every_snapshot(name: str) -> None:
    device = Device(name.replace("fake_", "ibm_"))
    configuration = configuration_from_server_data(copy.deepcopy(device.configuration))
    properties = properties_from_server_data(copy.deepcopy(device.properties()))
    assert (configuration.backend_name, configuration.simulator) == (properties.backend_name, False) == (device.name, False)
    assert configuration.num_qubits == device.num_qubits


def test_a_name_without_snapshot() -> None:
    with pytest.raises(UnknownBackendError, match="did you mean fake_kolkata"):
        Device("ibm_kolkatta")


def test_a_calibration_has_a_date_and_a_time_from_which_it_holds() -> None:
    device = Device("ibm_lima")
    device.recalibrate(1000.0, 3.0)
    old, new = device.properties(999.0), device.properties(1000.0)
    assert (old["last_update_date"], new["last_update_date"]) == ("2021-03-15T04:36:03+00:00", "2021-03-16T04:36:03+00:00")
    errors = [[gate["parameters"][0]["value"] for gate in properties["gates"] if gate["gate"] == "cx"] for properties in (old, new)]
    assert errors[1] == pytest.approx([3 * error for error in errors[0]])
    assert device.properties() == new


def test_the_key_is_of_the_content_alone(device: Device) -> None:
    def key(circuit: QuantumCircuit, table: Any = TABLE, shots: int = 10, machine: Device = device, **options: Any) -> str:
        return decode(machine, parameters((circuit, table, shots), **options)).key

    first = key(rotation())
    assert first == key(rotation("another name", "φ"))
    others = [
        key(rotation(qubit=2)),
        key(rotation(), TABLE + 1e-12),
        key(rotation(), shots=11),
        key(rotation(), TABLE.reshape(6, 1)),
        key(rotation(), machine=Device("ibm_belem")),
        key(rotation(), twirling={"enable_gates": True}),
    ]
    assert len({first, *others}) == 7


def test_the_result_is_the_same_in_another_process(device: Device) -> None:
    code = (
        "from tests.ibm_emulator.test_work import *\n"
        "work = decode(Device('ibm_lima'), parameters((rotation(), TABLE, 100)))\n"
        "print(encode(simulate(work, 5)), end='')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True)
    work = decode(device, parameters((rotation(), TABLE, 100)))
    assert encode(simulate(work, 5)) == other.stdout != encode(simulate(work, 6))


def test_rows_are_sampled_each_on_its_own(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.emulator.runner._CHUNK_EXECUTIONS", 2000)
    work = decode(device, parameters((rotation(), np.full((5, 1), 0.7), 1000)))
    bits = simulate(work, 0)[0].data.c.array
    assert bits.shape == (5, 1000, 1)
    assert len({row.tobytes() for row in bits}) == 5
    probability = np.sin(0.5 * (np.pi - (2 * 0.7 + 1))) ** 2  # of |1⟩ after SX·RZ·SX, without noise
    assert np.abs(bits.mean(axis=(1, 2)) - probability).max() < 0.12


def test_a_circuit_without_parameters(device: Device) -> None:
    circuit = QuantumCircuit(5, 9)
    circuit.x(0)
    circuit.measure(0, 8)
    for table, shape in ((None, (500, 2)), (np.zeros((2, 3, 0)), (2, 3, 500, 2))):
        bits = simulate(decode(device, parameters((circuit, table, 500))), 0)[0].data.c
        assert bits.array.shape == shape
        assert bits.array[..., 0].mean() > 0.8
        assert not bits.array[..., 1].any()


def test_executions_and_seconds(device: Device) -> None:
    work = decode(device, parameters((rotation(), TABLE, 10), (rotation(), TABLE[:, 0], 100), execution={"rep_delay": 1e-3}))
    duration = rotation().estimate_duration(device.target)
    assert work.executions == 360
    assert work.seconds == pytest.approx(2 + 360 * (1e-3 + duration))
    assert decode(device, parameters((rotation(), TABLE[0]))).executions == 2 * 4096
    assert decode(device, parameters((rotation(), TABLE[0]), default_shots=7)).executions == 14


def test_what_is_no_job(device: Device) -> None:
    far, foreign = QuantumCircuit(5, 1), QuantumCircuit(7, 1)
    far.cx(0, 4)
    for circuit in (far, foreign):
        circuit.measure(0, 0)
    texts = {
        "not supported": parameters((far, None, 1)),
        "7 qubits": parameters((foreign, None, 1)),
        "not the parameters": "{}",
        "no circuit": '{"pubs": []}',
        "without parameter sets": parameters((rotation(), np.zeros((0, 1)), 1)),
    }
    for message, text in texts.items():
        with pytest.raises(WorkError, match=message):
            decode(device, text)


def test_a_result_survives_its_encoding_and_can_be_spoiled(device: Device) -> None:
    result = simulate(decode(device, parameters((rotation(), TABLE, 10), (rotation(), TABLE[0, 0], 10))), 0)
    again = parse_result(encode(result))
    assert all(np.array_equal(one.data.c.array, other.data.c.array) for one, other in zip(result, again, strict=True))
    shapes = {missing: [pub.data.c.array.shape for pub in misshape(result, missing)] for missing in ("rows", "shots", "pubs")}
    assert shapes == {"rows": [(2, 2, 10, 1), (9, 1)], "shots": [(3, 2, 9, 1), (9, 1)], "pubs": [(3, 2, 10, 1)]}
    assert [len(pub.data) for pub in misshape(result, "register")] == [0, 0]
