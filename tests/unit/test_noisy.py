"""The exact noisy engine: against Aer's density matrix, against itself written out as matrices, and as a channel."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("qiskit_aer", reason="the extra 'quantum' is not installed")
pytest.importorskip("qiskit_ibm_runtime", reason="the extra 'quantum' is not installed")

from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import PTM, Operator
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError

from hqtl_common import HeadSpec
from hqtl_common.backends import isa, noisy
from hqtl_common.backends.fake import machine_of
from hqtl_common.backends.isa import IsaHead, isa_head, noise_model_of
from hqtl_common.backends.noisy import Angle, Channel, Program, Rotation, merge, probabilities, readout_channel, rotation_matrix
from hqtl_common.backends.profiles import LINE, Profile, profile_machine
from hqtl_common.backends.snapshots import snapshot, snapshot_class
from hqtl_common.errors import CapabilityError

F64 = NDArray[np.float64]

# What they bring: rz and cx; the T of five qubits, with a swap; u1, u2, u3; rx with parameters; ecr beside cx; no measurement of their own.
SNAPSHOTS = ("fake_kolkata", "fake_lima", "fake_boeblingen", "fake_fractional", "fake_cairo", "fake_burlington")
SPECS = [HeadSpec(num_qubits=n, num_layers=layers) for n, layers in [(2, 1), (3, 3), (4, 1), (4, 2), (5, 2)]]
RNG = np.random.default_rng(7)


def table(spec: HeadSpec, rows: int, *, per_row: bool = False) -> tuple[F64, F64]:
    """Angles (R, E) and flat weights."""
    weights = RNG.uniform(-np.pi, np.pi, size=(rows, spec.num_weights) if per_row else spec.num_weights)
    return RNG.uniform(-np.pi / 2, np.pi / 2, size=(rows, spec.num_angles)), weights


# ---------------------------------------------------------------- Aer as the oracle


@cache
def whole_noise_model(name: str) -> NoiseModel:
    """Of the snapshot as it comes, not of the part that a circuit uses."""
    return NoiseModel.from_backend(snapshot_class(name)())


def by_aer(head: IsaHead, noise: NoiseModel, angles: F64, weights: F64) -> F64:
    """Outcome probabilities (R, 2^n) of the ISA circuit by Aer's density matrix, readout errors applied by hand."""
    measured = {
        head.circuit.find_bit(i.clbits[0]).index: head.circuit.find_bit(i.qubits[0]).index
        for i in head.circuit.data
        if i.operation.name == "measure"
    }
    qubits = [measured[bit] for bit in range(len(measured))]
    circuit = head.circuit.copy()
    circuit.data = [instruction for instruction in circuit.data if instruction.operation.name not in ("measure", "barrier")]
    circuit.save_probabilities(qubits)
    rows = np.broadcast_to(weights, (len(angles), weights.shape[-1]))
    values = {f"angles[{k}]": column for k, column in enumerate(angles.T)} | {f"weights[{k}]": column for k, column in enumerate(rows.T)}
    binds = {parameter: values[parameter.name].tolist() for parameter in circuit.parameters}
    result = AerSimulator(method="density_matrix", noise_model=noise).run(circuit, parameter_binds=[binds]).result()
    entries = [entry for entry in noise.to_dict()["errors"] if entry["type"] == "roerror"]
    confusions = {entry["gate_qubits"][0][0]: np.array(entry["probabilities"]) for entry in entries}
    confusion = np.eye(1)
    for qubit in qubits:
        confusion = np.kron(confusion, confusions.get(qubit, np.eye(2)))
    little_endian = np.array([result.data(row)["probabilities"] for row in range(len(angles))])
    axes = little_endian.reshape(len(angles), *(2,) * len(qubits)).transpose(0, *range(len(qubits), 0, -1))
    read: F64 = axes.reshape(len(angles), -1) @ confusion
    return read


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_probabilities_are_those_of_aer(name: str) -> None:
    for spec in SPECS if name in ("fake_kolkata", "fake_lima") else SPECS[1::2]:
        head = isa_head(machine_of(name), spec, 2, 0)
        assert head.program is not None
        angles, weights = table(
            spec, min(18, 2**spec.num_qubits + 2)
        )  # up to 4 qubits more rows than outcomes: the measurement is carried back
        # fake_burlington's target lacks its measurements: the whole model has no readout errors there
        noise = head.noise if name == "fake_burlington" else whole_noise_model(name)
        expected = by_aer(head, noise, angles, weights)
        # Aer drops Kraus terms of a probability below 1e-9 (fake_cairo has some), we do not.
        np.testing.assert_allclose(probabilities(head.program, angles, weights), expected, atol=1e-9)
        angles, weights = table(spec, 3, per_row=True)
        np.testing.assert_allclose(probabilities(head.program, angles, weights), by_aer(head, noise, angles, weights), atol=1e-9)


