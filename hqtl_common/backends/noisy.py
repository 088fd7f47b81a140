"""Exact noisy simulation in NumPy: many parameter sets through one noisy circuit at once.

A density matrix ρ of k qubits is held as the real numbers tr(P·ρ) over the 4^k Pauli products P: an array of k axes of
length 4 (I, X, Y, Z), qubit 0 first, and a last axis of rows. Every channel is then a real matrix (the Pauli transfer
matrix; Greenbaum 2015, arXiv:1509.02921, section 2.2) and every rotation turns two of the four numbers. Rows appear only
where the first row-dependent rotation acts; where all rows share what follows, the measurement is carried back through it.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Angle", "Channel", "Program", "Rotation", "Step", "merge", "probabilities", "readout_channel", "rotation_matrix"]

F64 = NDArray[np.float64]

_CHUNK_NUMBERS = 2**16  # half a megabyte of float64 at a time stays in the processor's cache
_EFFECT_QUBITS = 6  # beyond, the effects of all outcomes take more memory than the rows
_TURNS = {"x": (2, 3), "y": (3, 1), "z": (1, 2)}  # which pair of (I, X, Y, Z) a rotation about an axis turns


@dataclass(frozen=True, slots=True)
class Angle:
    """``offset + Σ_j factors[j] · parameter[columns[j]]``, radians.

    ``columns`` count the head's angles first and then its weights.
    """

    offset: float
    columns: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()

    def of(self, parameters: Sequence[F64]) -> F64:
        """The angle of every row, (R,), or (1,) where no row-dependent parameter enters."""
        terms = [factor * parameters[column] for column, factor in zip(self.columns, self.factors, strict=True)]
        return np.asarray(sum(terms, start=np.full(1, self.offset)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Rotation:
    """exp(−i·angle/2·σ_axis) on a qubit, without noise."""

    qubit: int
    axis: Literal["x", "y", "z"]
    angle: Angle


@dataclass(frozen=True, slots=True)
class Channel:
    """A constant channel.

    Args:
        qubits: The m qubits it acts on.
        tensor: (4,)·m outputs, then (4,)·m inputs, in the order of ``qubits``; a readout has 2 outputs, a discarded qubit 1.
    """

    qubits: tuple[int, ...]
    tensor: F64


Step = Rotation | Channel


@dataclass(frozen=True, slots=True)
class Program:
    """A noisy circuit from |0…0⟩ to the probabilities of outcomes.

    Args:
        num_qubits: k, the qubits that take part; the measured ones come first, in the order of the outcome's bits.
        num_measured: n ≤ k.
        steps: In order; the last k are the readouts.
    """

    num_qubits: int
    num_measured: int
    steps: tuple[Step, ...]


def rotation_matrix(axis: str, angle: float) -> F64:
    """The 4×4 Pauli transfer matrix of a rotation about ``x``, ``y`` or ``z``; angle in radians."""
    first, second = _TURNS[axis]
    matrix = np.eye(4)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -matrix[second, first]
    return matrix


def readout_channel(qubit: int, confusion: F64 | None) -> Channel:
    """The measurement of a qubit.

    Args:
        qubit: Which one.
        confusion: (2, 2), row = true bit, column = bit read; None discards the qubit.
    """
    if confusion is None:
        return Channel((qubit,), np.eye(1, 4))
    projections = np.array([[0.5, 0, 0, 0.5], [0.5, 0, 0, -0.5]])
    return Channel((qubit,), confusion.T @ projections)


def merge(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The same program in fewer steps: a constant channel joins the one before it, a pair's channel those of its qubits."""
    merged: list[Step | None] = []
    last: dict[int, int] = {}  # position of the last step on each qubit
    for step in steps:
        if isinstance(step, Rotation):
            last[step.qubit] = len(merged)
            merged.append(step)
            continue
        before = [last.get(qubit) for qubit in step.qubits]
        host = merged[before[0]] if before[0] is not None and len(set(before)) == 1 else None
        if isinstance(host, Channel) and set(step.qubits) <= set(host.qubits):
            merged[last[step.qubits[0]]] = _compose(step, host)
            continue
        for position in before:
            single = None if position is None else merged[position]
            if position is not None and isinstance(single, Channel) and len(single.qubits) == 1:
                step, merged[position] = _precede(step, single), None
        last |= dict.fromkeys(step.qubits, len(merged))
        merged.append(step)
    return tuple(step for step in merged if step is not None)


