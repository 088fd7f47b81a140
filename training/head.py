"""The head as torch modules: exact with backprop, as a PennyLane QNode, or by shifts over any backend.

Every module maps angles (B, n) in radians to ⟨Z_i⟩ (B, n) float64 and owns ``weights`` (L, n) float64, radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hqtl_common.backends.base import Backend
from hqtl_common.backends.opening import Limits, open_backend
from hqtl_common.backends.registry import backend_capabilities
from hqtl_common.circuit import cx_permutation, z_signs
from hqtl_common.errors import CapabilityError, ConfigError
from hqtl_common.shifts import ShiftTable, forward_only, shift_table
from hqtl_common.specs import HeadSpec

__all__ = ["Head", "QNodeHead", "ShiftHead", "StatevectorHead", "make_head", "resolve_diff_method"]

_BACKPROP_DEVICES = ("default.qubit", "default.mixed")
_ADJOINT_DEVICES = ("default.qubit", "lightning.qubit")


class Head(nn.Module):
    """What all heads share.

    Args:
        spec: The circuit.
        weights: Initial values (L, n), radians.
    """

    def __init__(self, spec: HeadSpec, weights: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.weights = nn.Parameter(weights.detach().clone().to(torch.float64))
        self.shots: int | None = None  # repetitions that are really made; None = exact
        self.num_rows = 0  # parameter sets evaluated so far on a backend
        self.num_jobs = 0  # executions submitted so far
        self.qpu_seconds = 0.0  # billed so far

    def close(self) -> None:
        """Free what the head holds."""


class StatevectorHead(Head):
    """Exact ⟨Z_i⟩ with torch's own backprop: the product state, then one gather and one matrix per layer."""

    permutation: Tensor
    signs: Tensor

    def __init__(self, spec: HeadSpec, weights: Tensor) -> None:
        super().__init__(spec, weights)
        self.register_buffer("permutation", torch.from_numpy(cx_permutation(spec).copy()), persistent=False)
        self.register_buffer("signs", torch.from_numpy(z_signs(spec.num_qubits).copy()), persistent=False)

    def forward(self, angles: Tensor) -> Tensor:
        """Angles (B, n), radians → ⟨Z_i⟩ (B, n)."""
        if not torch.compiler.is_exporting():  # an exported graph has no count, and no fixed batch
            self.num_rows += len(angles)
            self.num_jobs += 1
        half = angles.to(self.weights.dtype) / 2
        # RY(a)·H|0⟩ = (cos(a/2) − sin(a/2), cos(a/2) + sin(a/2)) / √2 = (cos(a/2 + π/4), sin(a/2 + π/4))
        turned = half + math.pi / 4
        state = _kronecker(torch.stack((turned.cos(), turned.sin()), dim=-1).unbind(1))
        cos, sin = (self.weights / 2).cos(), (self.weights / 2).sin()
        rotations = torch.stack((cos, sin, -sin, cos), dim=-1).reshape(*self.weights.shape, 2, 2)  # transposed RY
        for layer in range(self.spec.num_layers):
            state = state[:, self.permutation] @ _kronecker_matrix(rotations[layer].unbind(0))
        return state.square() @ self.signs.to(state.dtype)


class QNodeHead(Head):
    """The head as a PennyLane QNode, differentiated by the device itself.

    Args:
        spec: The circuit.
        weights: Initial values (L, n), radians.
        device_name: PennyLane's name of the device.
        diff_method: ``backprop`` or ``adjoint``.
    """

    def __init__(self, spec: HeadSpec, weights: Tensor, device_name: str, diff_method: str) -> None:
        super().__init__(spec, weights)
        import pennylane as qml

        from hqtl_common.backends.pennylane import make_device, queue_head

        def circuit(angles: Tensor, values: Tensor) -> list[Any]:
            queue_head(spec, values, angles)
            return [qml.expval(qml.Z(wire)) for wire in range(spec.num_qubits)]

        device = make_device(device_name, spec.num_qubits)
        self._node = qml.QNode(circuit, device, interface="torch", diff_method=diff_method)

    def forward(self, angles: Tensor) -> Tensor:
        """Angles (B, n), radians → ⟨Z_i⟩ (B, n)."""
        self.num_rows += len(angles)
        self.num_jobs += 1
        columns = self._node(angles.to(torch.float64), self.weights)
        return torch.stack([column.expand(len(angles)) for column in columns], dim=-1).to(torch.float64)


