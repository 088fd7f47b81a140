"""Gradients of every method on every family of backends, against PennyLane's own parameter-shift, image by image."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("pennylane", reason="the extra 'quantum' is not installed")
pytest.importorskip("qiskit_aer", reason="the extra 'quantum' is not installed")
pytest.importorskip("qiskit_ibm_runtime", reason="the extra 'quantum' is not installed")

import pennylane as qml

from hqtl_common import HeadSpec, get_backend
from hqtl_common.backends.pennylane import make_device, queue_head
from hqtl_common.errors import CapabilityError
from hqtl_common.shifts import ShiftTable, head_table
from training.head import Head, ShiftHead, make_head, resolve_diff_method

IMAGES = 2
FREE = ("statevector", "pennylane:default.qubit", "aer")  # of noise
NOISY = ("fake_kolkata", "paper:lima")
DIFFERENCES = ("parameter-shift", "finite-diff")
EXACT = [
    (backend, method)
    for backend in ("statevector", "pennylane:default.qubit", "pennylane:lightning.qubit")
    for method in ("backprop", "adjoint", "lean-shift", *DIFFERENCES)
    if (backend, method) not in {("statevector", "adjoint"), ("pennylane:lightning.qubit", "backprop")}
]
KINDS = [
    HeadSpec(4, "angle_rx", "circular", 2),
    HeadSpec(4, "angle_rz", "linear", 2),
    HeadSpec(4, "angle_ry", "all_to_all"),
    HeadSpec(4, "reuploading", "pairwise", 2),
    HeadSpec(4, "amplitude", "linear"),
    HeadSpec(4, num_layers=2, ansatz="commuting"),
    HeadSpec(4, "angle_ry", ansatz="commuting"),
]
every_depth = pytest.mark.parametrize("num_layers", [1, 2])


def inputs(spec: HeadSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (L, n), angles (images, E), and the factors (images, n) of the loss Σ factor·⟨Z⟩."""
    rng = np.random.default_rng(spec.num_layers)
    tables = rng.uniform(-2, 2, spec.weights_shape), rng.uniform(-1.5, 1.5, (IMAGES, spec.num_angles)), rng.normal(size=(IMAGES, 4))
    weights, angles, factors = (torch.from_numpy(table) for table in tables)
    return weights, angles, factors


def flat(to_angles: Tensor, to_weights: Tensor) -> Tensor:
    return torch.cat((to_angles.flatten(), to_weights.flatten()))


@functools.cache
def of_pennylane(spec: HeadSpec) -> Tensor:
    weights, angles, factors = inputs(spec)

    @qml.qnode(make_device("default.qubit", spec.num_qubits), interface="torch", diff_method="parameter-shift")
    def node(row: Tensor, values: Tensor) -> list[object]:
        queue_head(spec, values, row)
        return [qml.expval(qml.Z(wire)) for wire in range(spec.num_qubits)]

    values, rows = weights.clone().requires_grad_(), angles.clone().requires_grad_()
    loss = sum((torch.stack(node(row, values)) * factor).sum() for row, factor in zip(rows, factors, strict=True))
    return flat(*torch.autograd.grad(loss, (rows, values)))


def gradient(head: Head, spec: HeadSpec) -> Tensor:
    _, angles, factors = inputs(spec)
    angles = angles.clone().requires_grad_()
    return flat(*torch.autograd.grad((head(angles) * factors).sum(), (angles, head.weights)))


@every_depth
@pytest.mark.parametrize(("backend", "method"), EXACT, ids=lambda value: str(value))
def test_exact_gradients(backend: str, method: str, num_layers: int) -> None:
    spec = HeadSpec(num_layers=num_layers)
    head = make_head(spec, inputs(spec)[0], backend=backend, diff_method=method)
    # third derivatives of a loss are at most Σ|factor|, and the central difference of step h errs by h²/6 of them
    factors = inputs(spec)[2].abs().sum().item()
    tolerance = factors * 0.01**2 / 6 + 1e-9 if method == "finite-diff" else 1e-6
    torch.testing.assert_close(gradient(head, spec), of_pennylane(spec), atol=tolerance, rtol=0)


