"""One ISA circuit per head and machine, its noise, and both as a program for :mod:`hqtl_common.backends.noisy`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, Gate, ParameterExpression
from qiskit.quantum_info import PTM, Operator, SuperOp
from qiskit.transpiler import Target, generate_preset_pass_manager
from qiskit.transpiler.exceptions import TranspilerError
from qiskit_aer.noise import NoiseModel, QuantumError

from hqtl_common.backends.machine import Machine
from hqtl_common.backends.mitigation_circuits import CALIBRATION_PARAMETER, calibration_circuit, folded, measured_qubits
from hqtl_common.backends.noisy import Angle, Channel, Program, Rotation, Step, merge, readout_channel, rotation_matrix
from hqtl_common.circuit import qiskit_circuit
from hqtl_common.errors import CapabilityError
from hqtl_common.specs import HeadSpec

__all__ = ["MAX_ACTIVE_QUBITS", "IsaHead", "isa_calibration", "isa_head", "noise_model_of"]

F64 = NDArray[np.float64]

MAX_ACTIVE_QUBITS = 8  # 4^8 numbers per row: half a megabyte

# Gates with parameters as rotations in the order in which they act (up to a phase): axis, position of the angle.
_ROTATIONS: dict[str, tuple[tuple[Any, int], ...]] = {
    "rz": (("z", 0),),
    "p": (("z", 0),),
    "u1": (("z", 0),),
    "rx": (("x", 0),),
    "ry": (("y", 0),),
    "u": (("z", 2), ("y", 0), ("z", 1)),
    "u3": (("z", 2), ("y", 0), ("z", 1)),
}
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class IsaHead:
    """A head as a machine would run it.

    Args:
        circuit: The ISA circuit with the head's parameters, measured into ``meas``.
        noise: Aer's noise model of the machine, for the gates of ``circuit``.
        layout: Physical qubit on which each qubit starts.
        depth: Of ``circuit``.
        two_qubit_gates: In ``circuit``.
        program: The same with its noise, None where the exact engine cannot run it.
        reason: Why ``program`` is None.
    """

    circuit: QuantumCircuit
    noise: NoiseModel
    layout: tuple[int, ...]
    depth: int
    two_qubit_gates: int
    program: Program | None
    reason: str | None


def isa_head(machine: Machine, spec: HeadSpec, optimization_level: int, seed_transpiler: int, factor: int = 1) -> IsaHead:
    """Transpile once; further calls with the same arguments get the same object.

    Args:
        machine: Where to run.
        spec: The head.
        optimization_level: Effort of Qiskit's transpiler.
        seed_transpiler: Its seed.
        factor: How often each two-qubit gate runs, odd; see :func:`hqtl_common.backends.mitigation_circuits.folded`.

    Raises:
        CapabilityError: The head does not fit on the machine, or not beside what is out of order there, or cannot be folded.
    """
    with _LOCK:  # a snapshot completes itself when first read
        return _isa_head(machine, spec, optimization_level, seed_transpiler, factor)


def isa_calibration(machine: Machine, head: IsaHead) -> IsaHead:
    """The calibration circuit on the qubits that a head measures; its one parameter is ``state``."""
    with _LOCK:
        return _isa_calibration(machine, tuple(measured_qubits(head.circuit)))


@lru_cache(maxsize=64)
def _isa_head(machine: Machine, spec: HeadSpec, optimization_level: int, seed_transpiler: int, factor: int) -> IsaHead:
    if factor != 1:
        single = _isa_head(machine, spec, optimization_level, seed_transpiler, 1)
        return _isa(folded(single.circuit, factor), single.noise, single.layout, _columns(spec))
    passes = generate_preset_pass_manager(optimization_level, target=machine.target, seed_transpiler=seed_transpiler)
    try:
        circuit = passes.run(qiskit_circuit(spec, measure=True))
    except TranspilerError as error:
        raise CapabilityError(
            f"a head of {spec.num_qubits} qubits does not fit on {machine.name!r} ({machine.target.num_qubits} qubits): {error}"
        ) from error
    _check_order(machine, circuit)
    layout = tuple(circuit.layout.initial_index_layout(filter_ancillas=True))
    return _isa(circuit, noise_model_of(machine.target, circuit), layout, _columns(spec))


@lru_cache(maxsize=64)
def _isa_calibration(machine: Machine, qubits: tuple[int, ...]) -> IsaHead:
    circuit = calibration_circuit(len(qubits), machine.target, list(qubits))
    return _isa(circuit, noise_model_of(machine.target, circuit), qubits, {CALIBRATION_PARAMETER: 0})


def _isa(circuit: QuantumCircuit, noise: NoiseModel, layout: tuple[int, ...], columns: dict[str, int]) -> IsaHead:
    try:
        program, reason = _program(circuit, noise, columns), None
    except CapabilityError as error:
        program, reason = None, str(error)
    return IsaHead(circuit, noise, layout, circuit.depth(), circuit.num_nonlocal_gates(), program, reason)


def _check_order(machine: Machine, circuit: QuantumCircuit) -> None:
    """IBM marks what is out of order by an error of 1: results would be coin flips."""
    for instruction in _instructions(circuit):
        name, qubits = instruction.operation.name, _qubits(circuit, instruction)
        properties = machine.target[name].get(qubits)
        if properties is not None and properties.error is not None and properties.error >= 1:
            raise CapabilityError(
                f"{machine.name!r} marks {name} on {qubits} as out of order (error 1), and this head has to use it; choose another machine"
            )


@dataclass(frozen=True, slots=True)
class _TargetAlone:
    """The little that Aer's ``NoiseModel.from_backend`` reads of a backend."""

    target: Target
    version: int = 2

    @property
    def operation_names(self) -> list[str]:
        return list(self.target.operation_names)

    @property
    def dt(self) -> float | None:
        dt: float | None = self.target.dt
        return dt