@pytest.mark.parametrize("optimization_level", [1, 3])
def test_other_levels_of_the_transpiler_agree_too(optimization_level: int) -> None:
    spec = HeadSpec(num_layers=2)
    head = isa_head(machine_of("fake_kolkata"), spec, optimization_level, 5)
    assert head.program is not None
    angles, weights = table(spec, 3)
    expected = by_aer(head, whole_noise_model("fake_kolkata"), angles, weights)
    np.testing.assert_allclose(probabilities(head.program, angles, weights), expected, atol=1e-12)


def test_noise_of_the_used_part_is_the_noise_of_the_whole() -> None:
    head = isa_head(machine_of("fake_lima"), HeadSpec(), 2, 0)

    def entries(model: NoiseModel) -> dict[tuple[str, tuple[int, ...]], list[float]]:
        found = model.to_dict()["errors"]
        return {(e["operations"][0], tuple(e["gate_qubits"][0])): np.ravel(e["probabilities"]).tolist() for e in found}

    part, whole = entries(noise_model_of(snapshot("fake_lima").target, head.circuit)), entries(whole_noise_model("fake_lima"))
    assert part.keys() <= whole.keys()
    assert {"cx", "sx", "measure"} <= {name for name, _ in part}
    assert all(part[key] == whole[key] for key in part)


def test_readout_errors_may_differ_for_zero_and_one() -> None:
    """The machines here read 0 and 1 equally badly; the engine does not depend on it."""
    spec = HeadSpec(num_qubits=2)
    head = isa_head(machine_of("fake_lima"), spec, 2, 0)
    noise = NoiseModel()
    for k, qubit in enumerate(head.layout):
        noise.add_readout_error(ReadoutError([[0.9 - k / 10, 0.1 + k / 10], [0.3, 0.7]]), [qubit])
    angles, weights = table(spec, 4)
    program = isa._program(head.circuit, noise, isa._columns(spec))
    np.testing.assert_allclose(probabilities(program, angles, weights), by_aer(head, noise, angles, weights), atol=1e-12)


# ---------------------------------------------------------------- algebra


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotations_are_those_of_qiskit(axis: str) -> None:
    for angle in (-2.5, 0.3, np.pi):
        circuit = QuantumCircuit(1)
        getattr(circuit, f"r{axis}")(angle, 0)
        np.testing.assert_allclose(rotation_matrix(axis, angle), PTM(Operator(circuit)).data.real, atol=1e-12)


def test_order_of_the_qubits_of_a_pair() -> None:
    """CX with the control first turns X⊗I into X⊗X and leaves I⊗X (Qiskit's matrices have the last qubit first)."""
    circuit = QuantumCircuit(2)
    circuit.cx(0, 1)
    tensor = isa._transfer_tensor(Operator(circuit))
    assert tensor[1, 1, 1, 0] == pytest.approx(1)
    assert tensor[0, 1, 0, 1] == pytest.approx(1)


def random_program(rng: np.random.Generator, num_qubits: int, length: int) -> Program:
    """Arbitrary matrices: the algebra must hold for more than channels."""
    steps: list[noisy.Step] = []
    for _ in range(length):
        first, second = (int(q) for q in rng.permutation(num_qubits)[:2])
        kind = rng.integers(4)
        if kind == 0:
            steps.append(Channel((first, second), rng.normal(size=(4,) * 4) / 4))
        elif kind == 1:
            steps.append(Channel((first,), rng.normal(size=(4, 4)) / 2))
        else:
            columns = (int(rng.integers(4)),) if kind == 2 else (1, 3)
            axis = ("x", "y", "z")[rng.integers(3)]
            steps.append(Rotation(first, axis, Angle(rng.normal(), columns, (1.5, -0.5)[: len(columns)])))
    readouts = [readout_channel(qubit, np.array([[0.9, 0.1], [0.2, 0.8]])) for qubit in range(num_qubits - 1)]
    return Program(num_qubits, num_qubits - 1, (*steps, *readouts, readout_channel(num_qubits - 1, None)))


def written_out(program: Program, parameters: F64) -> F64:
    """One row by matrices of all qubits."""
    state = np.array([1.0])
    for _ in range(program.num_qubits):
        state = np.kron(state, [1.0, 0, 0, 1])
    for step in program.steps[: -program.num_qubits]:
        if isinstance(step, Rotation):
            angle = step.angle.offset + sum(f * parameters[c] for f, c in zip(step.angle.factors, step.angle.columns, strict=True))
            step = Channel((step.qubit,), rotation_matrix(step.axis, angle))
        matrix = np.zeros((state.size, state.size))
        for column, digits in enumerate(np.ndindex(*(4,) * program.num_qubits)):
            for outputs in np.ndindex(*(4,) * len(step.qubits)):
                out = list(digits)
                for qubit, digit in zip(step.qubits, outputs, strict=True):
                    out[qubit] = digit
                row = np.ravel_multi_index(out, (4,) * program.num_qubits)
                matrix[row, column] = step.tensor[(*outputs, *(digits[qubit] for qubit in step.qubits))]
        state = matrix @ state
    reading = np.eye(1)
    for step in program.steps[-program.num_qubits :]:
        assert isinstance(step, Channel)
        reading = np.kron(reading, step.tensor)
    result: F64 = reading @ state
    return result


