"""All forms of the head give the same values and gradients, and say beforehand what they cannot do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hqtl_common import HeadSpec, get_backend
from hqtl_common.errors import CapabilityError, UnknownBackendError
from tests.heads import heads
from training.head import Head, QNodeHead, ShiftHead, StatevectorHead, make_head, resolve_diff_method

SPECS = heads(5)
SEEDS = st.integers(0, 2**32 - 1)
EXACT = [
    ("statevector", "parameter-shift", ShiftHead),
    ("pennylane:default.qubit", "backprop", QNodeHead),
    ("pennylane:default.qubit", "adjoint", QNodeHead),
    ("pennylane:default.mixed", "backprop", QNodeHead),
    ("pennylane:lightning.qubit", "adjoint", QNodeHead),
    ("pennylane:default.qubit", "parameter-shift", ShiftHead),
]
names = [f"{backend} {method}" for backend, method, _ in EXACT]


def inputs(spec: HeadSpec, seed: int, rows: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Weights (L, n) and angles (rows, n), radians, over more than a turn."""
    generator = torch.Generator().manual_seed(seed)
    weights = 8 * torch.rand(spec.weights_shape, generator=generator, dtype=torch.float64) - 4
    return weights, 8 * torch.rand(rows, spec.num_angles, generator=generator, dtype=dtype) - 4