def probabilities(program: Program, angles: F64, weights: F64) -> F64:
    """Exact probabilities (R, 2^n) of the outcomes, the first measured qubit most significant.

    Args:
        program: The noisy circuit.
        angles: (R, E), radians.
        weights: (W,) shared by all rows, or (R, W); radians.
    """
    num_rows, num_outcomes = len(angles), 2**program.num_measured
    steps, effects = program.steps, None
    split = _first_shared_step(program, angles.shape[1], weights.ndim == 1)
    if split < len(steps) and num_rows > num_outcomes and program.num_qubits <= _EFFECT_QUBITS:
        effects = _carry_back(program, steps[split:], [np.zeros(1)] * angles.shape[1] + _columns(weights))
        steps = steps[:split]
    rows = max(1, _CHUNK_NUMBERS >> 2 * program.num_qubits)
    result = np.empty((num_rows, num_outcomes))
    for k in range(0, num_rows, rows):
        part = slice(k, k + rows)
        parameters = _columns(angles[part]) + _columns(weights if weights.ndim == 1 else weights[part])
        state = _run(steps, _ground_state(program.num_qubits), parameters)
        state = state.reshape(-1, state.shape[-1])
        result[part] = (state if effects is None else effects @ state).T
    return np.maximum(result, 0.0, out=result)  # rounding leaves −1e-17 where an outcome is impossible


def _columns(values: F64) -> list[F64]:
    """Parameters as a list of (R,) or (1,) arrays."""
    return list(np.atleast_2d(values).T)


def _ground_state(num_qubits: int) -> F64:
    """|0…0⟩⟨0…0| as (4,)·k and one row."""
    state = np.ones(1)
    for _ in range(num_qubits):
        state = np.multiply.outer(np.array([1.0, 0.0, 0.0, 1.0]), state)
    return state


def _first_shared_step(program: Program, num_angles: int, weights_are_shared: bool) -> int:
    """Position from which on no step differs between rows."""
    for position in range(len(program.steps) - 1, -1, -1):
        step = program.steps[position]
        if isinstance(step, Rotation) and any(column < num_angles or not weights_are_shared for column in step.angle.columns):
            return position + 1
    return 0


def _run(steps: Sequence[Step], state: F64, parameters: Sequence[F64]) -> F64:
    for step in steps:
        state = _turn(state, step, step.angle.of(parameters)) if isinstance(step, Rotation) else _contract(step.tensor, step.qubits, state)
    return state


def _carry_back(program: Program, steps: Sequence[Step], parameters: Sequence[F64]) -> F64:
    """What the outcomes measure before ``steps`` (the Heisenberg picture): (2^n, 4^k)."""
    num_outcomes = 2**program.num_measured
    effects = np.eye(num_outcomes).reshape((2,) * program.num_measured + (1,) * (program.num_qubits - program.num_measured) + (-1,))
    for step in reversed(steps):
        if isinstance(step, Rotation):
            effects = _turn(effects, step, -step.angle.of(parameters))
        else:
            half = len(step.qubits)
            effects = _contract(np.moveaxis(step.tensor, range(half), range(half, 2 * half)), step.qubits, effects)
    return effects.reshape(-1, num_outcomes).T


def _turn(state: F64, step: Rotation, angle: F64) -> F64:
    """A rotation by ``angle`` (R,) or (1,), in place where ``state`` has the rows already."""
    if state.shape[-1] < len(angle):
        state = np.repeat(state, len(angle), axis=-1)
    first, second = (_pick(state, step.qubit, index) for index in _TURNS[step.axis])
    cos, sin = np.cos(angle), np.sin(angle)
    first[...], second[...] = cos * first - sin * second, sin * first + cos * second
    return state


def _pick(state: F64, qubit: int, index: int) -> F64:
    """A view of one Pauli component of a qubit."""
    view: F64 = state[(slice(None),) * qubit + (index,)]
    return view


def _contract(tensor: F64, qubits: tuple[int, ...], state: F64) -> F64:
    """A channel's outputs in place of its inputs."""
    half = len(qubits)
    return np.moveaxis(np.tensordot(tensor, state, axes=(range(half, 2 * half), qubits)), range(half), qubits)


def _compose(second: Channel, first: Channel) -> Channel:
    """``first``, then ``second`` on some of its qubits."""
    positions = tuple(first.qubits.index(qubit) for qubit in second.qubits)
    return Channel(first.qubits, _contract(second.tensor, positions, first.tensor))


def _precede(pair: Channel, single: Channel) -> Channel:
    """``single`` on one of the qubits, then ``pair``."""
    letters = string.ascii_letters[: pair.tensor.ndim]
    entering = letters[len(pair.qubits) + pair.qubits.index(single.qubits[0])]
    tensor = np.einsum(f"{letters},{entering}Z->{letters.replace(entering, 'Z')}", pair.tensor, single.tensor)
    return Channel(pair.qubits, tensor)