@pytest.mark.parametrize("spec", KINDS, ids=str)
@pytest.mark.parametrize("backend", ["statevector", "pennylane:default.qubit"])
def test_exact_gradients_of_other_heads(backend: str, spec: HeadSpec) -> None:
    own = "commuting" if spec.ansatz == "commuting" else "lean-shift"
    for method in ("backprop", "parameter-shift", own):
        head = make_head(spec, inputs(spec)[0], backend=backend, diff_method=method)
        torch.testing.assert_close(gradient(head, spec), of_pennylane(spec), atol=1e-6, rtol=0)


def sampled_error(head: ShiftHead, spec: HeadSpec) -> Tensor:
    """The gradient and its standard errors, from the covariances of the very expectation values that made it.

    A derivative ∂⟨Z_i⟩/∂θ is Σ_s c_s·f of independent rows; of a weight the images' errors add up.
    """
    factors = inputs(spec)[2]
    answers = []
    original = head.backend.run
    head.backend.run = lambda *a, **o: answers.append(original(*a, **o)) or answers[-1]  # type: ignore[method-assign]
    found = gradient(head, spec)
    head.backend.run = original  # type: ignore[method-assign]
    (answer,) = answers
    num_values = answer.expvals.shape[1]
    covs = torch.from_numpy(answer.expval_covs).reshape(IMAGES, -1, num_values, num_values)
    taken = factors_of_values(head_table(head.diff_method, spec, np.random.default_rng(0)), spec, num_values)  # (P, S, n, K)
    combined = torch.einsum("bi,psik->bpsk", factors, taken)
    per_parameter = torch.einsum("bpsk,bskl,bpsl->bp", combined, covs, combined)
    num_angles = spec.num_angles
    error = flat(per_parameter[:, :num_angles], per_parameter[:, num_angles:].sum(0)).sqrt()
    return torch.stack((found, error))


def factors_of_values(table: ShiftTable, spec: HeadSpec, num_values: int) -> Tensor:
    """(P, S, n, K): by how much value k of point s enters ∂⟨Z_i⟩/∂θ_p, found by asking the table one value at a time."""
    points, count = table.num_points, spec.num_angles + spec.num_weights
    units = np.eye(points * num_values).reshape(-1, num_values)  # each set of S rows has a single 1
    found = table.jacobian(units).reshape(points, num_values, count, spec.num_qubits)
    return torch.from_numpy(found.transpose(2, 0, 3, 1))


SAMPLED_KINDS = [
    *((HeadSpec(num_layers=layers), method) for layers in (1, 2) for method in ("parameter-shift", "lean-shift")),
    *((HeadSpec(num_layers=layers, ansatz="commuting"), "commuting") for layers in (1, 2)),
]


@pytest.mark.parametrize(("spec", "method"), SAMPLED_KINDS, ids=lambda value: str(getattr(value, "num_layers", value)))
@pytest.mark.parametrize("backend", FREE)
def test_sampled_gradients(backend: str, spec: HeadSpec, method: str) -> None:
    head = make_head(spec, inputs(spec)[0], backend=backend, diff_method=method, shots=4000, seed=3)
    assert isinstance(head, ShiftHead)
    found, error = sampled_error(head, spec)
    assert ((error > 0) | (of_pennylane(spec) == 0)).all()
    assert ((found - of_pennylane(spec)).abs() <= 5 * error).all()
    assert (error < 0.1).all(), "an error so large would prove nothing"


@pytest.mark.parametrize(("method", "ansatz"), [("lean-shift", "real_amplitudes"), ("commuting", "commuting")])
def test_the_shared_point_is_near_with_noise_and_nearer_with_mitigation(method: str, ansatz: str) -> None:
    """A relaxed qubit and an uneven readout add a constant to ⟨Z⟩ that one shifted point, unlike a pair, does not cancel."""
    spec = HeadSpec(num_layers=2, ansatz=ansatz)
    weights = inputs(spec)[0]
    exact = make_head(spec, weights, backend="fake_kolkata", diff_method="parameter-shift")
    mitigated = {"mitigation": "readout", "zne": (1, 3)}
    errors = []
    for options, wanted in (({}, gradient(exact, spec)), (mitigated, of_pennylane(spec))):
        found = gradient(make_head(spec, weights, backend="fake_kolkata", diff_method=method, backend_options=options), spec)
        errors.append(((found - wanted).norm() / wanted.norm()).item())
    assert 1e-4 < errors[0] < 0.15
    assert errors[1] < 0.1


