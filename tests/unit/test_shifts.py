"""Gradient tables against derivatives known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqtl_common.backends.statevector import probabilities
from hqtl_common.circuit import generators, single_zs, z_strings
from hqtl_common.errors import ConfigError
from hqtl_common.shifts import (
    SHIFT_METHODS,
    ShiftTable,
    commuting,
    finite_diff,
    forward_only,
    head_table,
    lean_shift,
    parameter_shift,
    spsa,
)
from hqtl_common.specs import HeadSpec
from tests.heads import commuting_heads, layered_heads

SEEDS = st.integers(0, 2**32 - 1)


class Rotations:
    """n functions f_i(θ) = Σ_k a_ik · Π_p cos(b_ikp·θ_p + c_ikp) with b in {0, 1}: what ⟨Z_i⟩ is in angles of rotations."""

    def __init__(self, seed: int, num_parameters: int, num_values: int = 3, num_terms: int = 4) -> None:
        rng = np.random.default_rng(seed)
        self.factors = rng.normal(size=(num_values, num_terms))
        self.present = rng.integers(0, 2, size=(num_values, num_terms, num_parameters))
        self.phases = rng.uniform(-np.pi, np.pi, size=(num_values, num_terms, num_parameters)) * self.present

    def values(self, theta: np.ndarray) -> np.ndarray:
        """(R, P) → (R, n)."""
        return np.einsum("ik,rik->ri", self.factors, np.cos(self.present * theta[:, None, None, :] + self.phases).prod(axis=-1))

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """(R, P) → ∂f_i/∂θ_p (R, P, n), by the product rule."""
        arguments = self.present * theta[:, None, None, :] + self.phases
        columns = []
        for p in range(theta.shape[1]):
            terms = np.cos(arguments)
            terms[..., p] = -self.present[..., p] * np.sin(arguments[..., p])
            columns.append(np.einsum("ik,rik->ri", self.factors, terms.prod(axis=-1)))
        return np.stack(columns, axis=1)


def estimated(table: ShiftTable, function: Rotations, theta: np.ndarray) -> np.ndarray:
    return table.jacobian(function.values(table.rows(theta)))


def problem(seed: int, num_parameters: int, rows: int = 3) -> tuple[Rotations, np.ndarray]:
    return Rotations(seed, num_parameters), np.random.default_rng(seed + 1).uniform(-4, 4, size=(rows, num_parameters))


@given(seed=SEEDS, num_parameters=st.integers(1, 9))
def test_parameter_shift_is_exact(seed: int, num_parameters: int) -> None:
    function, theta = problem(seed, num_parameters)
    np.testing.assert_allclose(estimated(parameter_shift(num_parameters), function, theta), function.jacobian(theta), atol=1e-12)


@pytest.mark.parametrize(("central", "order"), [(True, 2), (False, 1)])
def test_finite_difference_converges_with_its_order(central: bool, order: int) -> None:
    function, theta = problem(0, 4)
    exact = function.jacobian(theta)
    steps = (0.1, 0.05, 0.025)
    errors = [np.abs(estimated(finite_diff(4, step, central=central), function, theta) - exact).max() for step in steps]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.1)


@given(seed=SEEDS, num_parameters=st.integers(1, 6))
def test_default_finite_difference_errs_by_a_sixth_of_the_squared_step(seed: int, num_parameters: int) -> None:
    function, theta = problem(seed, num_parameters)
    bound = np.abs(function.factors).sum(axis=1) * 0.01**2 / 6 + 1e-10  # |f'''| ≤ Σ|a| for frequencies 0 and 1
    assert (np.abs(estimated(finite_diff(num_parameters), function, theta) - function.jacobian(theta)) <= bound).all()


def test_spsa_is_unbiased_up_to_its_step() -> None:
    function, theta = problem(3, 5, rows=2)
    rng = np.random.default_rng(0)
    draws = np.array([estimated(spsa(5, rng, step=0.01), function, theta) for _ in range(4000)])
    error = np.abs(draws.mean(axis=0) - function.jacobian(theta))
    assert (error <= 5 * draws.std(axis=0) / np.sqrt(len(draws)) + 1e-3).all()
    assert draws.std() > 0.1, "a single direction is no exact gradient"


def test_spsa_averages_its_directions() -> None:
    function, theta = problem(4, 3)
    many = spsa(3, np.random.default_rng(1), directions=5)
    rng = np.random.default_rng(1)
    singles = [estimated(ShiftTable(*_direction(rng)), function, theta) for _ in range(5)]
    np.testing.assert_allclose(estimated(many, function, theta), np.mean(singles, axis=0), atol=1e-12)


def _direction(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    delta = rng.choice([-1.0, 1.0], size=3)
    return np.array([np.zeros(3), 0.1 * delta, -0.1 * delta]), np.array([np.zeros(3), delta / 0.2, -delta / 0.2]).T


@pytest.mark.parametrize("num_parameters", [1, 8])
def test_number_of_points_and_forward_row(num_parameters: int) -> None:
    rng = np.random.default_rng(0)
    points = [
        (forward_only(num_parameters), 1),
        (parameter_shift(num_parameters), 1 + 2 * num_parameters),
        (finite_diff(num_parameters), 1 + 2 * num_parameters),
        (finite_diff(num_parameters, central=False), 1 + num_parameters),
        (spsa(num_parameters, rng), 3),
        (spsa(num_parameters, rng, directions=4), 9),
    ]
    for table, count in points:
        assert table.num_points == count
        assert table.coefficients.shape == (num_parameters, count)
        assert not table.offsets[0].any()
        theta = rng.normal(size=(2, num_parameters))
        rows = table.rows(theta)
        assert rows.shape == (2 * count, num_parameters)
        np.testing.assert_array_equal(rows[::count], theta)  # the forward point comes first, sets stand one after the other


def test_forward_only_has_no_gradient() -> None:
    function, theta = problem(0, 4)
    assert not estimated(forward_only(4), function, theta).any()


def test_default_tables_have_the_points_of_their_methods() -> None:
    rng = np.random.default_rng(0)
    heads = {name: HeadSpec(ansatz="commuting") if name == "commuting" else HeadSpec() for name in SHIFT_METHODS}
    assert {name: head_table(name, spec, rng).num_points for name, spec in heads.items()} == {
        "parameter-shift": 17,
        "finite-diff": 17,
        "finite-diff-forward": 9,
        "spsa": 3,
        "lean-shift": 10,
        "commuting": 6,
    }


@pytest.mark.parametrize("step", [0.0, -0.1, float("nan")])
def test_step_must_be_positive(step: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0 radians"):
        finite_diff(2, step)
    with pytest.raises(ConfigError, match="must be above 0 radians"):
        spsa(2, np.random.default_rng(0), step=step)


def test_other_errors() -> None:
    with pytest.raises(ConfigError, match="at least 1 direction; got 0"):
        spsa(2, np.random.default_rng(0), directions=0)
    with pytest.raises(ConfigError, match=rf"one of {', '.join(SHIFT_METHODS)}; got 'backprop'"):
        head_table("backprop", HeadSpec(), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="real_amplitudes; got commuting"):
        head_table("lean-shift", HeadSpec(ansatz="commuting"), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="got the ansatz real_amplitudes"):
        head_table("commuting", HeadSpec(), np.random.default_rng(0))


def test_steps_are_those_asked_for() -> None:
    rng = np.random.default_rng(0)
    for method in ("finite-diff", "finite-diff-forward", "spsa"):
        assert np.abs(head_table(method, HeadSpec(), rng, 0.25).offsets).max() == 0.25
    assert head_table("finite-diff-forward", HeadSpec(), rng).offsets.min() == 0
    for method, ansatz in (("parameter-shift", "real_amplitudes"), ("lean-shift", "real_amplitudes"), ("commuting", "commuting")):
        with pytest.raises(ConfigError, match=f"{method} has no step"):
            head_table(method, HeadSpec(ansatz=ansatz), rng, 0.25)


@pytest.mark.parametrize("method", ["finite-diff", "finite-diff-forward", "spsa"])
def test_a_step_of_zero_is_refused_and_not_replaced(method: str) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        head_table(method, HeadSpec(), np.random.default_rng(0), 0.0)


# ---------------------------------------------------------------- tables of a head


def of_head(table: ShiftTable, spec: HeadSpec, theta: np.ndarray) -> np.ndarray:
    """The Jacobian (B, P, n) that a table makes of the exact head."""
    rows = table.rows(theta)
    weights = rows[:, spec.num_angles :].reshape(-1, *spec.weights_shape)
    signs = z_strings(spec.num_qubits, table.observables or single_zs(spec.num_qubits))
    return table.jacobian(probabilities(spec, weights, rows[:, : spec.num_angles]) @ signs)


def parameters(spec: HeadSpec, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-4, 4, size=(2, spec.num_angles + spec.num_weights))


@given(spec=layered_heads(5), seed=SEEDS)
def test_lean_shift_is_parameter_shift_with_fewer_points(spec: HeadSpec, seed: int) -> None:
    theta, full = parameters(spec, seed), parameter_shift(spec.num_angles + spec.num_weights)
    table = lean_shift(spec)
    np.testing.assert_allclose(of_head(table, spec, theta), of_head(full, spec, theta), atol=1e-12)
    assert full.num_points - table.num_points == 2 * spec.num_qubits - 1


@given(spec=commuting_heads(6), seed=SEEDS)
def test_commuting_is_parameter_shift_with_two_points_and_two_per_control(spec: HeadSpec, seed: int) -> None:
    theta, full = parameters(spec, seed), parameter_shift(spec.num_angles + spec.num_weights)
    table = commuting(spec)
    np.testing.assert_allclose(of_head(table, spec, theta), of_head(full, spec, theta), atol=1e-12)
    assert table.num_points == 2 + 2 * spec.num_controls
    assert table.observables is not None
    assert table.observables[: spec.num_qubits] == single_zs(spec.num_qubits)
    assert len(set(table.observables)) == len(table.observables) == spec.num_qubits + sum(bool(one.controls) for one in generators(spec))


@pytest.mark.parametrize("method", ["parameter-shift", "finite-diff-forward", "spsa", "lean-shift", "commuting"])
def test_a_table_without_the_angles_is_that_of_the_weights_alone(method: str) -> None:
    spec = HeadSpec(num_layers=2, ansatz="commuting" if method == "commuting" else "real_amplitudes")
    theta = parameters(spec, 0)
    whole = head_table(method, spec, np.random.default_rng(0))
    part = whole.without(spec.num_angles)
    assert part.num_points == {"parameter-shift": 17, "finite-diff-forward": 9, "spsa": 3, "lean-shift": 10, "commuting": 2}[method]
    if method == "spsa":
        return  # moving the angles as well gives another estimate
    rows = np.repeat(theta, part.num_points, axis=0)
    rows[:, spec.num_angles :] = part.rows(theta[:, spec.num_angles :])
    signs = z_strings(spec.num_qubits, part.observables or single_zs(spec.num_qubits))
    values = probabilities(spec, rows[:, spec.num_angles :].reshape(-1, *spec.weights_shape), rows[:, : spec.num_angles]) @ signs
    np.testing.assert_allclose(part.jacobian(values), of_head(whole, spec, theta)[:, spec.num_angles :], atol=1e-12)
