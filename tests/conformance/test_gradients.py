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
from training.head import Head, ShiftHead, make_head, resolve_diff_method

IMAGES = 2
FREE = ("statevector", "pennylane:default.qubit", "aer")  # of noise
NOISY = ("fake_kolkata", "paper:lima")
DIFFERENCES = ("parameter-shift", "finite-diff")
EXACT = [
    (backend, method)
    for backend in ("statevector", "pennylane:default.qubit", "pennylane:lightning.qubit")
    for method in ("backprop", "adjoint", *DIFFERENCES)
    if (backend, method) not in {("statevector", "adjoint"), ("pennylane:lightning.qubit", "backprop")}
]
every_depth = pytest.mark.parametrize("num_layers", [1, 2])


def inputs(spec: HeadSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (L, n), angles (images, n), and the factors (images, n) of the loss Σ factor·⟨Z⟩."""
    rng = np.random.default_rng(spec.num_layers)
    tables = rng.uniform(-2, 2, spec.weights_shape), rng.uniform(-1.5, 1.5, (IMAGES, spec.num_angles)), rng.normal(size=(IMAGES, 4))
    weights, angles, factors = (torch.from_numpy(table) for table in tables)
    return weights, angles, factors


def flat(to_angles: Tensor, to_weights: Tensor) -> Tensor:
    return torch.cat((to_angles.flatten(), to_weights.flatten()))


@functools.cache
def of_pennylane(num_layers: int) -> Tensor:
    spec = HeadSpec(num_layers=num_layers)
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
    torch.testing.assert_close(gradient(head, spec), of_pennylane(num_layers), atol=tolerance, rtol=0)


def sampled_error(head: ShiftHead, spec: HeadSpec) -> Tensor:
    """Standard errors of the gradient, from the covariances of the very expectation values that made it.

    A parameter-shift derivative is (f₊ − f₋)/2 of independent estimates; of a weight the images' errors add up.
    """
    factors = inputs(spec)[2]
    answers = []
    original = head.backend.run
    head.backend.run = lambda *a, **o: answers.append(original(*a, **o)) or answers[-1]  # type: ignore[method-assign]
    found = gradient(head, spec)
    head.backend.run = original  # type: ignore[method-assign]
    (answer,) = answers
    covs = torch.from_numpy(answer.expval_covs).reshape(IMAGES, -1, 4, 4)
    variances = torch.einsum("bi,bsij,bj->bs", factors, covs, factors)
    coefficients = torch.from_numpy(tables(spec))
    per_parameter = torch.einsum("ps,bs->bp", coefficients.square(), variances)
    num_angles = spec.num_angles
    error = flat(per_parameter[:, :num_angles], per_parameter[:, num_angles:].sum(0)).sqrt()
    return torch.stack((found, error))


def tables(spec: HeadSpec) -> np.ndarray:
    from hqtl_common.shifts import parameter_shift

    return parameter_shift(spec.num_angles + spec.num_weights).coefficients


@every_depth
@pytest.mark.parametrize("backend", FREE)
def test_sampled_gradients(backend: str, num_layers: int) -> None:
    spec = HeadSpec(num_layers=num_layers)
    head = make_head(spec, inputs(spec)[0], backend=backend, diff_method="parameter-shift", shots=4000, seed=3)
    assert isinstance(head, ShiftHead)
    found, error = sampled_error(head, spec)
    assert (error > 0).all()
    assert ((found - of_pennylane(num_layers)).abs() < 5 * error).all()
    assert (error < 0.1).all(), "an error so large would prove nothing"


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
    expected = of_noisy_differences(backend, 1) if backend in NOISY else of_pennylane(1)
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