def noise_model_of(target: Target, circuit: QuantumCircuit) -> NoiseModel:
    """Aer's ``NoiseModel.from_backend`` of a machine, restricted to the gates of an ISA circuit (the rest takes seconds)."""
    used: dict[str, dict[tuple[int, ...], Any]] = {}
    for instruction in _instructions(circuit):
        name, qubits = instruction.operation.name, _qubits(circuit, instruction)
        used.setdefault(name, {})[qubits] = target[name].get(qubits)
    part = Target(num_qubits=target.num_qubits, dt=target.dt, qubit_properties=target.qubit_properties)
    for name, properties in used.items():
        part.add_instruction(target.operation_from_name(name), properties)
    return NoiseModel.from_backend(_TargetAlone(part))


def _columns(spec: HeadSpec) -> dict[str, int]:
    return {f"angles[{k}]": k for k in range(spec.num_angles)} | {f"weights[{k}]": spec.num_angles + k for k in range(spec.num_weights)}


def _program(circuit: QuantumCircuit, noise: NoiseModel, columns: dict[str, int]) -> Program:
    """Raises CapabilityError where the exact engine cannot run the circuit; ``columns`` say where a parameter's values stand."""
    measured = measured_qubits(circuit)
    touched = {qubit for instruction in _instructions(circuit) for qubit in _qubits(circuit, instruction)}
    active = [*measured, *sorted(touched - set(measured))]
    if len(active) > MAX_ACTIVE_QUBITS:
        raise CapabilityError(f"{len(active)} qubits are too many for an exact density matrix (at most {MAX_ACTIVE_QUBITS})")
    position = {qubit: k for k, qubit in enumerate(active)}
    errors = {(entry["type"], entry["operations"][0], tuple(entry["gate_qubits"][0])): entry for entry in noise.to_dict()["errors"]}
    steps: list[Step] = []
    constant: dict[tuple[Any, ...], list[Step]] = {}  # a gate without parameters is always the same
    for instruction in _instructions(circuit):
        if instruction.operation.name == "measure":
            continue
        gate, qubits = instruction.operation, _qubits(circuit, instruction)
        name, places = (gate.name, *qubits), tuple(position[qubit] for qubit in qubits)
        if gate.params or name not in constant:
            constant[name] = list(_gate(gate, places, columns))
            if error := errors.get(("qerror", gate.name, qubits)):
                constant[name].append(Channel(places, _transfer_tensor(SuperOp(QuantumError.from_dict(error)))))
        steps += constant[name]
    readouts = (_readout(qubit, position[qubit], errors, qubit in measured) for qubit in active)
    return Program(len(active), len(measured), (*merge(steps), *readouts))


def _instructions(circuit: QuantumCircuit) -> Iterator[CircuitInstruction]:
    return (instruction for instruction in circuit.data if instruction.operation.name != "barrier")


def _qubits(circuit: QuantumCircuit, instruction: CircuitInstruction) -> tuple[int, ...]:
    return tuple(circuit.find_bit(qubit).index for qubit in instruction.qubits)


def _gate(gate: Any, places: tuple[int, ...], columns: dict[str, int]) -> Iterator[Step]:
    if not isinstance(gate, Gate):
        raise CapabilityError(f"the exact noisy engine has no {gate.name!r}")
    if not any(getattr(value, "parameters", ()) for value in gate.params):
        yield Channel(places, _transfer_tensor(Operator(gate)))
        return
    if gate.name not in _ROTATIONS:
        raise CapabilityError(f"the exact noisy engine has no {gate.name!r} with parameters")
    for axis, index in _ROTATIONS[gate.name]:
        angle = _affine(gate.params[index], columns)
        yield Rotation(places[0], axis, angle) if angle.columns else Channel(places, rotation_matrix(axis, angle.offset))


def _affine(value: Any, columns: dict[str, int]) -> Angle:
    """An angle of the ISA circuit, for example ``angles[0] + π``, by parameter name."""
    if not isinstance(value, ParameterExpression):
        return Angle(float(value))
    parameters = sorted(value.parameters, key=lambda parameter: columns[parameter.name])

    def at(point: F64) -> float:
        return float(value.bind(dict(zip(parameters, point.tolist(), strict=True))))

    offset = at(np.zeros(len(parameters)))
    factors = [at(unit) - offset for unit in np.eye(len(parameters))]
    probe = np.linspace(-2.3, 3.1, len(parameters))
    if abs(at(probe) - offset - probe @ factors) > 1e-9:
        raise CapabilityError(f"the exact noisy engine has no angles such as {value}")
    return Angle(offset, tuple(columns[parameter.name] for parameter in parameters), tuple(factors))


def _transfer_tensor(channel: Any) -> F64:
    """Pauli transfer matrix as (4,)·m outputs, (4,)·m inputs, in the order of the qubits (Qiskit's is reversed)."""
    num_qubits = channel.num_qubits
    tensor = np.real(PTM(channel).data).reshape((4,) * (2 * num_qubits))
    return np.transpose(tensor, (*range(num_qubits - 1, -1, -1), *range(2 * num_qubits - 1, num_qubits - 1, -1)))


def _readout(qubit: int, place: int, errors: dict[tuple[str, str, tuple[int, ...]], Any], is_measured: bool) -> Channel:
    if not is_measured:
        return readout_channel(place, None)
    error = errors.get(("roerror", "measure", (qubit,)))
    return readout_channel(place, np.eye(2) if error is None else np.array(error["probabilities"], dtype=np.float64))