class ShiftHead(Head):
    """The head on any backend; its gradient by a table of shifted points, all rows of a batch in one execution.

    Args:
        spec: The circuit.
        weights: Initial values (L, n), radians.
        backend: Where it runs; closed together with the head.
        diff_method: A method of :mod:`hqtl_common.shifts`.
        seed: Seed of random directions (``spsa``).
        diff_step: Step of a finite difference or of spsa, radians; None is the method's own.

    Raises:
        ConfigError: A step that the method does not have.
    """

    def __init__(
        self, spec: HeadSpec, weights: Tensor, backend: Backend, diff_method: str, seed: int = 0, diff_step: float | None = None
    ) -> None:
        super().__init__(spec, weights)
        self.backend = backend
        self.shots = backend.shots
        self.diff_method = diff_method
        self.seed = seed
        self.diff_step = diff_step
        shift_table(diff_method, 1, np.random.default_rng(0), diff_step)
        self.stream = 0  # advances with every execution, so that noise is drawn anew and yet repeats with the seed

    def forward(self, angles: Tensor) -> Tensor:
        """Angles (B, n), radians → ⟨Z_i⟩ (B, n)."""
        num_parameters = self.spec.num_angles + self.spec.num_weights
        wanted = torch.is_grad_enabled() and (angles.requires_grad or self.weights.requires_grad)
        rng = np.random.default_rng([self.seed, self.stream])
        table = shift_table(self.diff_method, num_parameters, rng, self.diff_step) if wanted else forward_only(num_parameters)
        expvals: Tensor = _ShiftFunction.apply(angles.to(torch.float64), self.weights, self, table)
        return expvals

    def evaluate(self, angles: Tensor, weights: Tensor, table: ShiftTable) -> tuple[Tensor, Tensor]:
        """One execution of a whole table → ⟨Z_i⟩ (B, n) and ∂⟨Z_i⟩/∂θ_p (B, P, n)."""
        shared = weights.detach().reshape(1, -1).expand(len(angles), -1)
        theta = torch.cat((angles.detach(), shared), dim=1).cpu().numpy()
        rows = table.rows(theta)
        row_angles, row_weights = rows[:, : self.spec.num_angles], rows[:, self.spec.num_angles :]
        answer = self.backend.run(self.spec, row_weights.reshape(-1, *self.spec.weights_shape), row_angles, stream=self.stream)
        self.stream += 1
        self.num_rows += answer.record.num_rows
        self.num_jobs += answer.record.num_jobs
        self.qpu_seconds += answer.record.qpu_seconds
        expvals = torch.from_numpy(answer.expvals[:: table.num_points].copy())
        return expvals.to(angles.device), torch.from_numpy(table.jacobian(answer.expvals)).to(angles.device)

    def close(self) -> None:
        """Close the backend."""
        self.backend.close()


class _ShiftFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, angles: Tensor, weights: Tensor, head: ShiftHead, table: ShiftTable) -> Tensor:
        expvals, jacobian = head.evaluate(angles, weights, table)
        ctx.save_for_backward(jacobian)
        ctx.weights_shape = weights.shape
        return expvals

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (jacobian,) = ctx.saved_tensors
        per_parameter = torch.einsum("bi,bpi->bp", grads[0], jacobian)
        num_angles = jacobian.shape[1] - math.prod(ctx.weights_shape)
        to_angles, to_weights = per_parameter[:, :num_angles], per_parameter[:, num_angles:].sum(0)
        return to_angles, to_weights.reshape(ctx.weights_shape), None, None


def resolve_diff_method(backend: str, shots: int | None, requested: str = "auto") -> str:
    """The gradient method that a backend with these shots will use.

    ``auto`` takes the first legal one: backprop, else the device's adjoint, else parameter-shift.

    Raises:
        UnknownBackendError: No such backend.
        CapabilityError: The method is not legal here; the message lists those that are.
    """
    legal = [method for method in backend_capabilities(backend).diff_methods if _is_legal(backend, shots, method)]
    if requested == "auto":
        return legal[0]
    if requested not in legal:
        sampled = "exact values" if shots is None else f"{shots} shots"
        raise CapabilityError(
            f"diff_method {requested!r} cannot be used on {backend!r} with {sampled}; legal are {', '.join(legal)} and auto"
        )
    return requested


def make_head(
    spec: HeadSpec,
    weights: Tensor,
    *,
    backend: str = "statevector",
    diff_method: str = "auto",
    shots: int | None = None,
    seed: int = 0,
    backend_options: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    scope: str = "",
    diff_step: float | None = None,
) -> Head:
    """The module for a backend and a gradient method.

    Args:
        spec: The circuit.
        weights: Initial values (L, n), radians.
        backend: A backend's name.
        diff_method: See :func:`resolve_diff_method`.
        shots: Repetitions, None = exact.
        seed: Seed of sampling and of random directions.
        backend_options: Options of the backend by its own names.
        limits: What may be spent on a paid backend.
        scope: What its executions belong to.
        diff_step: Step of a finite difference or of spsa, radians; None is the method's own.

    Raises:
        BackendError: See :func:`resolve_diff_method` and :func:`hqtl_common.backends.opening.open_backend`.
        ConfigError: See :func:`hqtl_common.backends.opening.open_backend`.
    """
    method = resolve_diff_method(backend, shots, diff_method)
    if method not in ("backprop", "adjoint"):
        engine = open_backend(backend, shots=shots, seed=seed, options=backend_options, limits=limits, scope=scope)
        return ShiftHead(spec, weights, engine, method, seed, diff_step)
    if diff_step is not None:
        raise ConfigError(f"{method} has no step to choose; got {diff_step}")
    if backend_options:
        raise ConfigError(f"{backend!r} differentiated by {method} has no options; got {', '.join(sorted(backend_options))}")
    if backend == "statevector":
        return StatevectorHead(spec, weights)
    return QNodeHead(spec, weights, backend.partition(":")[2], method)


def _is_legal(backend: str, shots: int | None, method: str) -> bool:
    if method not in ("backprop", "adjoint"):
        return True
    if shots is not None:
        return False
    devices: dict[str, tuple[str, ...]] = {"backprop": _BACKPROP_DEVICES, "adjoint": _ADJOINT_DEVICES}
    prefix, _, device = backend.partition(":")
    return prefix != "pennylane" or device in devices[method]


def _kronecker(vectors: tuple[Tensor, ...]) -> Tensor:
    """Row-wise Kronecker product of n tensors (B, 2) → (B, 2^n), the first most significant."""
    return _fold(vectors, lambda left, right: (left[:, :, None] * right[:, None, :]).flatten(1))


def _kronecker_matrix(matrices: tuple[Tensor, ...]) -> Tensor:
    """Kronecker product of n matrices (2, 2) → (2^n, 2^n)."""
    return _fold(matrices, torch.kron)


def _fold(items: tuple[Tensor, ...], combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    result = items[0]
    for item in items[1:]:
        result = combine(result, item)
    return result