def differentiate(head: Head, angles: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Values, and the gradients of one random weighted sum of them with respect to angles and weights."""
    angles = angles.clone().requires_grad_()
    values = head(angles)
    loss = (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).sum()
    to_angles, to_weights = torch.autograd.grad(loss, (angles, head.weights))
    return values.detach(), to_angles, to_weights


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for value, wanted, tolerance in zip(found, expected, (1e-6, 1e-5, 1e-5), strict=True):
        assert value.dtype == wanted.dtype
        torch.testing.assert_close(value, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("backend", "method", "kind"), EXACT, ids=names)
@settings(max_examples=6)
@given(spec=SPECS, seed=SEEDS, rows=st.integers(1, 4))
def test_every_exact_head_agrees_with_backprop(backend: str, method: str, kind: type[Head], spec: HeadSpec, seed: int, rows: int) -> None:
    weights, angles = inputs(spec, seed, rows)
    head = make_head(spec, weights, backend=backend, diff_method=method)
    assert type(head) is kind
    assert_same(differentiate(head, angles), differentiate(StatevectorHead(spec, weights), angles))


@given(spec=SPECS, seed=SEEDS, rows=st.integers(1, 5))
def test_torch_equals_numpy(spec: HeadSpec, seed: int, rows: int) -> None:
    weights, angles = inputs(spec, seed, rows)
    expected = get_backend("statevector").run(spec, weights.numpy(), angles.numpy()).expvals
    head = StatevectorHead(spec, weights)
    np.testing.assert_allclose(head(angles).detach().numpy(), expected, atol=1e-12, rtol=0)
    np.testing.assert_allclose(head(angles.float()).detach().numpy(), expected, atol=1e-6, rtol=0)
    assert head(angles.float()).dtype == torch.float64


@given(spec=SPECS, seed=SEEDS)
def test_backprop_agrees_with_differences_of_the_numpy_head(spec: HeadSpec, seed: int) -> None:
    """Independent of every gradient method of this software: central differences of the other implementation."""
    weights, angles = inputs(spec, seed, rows=1)
    _, to_angles, to_weights = differentiate(StatevectorHead(spec, weights), angles)
    factors = torch.randn((1, spec.num_qubits), generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    backend, h = get_backend("statevector"), 1e-5

    def loss(theta: np.ndarray) -> float:
        n = spec.num_angles
        return float((backend.run(spec, theta[n:].reshape(spec.weights_shape), theta[None, :n]).expvals * factors).sum())

    theta = np.concatenate([angles.numpy().ravel(), weights.numpy().ravel()])
    slopes = [(loss(theta + h * row) - loss(theta - h * row)) / (2 * h) for row in np.eye(len(theta))]
    np.testing.assert_allclose(slopes, np.concatenate([to_angles.numpy().ravel(), to_weights.numpy().ravel()]), atol=1e-8)


def test_finite_difference_is_near_the_exact_gradient() -> None:
    spec = HeadSpec(num_layers=2)
    weights, angles = inputs(spec, 0)
    found = differentiate(make_head(spec, weights, diff_method="finite-diff"), angles)
    for value, wanted, tolerance in zip(found, differentiate(StatevectorHead(spec, weights), angles), (1e-12, 2e-4, 6e-4), strict=True):
        torch.testing.assert_close(value, wanted, atol=tolerance, rtol=0)


def mean_and_error(head: Head, angles: Tensor, draws: int) -> list[tuple[Tensor, Tensor]]:
    drawn = [torch.stack(parts) for parts in zip(*(differentiate(head, angles) for _ in range(draws)), strict=True)]
    return [(part.mean(0), part.std(0) / math.sqrt(draws)) for part in drawn]


def test_spsa_is_right_on_average() -> None:
    spec = HeadSpec(num_qubits=3)
    weights, angles = inputs(spec, 1)
    found = mean_and_error(make_head(spec, weights, diff_method="spsa", seed=3), angles, 3000)
    exact = differentiate(StatevectorHead(spec, weights), angles)
    for (mean, error), wanted in list(zip(found, exact, strict=True))[1:]:
        assert ((mean - wanted).abs() <= 5 * error + 0.02 * wanted.abs() + 0.01).all()  # the step of 0.1 rad biases by about 1 %
        assert (error > 0).all(), "directions must change from step to step"


@pytest.mark.parametrize(("backend", "shots", "draws"), [("statevector", 64, 400), ("aer", 64, 100), ("pennylane:default.qubit", 64, 60)])
def test_sampled_gradients_are_unbiased(backend: str, shots: int, draws: int) -> None:
    spec = HeadSpec(num_layers=2)
    weights, angles = inputs(spec, 2, rows=2)
    found = mean_and_error(make_head(spec, weights, backend=backend, shots=shots, seed=5), angles, draws)
    for (mean, error), wanted in zip(found, differentiate(StatevectorHead(spec, weights), angles), strict=True):
        assert (error > 0).all(), "noise must be drawn anew in every step"
        assert ((mean - wanted).abs() <= 5 * error).all()


def test_sampling_repeats_with_the_seed() -> None:
    spec = HeadSpec()
    weights, angles = inputs(spec, 0)

    def steps(seed: int) -> list[Tensor]:
        head = make_head(spec, weights, shots=50, seed=seed)
        return [part for _ in range(2) for part in differentiate(head, angles)]

    first = steps(0)
    assert all(torch.equal(a, b) for a, b in zip(first, steps(0), strict=True))
    assert not torch.equal(first[0], steps(1)[0])
    assert not torch.equal(first[0], first[3]), "the second step must draw anew"


def test_shift_head_uses_one_job_for_forward_and_backward() -> None:
    spec = HeadSpec(num_layers=2)
    weights, angles = inputs(spec, 0, rows=5)
    head = make_head(spec, weights, diff_method="parameter-shift")
    assert (head.num_rows, head.num_jobs) == (0, 0)
    num_parameters = spec.num_angles + spec.num_weights
    differentiate(head, angles)
    assert (head.num_rows, head.num_jobs) == (5 * (1 + 2 * num_parameters), 1)
    with torch.no_grad():
        head(angles)
    assert (head.num_rows, head.num_jobs) == (5 * (2 + 2 * num_parameters), 2)


@pytest.mark.parametrize(("method", "points"), [("lean-shift", 10), ("finite-diff", 17), ("finite-diff-forward", 9), ("spsa", 3)])
def test_rows_of_the_other_methods(method: str, points: int) -> None:
    head = make_head(HeadSpec(), *inputs(HeadSpec(), 0, rows=2)[:1], diff_method=method)
    differentiate(head, inputs(HeadSpec(), 0, rows=2)[1])
    assert (head.num_rows, head.num_jobs) == (2 * points, 1)


# ---------------------------------------------------------------- several runs as one head


@pytest.mark.parametrize(("backend", "method"), [("statevector", "backprop"), *((backend, method) for backend, method, _ in EXACT)])
@settings(max_examples=4)
@given(spec=heads(4), seed=SEEDS, runs=st.integers(1, 3), rows=st.integers(1, 3))
def test_runs_at_once_are_runs_alone(backend: str, method: str, spec: HeadSpec, seed: int, runs: int, rows: int) -> None:
    parts = [inputs(spec, seed + run, rows) for run in range(runs)]
    weights, angles = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    together = make_head(spec, weights, backend=backend, diff_method=method)
    rows_of_all = angles.clone().requires_grad_()
    values = together(rows_of_all)
    factors = torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    to_angles, to_weights = torch.autograd.grad((values * factors).sum(), (rows_of_all, together.weights))
    assert (together.num_jobs, together.num_rows % (runs * rows)) == (1, 0)
    for run in range(runs):
        alone, own = make_head(spec, weights[run], backend=backend, diff_method=method), angles[run].clone().requires_grad_()
        value = alone(own)
        expected = (value, *torch.autograd.grad((value * factors[run]).sum(), (own, alone.weights)))
        for found, wanted in zip((values[run], to_angles[run], to_weights[run]), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
        assert together.num_rows == runs * alone.num_rows


def test_sampled_runs_share_one_job_and_differ_in_their_noise() -> None:
    spec = HeadSpec()
    weights, angles = inputs(spec, 0, rows=4)
    head = make_head(spec, weights.expand(10, -1, -1), shots=100, diff_method="parameter-shift")
    values, to_angles, _ = differentiate(head, angles.expand(10, -1, -1))
    assert (head.num_jobs, head.num_rows) == (1, 10 * 4 * 17)
    assert len(torch.unique(values, dim=0)) == len(torch.unique(to_angles, dim=0)) == 10


def test_every_run_draws_its_own_directions() -> None:
    spec = HeadSpec()
    weights, angles = inputs(spec, 0, rows=2)
    head = make_head(spec, weights.expand(5, -1, -1), diff_method="spsa", seed=3)
    factors = torch.ones(4, dtype=torch.float64)
    rows = angles.expand(5, -1, -1).clone().requires_grad_()
    (found,) = torch.autograd.grad((head(rows) @ factors).sum(), rows)
    assert head.num_rows == 5 * 2 * 3
    assert len(torch.unique(found.sign(), dim=0)) > 1
    alone = make_head(spec, weights, diff_method="spsa", seed=3)
    row = angles.clone().requires_grad_()
    torch.testing.assert_close(found[0], torch.autograd.grad((alone(row) @ factors).sum(), row)[0])


def test_weights_alone_can_be_differentiated() -> None:
    spec = HeadSpec()
    weights, angles = inputs(spec, 4)
    gradients = []
    for method in ("backprop", "parameter-shift"):
        head = make_head(spec, weights, diff_method=method)
        head(angles).square().sum().backward()
        gradients.append(head.weights.grad)
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)


def test_a_head_keeps_its_own_weights() -> None:
    weights, angles = inputs(HeadSpec(), 0)
    head = make_head(HeadSpec(), weights)
    before = head(angles)
    weights += 1
    assert torch.equal(head(angles), before)
    assert list(dict(head.named_parameters())) == list(head.state_dict()) == ["weights"]


SHIFTS = ["parameter-shift", "lean-shift", "finite-diff", "finite-diff-forward", "spsa"]
LEGAL = [
    ("statevector", None, ["backprop", *SHIFTS]),
    ("statevector", 100, SHIFTS),
    ("pennylane:default.qubit", None, ["backprop", "adjoint", *SHIFTS]),
    ("pennylane:default.qubit", 100, SHIFTS),
    ("pennylane:default.mixed", None, ["backprop", *SHIFTS]),
    ("pennylane:lightning.qubit", None, ["adjoint", *SHIFTS]),
    ("pennylane:reference.qubit", None, SHIFTS),
    ("pennylane:qiskit.aer", 100, SHIFTS),
    ("aer", None, SHIFTS),
    ("aer", 100, SHIFTS),
]


@pytest.mark.parametrize(("backend", "shots", "legal"), LEGAL)
def test_which_methods_are_legal(backend: str, shots: int | None, legal: list[str]) -> None:
    assert resolve_diff_method(backend, shots) == resolve_diff_method(backend, shots, "auto") == legal[0]
    for method in ("backprop", "adjoint", *SHIFTS, "commuting", "reverse"):
        if method in legal:
            assert resolve_diff_method(backend, shots, method) == method
        else:
            with pytest.raises(CapabilityError) as caught:
                resolve_diff_method(backend, shots, method)
            assert f"{method!r} cannot be used on {backend!r}" in str(caught.value)
            assert f"legal are {', '.join(legal)} and auto" in str(caught.value)


@pytest.mark.parametrize(("backend", "shots", "legal"), [row for row in LEGAL if row[0] != "pennylane:qiskit.aer"])
def test_what_is_called_legal_works(backend: str, shots: int | None, legal: list[str]) -> None:
    weights, angles = inputs(HeadSpec(), 0, rows=1)
    for method in legal:
        head = make_head(HeadSpec(), weights, backend=backend, diff_method=method, shots=shots)
        assert all(torch.isfinite(part).all() for part in differentiate(head, angles))
        head.close()


def test_device_without_a_seed_can_be_trained_on() -> None:
    weights, angles = inputs(HeadSpec(num_qubits=2), 0, rows=1)
    head = make_head(HeadSpec(num_qubits=2), weights, backend="pennylane:qiskit.aer", shots=10, diff_method="spsa")
    assert all(torch.isfinite(part).all() for part in differentiate(head, angles))


def test_effective_shots_are_known() -> None:
    weights = torch.zeros(1, 4)
    shots = {name: make_head(HeadSpec(), weights, backend=name).shots for name in ("statevector", "pennylane:default.qubit", "aer")}
    assert shots == {"statevector": None, "pennylane:default.qubit": None, "aer": 1024}  # Aer has no exact values
    assert make_head(HeadSpec(), weights, shots=7).shots == 7


def test_unknown_backends() -> None:
    with pytest.raises(UnknownBackendError, match="'nowhere'; known are"):
        make_head(HeadSpec(), torch.zeros(1, 4), backend="nowhere")
    with pytest.raises(UnknownBackendError, match=r"'no\.device'"):
        make_head(HeadSpec(), torch.zeros(1, 4), backend="pennylane:no.device")
