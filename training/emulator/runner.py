"""What a machine does with a job: decode the PUBs, count and price them, sample them with the snapshot's noise by Aer.

A result depends on the seed of the emulator, the machine and the content of the job (circuits, parameter values, shots,
options), and on nothing else: not on tags, names, times or the order of arrival.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit import QuantumCircuit, QuantumRegister
from qiskit.exceptions import QiskitError
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, SamplerPubResult
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.transpiler import Target
from qiskit_aer.noise import NoiseModel
from qiskit_aer.primitives import SamplerV2
from qiskit_ibm_runtime import RuntimeDecoder, RuntimeEncoder

from training.emulator.devices import Device

__all__ = ["DEFAULT_SHOTS", "Work", "WorkError", "decode", "encode", "misshape", "parse_result", "simulate"]

DEFAULT_SHOTS = 4096
_START_SECONDS = 2.0  # of every job
_REP_DELAY_SECONDS = 250e-6  # between executions, unless the job's options say otherwise
_EXACT_QUBITS = 10  # beyond, Aer samples trajectories instead of keeping the density matrix
_CHUNK_EXECUTIONS = 2**20  # what one call to Aer holds as Python strings

_aer = threading.Lock()


class WorkError(ValueError):
    """The parameters of a job cannot be run."""


@dataclass(frozen=True, slots=True)
class Work:
    """A decoded job.

    Args:
        device: The machine.
        pubs: Its PUBs.
        key: SHA-256 of the content.
        executions: Parameter sets × shots over all PUBs.
        seconds: QPU seconds that the job takes.
    """

    device: Device
    pubs: tuple[SamplerPub, ...]
    key: str
    executions: int
    seconds: float


def decode(device: Device, parameters: str) -> Work:
    """Read the ``params`` of a submitted job.

    Args:
        device: The machine that it is for.
        parameters: JSON as the client encodes it.

    Raises:
        WorkError: Not the parameters of a Sampler job for this machine.
    """
    try:
        values = json.loads(parameters, cls=RuntimeDecoder)
        options = values.get("options") or {}
        pubs = tuple(SamplerPub.coerce(tuple(pub), options.get("default_shots") or DEFAULT_SHOTS) for pub in values["pubs"])
    except (KeyError, TypeError, ValueError, AttributeError, QiskitError) as error:
        raise WorkError(f"these are not the parameters of a Sampler job: {error}") from error
    if (options.get("execution") or {}).get("meas_type", "classified") != "classified":
        raise WorkError("only classified measurements are emulated")
    for pub in pubs:
        _check_isa(pub.circuit, device.target)
    executions = [pub.parameter_values.size * pub.shots for pub in pubs]
    if not executions or min(executions) < 1:
        raise WorkError("the job has no circuit, or one without parameter sets or shots")
    delay = (options.get("execution") or {}).get("rep_delay") or _REP_DELAY_SECONDS
    durations = [_duration(pub.circuit, device.target) for pub in pubs]
    seconds = _START_SECONDS + sum((delay + duration) * count for duration, count in zip(durations, executions, strict=True))
    return Work(device, pubs, _content_key(device, pubs, options), sum(executions), seconds)


def simulate(work: Work, seed: int) -> PrimitiveResult[SamplerPubResult]:
    """The result of a job; the same for the same content and seed."""
    results = [_sample(work.device, pub, f"{seed}/{work.key}/{number}") for number, pub in enumerate(work.pubs)]
    return PrimitiveResult(results, metadata={"version": 2})


def encode(result: PrimitiveResult[SamplerPubResult]) -> str:
    """JSON as the platform sends it."""
    return json.dumps(result, cls=RuntimeEncoder)


def parse_result(text: str) -> PrimitiveResult[SamplerPubResult]:
    """The inverse of :func:`encode`."""
    result: PrimitiveResult[SamplerPubResult] = json.loads(text, cls=RuntimeDecoder)
    return result


def misshape(result: PrimitiveResult[SamplerPubResult], missing: str) -> PrimitiveResult[SamplerPubResult]:
    """A result that lacks its last PUB (``pubs``), or a register, the last row or the last shot of every PUB."""
    pubs = list(result)[:-1] if missing == "pubs" else [_less(pub, missing) for pub in result]
    return PrimitiveResult(pubs, metadata=result.metadata)


def _less(pub: SamplerPubResult, missing: str) -> SamplerPubResult:
    arrays = {name: bits.array for name, bits in pub.data.items()}
    sizes = {name: bits.num_bits for name, bits in pub.data.items()}
    if missing == "register":
        arrays.popitem()
    elif missing == "shots" or not pub.data.shape:
        arrays = {name: array[..., :-1, :] for name, array in arrays.items()}
    else:
        arrays = {name: array[:-1] for name, array in arrays.items()}
    shape = next(iter(arrays.values())).shape[:-2] if arrays else pub.data.shape
    return SamplerPubResult(DataBin(**{name: BitArray(array, sizes[name]) for name, array in arrays.items()}, shape=shape))


def _check_isa(circuit: QuantumCircuit, target: Target) -> None:
    """The platform runs only what the machine has."""
    if circuit.num_qubits > target.num_qubits:
        raise WorkError(f"the circuit has {circuit.num_qubits} qubits, the machine {target.num_qubits}")
    for instruction in circuit.data:
        name = instruction.operation.name
        qubits = tuple(circuit.find_bit(qubit).index for qubit in instruction.qubits)
        if name not in {"barrier", "delay"} and not target.instruction_supported(name, qubits):
            raise WorkError(f"the instruction {name} on qubits {list(qubits)} is not supported by the target system")
        if getattr(instruction.operation, "blocks", ()):
            raise WorkError("control flow is not emulated")


def _duration(circuit: QuantumCircuit, target: Target) -> float:
    """Seconds of one execution, 0 where the snapshot does not say."""
    try:
        return float(circuit.estimate_duration(target))
    except (QiskitError, TypeError, KeyError):
        return 0.0


def _content_key(device: Device, pubs: Sequence[SamplerPub], options: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([device.name, options], sort_keys=True, default=str).encode())
    for pub in pubs:
        values = np.ascontiguousarray(pub.parameter_values.as_array(pub.circuit.parameters), dtype="<f8")
        digest.update(repr((values.shape, pub.shots, _fingerprint(pub.circuit))).encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _fingerprint(circuit: QuantumCircuit) -> list[Any]:
    """Equal for equal circuits in any process; QPY bytes are not: parameters carry random identifiers."""
    probe = [math.sin(1.0 + number) for number in range(circuit.num_parameters)]
    bound = circuit.assign_parameters(probe) if probe else circuit
    registers = [(register.name, register.size) for register in circuit.cregs]
    return [circuit.num_qubits, registers, *(_described(instruction, bound) for instruction in bound.data)]


def _described(instruction: Any, circuit: QuantumCircuit) -> tuple[Any, ...]:
    operation = instruction.operation
    values = [round(float(value), 12) if isinstance(value, float | int) else repr(value) for value in operation.params]
    bits = [circuit.find_bit(bit).index for bit in (*instruction.qubits, *instruction.clbits)]
    return (operation.name, getattr(operation, "unit", None), values, bits)


def _sample(device: Device, pub: SamplerPub, seed: str) -> SamplerPubResult:
    circuit, qubits = _compact(pub.circuit)
    values = pub.parameter_values.as_array(pub.circuit.parameters)
    shape = values.shape[:-1]
    rows = values.reshape(math.prod(shape), values.shape[-1])
    method = "density_matrix" if len(qubits) <= _EXACT_QUBITS else "automatic"
    options = {"noise_model": _noise(device.target, qubits), "method": method, "max_parallel_experiments": 0}
    step = max(1, _CHUNK_EXECUTIONS // pub.shots)
    parts = [_draw(circuit, rows[k : k + step], pub.shots, options, f"{seed}/{k}") for k in range(0, len(rows), step)]
    fields = {}
    for register in circuit.cregs:
        array = np.concatenate([part[register.name].array.reshape(-1, pub.shots, (register.size + 7) // 8) for part in parts])
        fields[register.name] = BitArray(array.reshape(*shape, *array.shape[1:]), register.size)
    return SamplerPubResult(DataBin(**fields, shape=shape), metadata={"circuit_metadata": {}})


def _draw(circuit: QuantumCircuit, rows: NDArray[np.float64], shots: int, options: dict[str, Any], seed: str) -> DataBin:
    """The shots of some rows; all of them as one row where the circuit has no parameters."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") >> 1
    sampler = SamplerV2(seed=number, options={"backend_options": options})
    pub = (circuit, rows, shots) if rows.shape[1] else (circuit, None, shots * len(rows))
    with _aer:
        data: DataBin = sampler.run([pub]).result()[0].data
    return data