@functools.cache
def of_noisy_differences(backend: str, num_layers: int) -> Tensor:
    """Central differences of the backend's own exact values, one parameter at a time."""
    spec = HeadSpec(num_layers=num_layers)
    weights, angles, factors = (table.numpy() for table in inputs(spec))
    engine, step = get_backend(backend), 1e-4

    def losses(angles: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return (engine.run(spec, weights, angles).expvals * factors).sum(axis=1)

    to_angles = np.zeros_like(angles)
    for index in range(spec.num_angles):
        shift = step * np.eye(spec.num_angles)[index]
        to_angles[:, index] = (losses(angles + shift, weights) - losses(angles - shift, weights)) / (2 * step)
    shifts = step * np.eye(spec.num_weights).reshape(-1, *spec.weights_shape)
    slopes = [(losses(angles, weights + shift) - losses(angles, weights - shift)).sum() / (2 * step) for shift in shifts]
    return torch.from_numpy(np.concatenate([to_angles.ravel(), slopes]))


@every_depth
@pytest.mark.parametrize("method", DIFFERENCES)
@pytest.mark.parametrize("backend", NOISY)
def test_exact_noisy_gradients(backend: str, method: str, num_layers: int) -> None:
    """The rotations stay rotations between channels that do not depend on them, so the shift rule is exact with noise too."""
    spec = HeadSpec(num_layers=num_layers)
    head = make_head(spec, inputs(spec)[0], backend=backend, diff_method=method)
    tolerance = inputs(spec)[2].abs().sum().item() * 0.01**2 / 6 if method == "finite-diff" else 1e-5
    torch.testing.assert_close(gradient(head, spec), of_noisy_differences(backend, num_layers), atol=tolerance, rtol=0)


@every_depth
@pytest.mark.parametrize("backend", NOISY)
def test_sampled_noisy_gradients(backend: str, num_layers: int) -> None:
    spec = HeadSpec(num_layers=num_layers)
    head = make_head(spec, inputs(spec)[0], backend=backend, diff_method="parameter-shift", shots=4000, seed=3)
    assert isinstance(head, ShiftHead)
    found, error = sampled_error(head, spec)
    assert ((found - of_noisy_differences(backend, num_layers)).abs() < 5 * error).all()
    assert not torch.equal(found, of_noisy_differences(backend, num_layers))


@pytest.mark.parametrize(
    ("backend", "shots"),
    [(name, None) for name in ("statevector", "pennylane:default.qubit", "fake_kolkata")]
    + [(name, 1000) for name in (*FREE, "fake_kolkata")],
)
def test_finite_differences_and_spsa_are_right_on_average(backend: str, shots: int | None) -> None:
    """SPSA's directions, and with shots the noise of a difference over 2h, leave a large error: the mean of draws must fit it."""
    spec = HeadSpec()
    expected = of_noisy_differences(backend, 1) if backend in NOISY else of_pennylane(HeadSpec())
    for method, draws in (("spsa", 60), ("finite-diff", 12 if shots else 1)):
        head = make_head(spec, inputs(spec)[0], backend=backend, diff_method=method, shots=shots, seed=11)
        found = torch.stack([gradient(head, spec) for _ in range(draws)])
        if draws == 1:
            continue  # exact differences: see above
        error = found.std(0) / draws**0.5
        # Student's t with few draws: 5 standard errors of a normal are 7 at 11 degrees of freedom
        assert ((found.mean(0) - expected).abs() < 7 * error + 0.03).all(), method


def test_auto_takes_the_method_that_costs_least() -> None:
    methods = {("statevector", None): "backprop", ("pennylane:default.qubit", None): "backprop"}
    methods |= {("pennylane:lightning.qubit", None): "adjoint"}
    methods |= {(name, 100): "parameter-shift" for name in (*FREE, *NOISY)}
    methods |= {(name, None): "parameter-shift" for name in NOISY}
    assert {key: resolve_diff_method(*key) for key in methods} == methods
    assert resolve_diff_method("aer", 100, spec=HeadSpec(ansatz="commuting")) == "commuting"
    assert resolve_diff_method("statevector", None, spec=HeadSpec(ansatz="commuting")) == "backprop"


def test_a_method_of_another_ansatz_is_refused() -> None:
    for ansatz, method in (("commuting", "lean-shift"), ("real_amplitudes", "commuting")):
        with pytest.raises(CapabilityError, match=f"the ansatz {ansatz}; legal are "):
            resolve_diff_method("aer", 100, method, HeadSpec(ansatz=ansatz))