@pytest.mark.parametrize("seed", range(6))
def test_engine_is_the_product_of_its_matrices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    program = random_program(rng, 3, 14)
    merged = Program(3, 2, (*merge(program.steps[:-3]), *program.steps[-3:]))
    assert len(merged.steps) < len(program.steps)
    angles, weights = rng.normal(size=(9, 2)), rng.normal(size=(9, 2))
    rows = np.hstack([angles, weights])
    expected = np.maximum([written_out(program, row) for row in rows], 0)
    for version in (program, merged):
        np.testing.assert_allclose(probabilities(version, angles, weights), expected, atol=1e-9)
        shared = [written_out(program, np.concatenate([row, weights[0]])) for row in angles]
        np.testing.assert_allclose(probabilities(version, angles, weights[0]), np.maximum(shared, 0), atol=1e-9)


def test_arguments_and_program_are_left_alone_and_tables_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = HeadSpec(num_layers=2)
    program = isa_head(machine_of("fake_lima"), spec, 2, 0).program
    assert program is not None
    for per_row in (False, True):
        angles, weights = table(spec, 23, per_row=per_row)
        before = angles.copy(), weights.copy()
        whole = probabilities(program, angles, weights)
        with monkeypatch.context() as patch:
            patch.setattr(noisy, "_CHUNK_NUMBERS", 5 * 4**4)
            np.testing.assert_allclose(probabilities(program, angles, weights), whole, atol=1e-14)
            patch.setattr(noisy, "_EFFECT_QUBITS", 0)  # without carrying the measurement back
            np.testing.assert_allclose(probabilities(program, angles, weights), whole, atol=1e-14)
        np.testing.assert_array_equal(probabilities(program, angles, weights), whole)
        np.testing.assert_array_equal(before[0], angles)
        np.testing.assert_array_equal(before[1], weights)
        assert probabilities(program, angles[:0], weights if weights.ndim == 1 else weights[:0]).shape == (0, 16)


def test_head_of_the_paper_takes_few_steps() -> None:
    """Eight rotations, and channels only between them: three CX with all that stands around them."""
    program = isa_head(machine_of("fake_kolkata"), HeadSpec(), 2, 0).program
    assert program is not None
    pairs = [step for step in program.steps if isinstance(step, Channel) and len(step.qubits) == 2]
    assert len(pairs) == 3
    assert sum(isinstance(step, Rotation) for step in program.steps) == 8
    assert len(program.steps) <= 8 + 3 + 4 + 4 + 4


def test_angles_of_an_isa_circuit_are_read_by_name() -> None:
    values = ParameterVector("weights", 12)
    columns = {f"weights[{k}]": 4 + k for k in range(12)}
    angle = isa._affine(3 - 2 * values[10] + values[2] / 4, columns)
    assert (angle.columns, angle.offset) == ((6, 14), pytest.approx(3))
    assert angle.factors == pytest.approx((0.25, -2))
    with pytest.raises(CapabilityError, match="no angles such as"):
        isa._affine(values[0] * values[1], columns)


# ---------------------------------------------------------------- any profile is a channel

times = st.one_of(st.none(), st.floats(1, 500))
errors = st.floats(0, 0.5)


@settings(max_examples=40)
@given(
    st.tuples(errors, errors, errors),
    times,
    times,
    st.floats(0, 1000),
    st.floats(0, 5000),
    st.integers(2, 4),
    st.integers(0, 10**6),
)
def test_any_profile_keeps_the_trace_and_gives_probabilities(
    chances: tuple[float, float, float], t1: float | None, t2: float | None, gate: float, cx: float, num_qubits: int, seed: int
) -> None:
    t2 = None if t2 is None else min(t2, 2 * t1) if t1 is not None else t2
    cx_error, single, readout = chances
    profile = Profile(cx_error=cx_error, single_qubit_error=single, readout_error=readout, t1_us=t1, t2_us=t2, gate_ns=gate, cx_ns=cx)
    machine = profile_machine("profile:any", profile, couplings=LINE[:3])
    spec = HeadSpec(num_qubits=num_qubits)
    rng = np.random.default_rng(seed)
    program = isa_head(machine, spec, 1, 0).program
    assert program is not None
    found = probabilities(program, rng.uniform(-9, 9, size=(3, spec.num_angles)), rng.uniform(-9, 9, size=spec.num_weights))
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-9)