def _compact(circuit: QuantumCircuit) -> tuple[QuantumCircuit, tuple[int, ...]]:
    """The same circuit on the qubits that take part, and which these are: a machine of 27 qubits costs no more than 4."""
    used = sorted({circuit.find_bit(qubit).index for step in circuit.data if step.operation.name != "barrier" for qubit in step.qubits})
    position = {qubit: number for number, qubit in enumerate(used)}
    small = QuantumCircuit(QuantumRegister(len(used), "q"), *circuit.cregs)
    for step in circuit.data:
        if step.operation.name != "barrier":
            qubits = [position[circuit.find_bit(qubit).index] for qubit in step.qubits]
            small.append(step.operation, qubits, [circuit.find_bit(bit).index for bit in step.clbits])
    return small, tuple(used)


@lru_cache(maxsize=64)
def _noise(target: Target, qubits: tuple[int, ...]) -> NoiseModel:
    small = _restricted(target, qubits)
    return NoiseModel.from_backend(SimpleNamespace(version=2, target=small, operation_names=list(small.operation_names), dt=small.dt))


def _restricted(target: Target, qubits: tuple[int, ...]) -> Target:
    """The part of a target on some qubits, renumbered."""
    position = {qubit: number for number, qubit in enumerate(qubits)}
    known = target.qubit_properties
    small = Target(num_qubits=len(qubits), dt=target.dt, qubit_properties=[known[qubit] for qubit in qubits] if known else None)
    for name in target.operation_names:
        operation = target.operation_from_name(name)
        inside = {
            tuple(position[qubit] for qubit in arguments): properties
            for arguments, properties in target[name].items()
            if arguments is not None and position.keys() >= set(arguments)
        }
        if inside and not isinstance(operation, type):
            small.add_instruction(operation, inside, name=name)
    return small
