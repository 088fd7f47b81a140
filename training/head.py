"""The head as torch modules: exact with backprop, as a PennyLane QNode, or by shifts over any backend.

Every module is a :class:`training.statevector.Head`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hqtl_common.backends.base import Backend
from hqtl_common.backends.opening import Limits, open_backend
from hqtl_common.backends.registry import backend_capabilities
from hqtl_common.errors import CapabilityError, ConfigError
from hqtl_common.shifts import ShiftTable, forward_only, head_table
from hqtl_common.specs import HeadSpec
from training.statevector import Head, StatevectorHead

__all__ = ["Head", "QNodeHead", "ShiftHead", "StatevectorHead", "make_head", "resolve_diff_method"]

_BACKPROP_DEVICES = ("default.qubit", "default.mixed")
_ADJOINT_DEVICES = ("default.qubit", "lightning.qubit")
_ANSATZ_OF = {"commuting": "commuting", "lean-shift": "real_amplitudes"}


class QNodeHead(Head):
    """The head as a PennyLane QNode, differentiated by the device itself; see :class:`training.statevector.Head`.

    Args:
        spec: The circuit.
        weights: Initial values (L, n) or (S, L, n), radians.
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
        """See :class:`training.statevector.Head`."""
        rows = angles.to(torch.float64).reshape(-1, angles.shape[-1])
        self.num_rows += len(rows)
        self.num_jobs += 1
        weights = self.weights if self.weights.ndim == 2 else self.weights.repeat_interleave(angles.shape[-2], dim=0)
        columns = self._node(rows, weights)
        expvals = torch.stack([column.expand(len(rows)) for column in columns], dim=-1).to(torch.float64)
        return expvals.reshape(*angles.shape[:-1], -1)


class ShiftHead(Head):
    """The head on any backend; its gradient by a table of shifted points, all rows of a batch and of all runs in one execution.

    Args:
        spec: The circuit.
        weights: Initial values (L, n) or (S, L, n), radians.
        backend: Where it runs; closed together with the head.
        diff_method: A method of :mod:`hqtl_common.shifts`.
        seed: Seed of random directions (``spsa``), which every run draws for itself.
        diff_step: Step of a finite difference or of spsa, radians; None is the method's own.

    Raises:
        ConfigError: A method that the head does not have, or a step that the method does not have.
    """

    def __init__(
        self,
        spec: HeadSpec,
        weights: Tensor,
        backend: Backend,
        diff_method: str,
        seed: int = 0,
        diff_step: float | None = None,
    ) -> None:
        super().__init__(spec, weights)
        self.backend = backend
        self.shots = backend.shots
        self.diff_method = diff_method
        self.seed = seed
        self.diff_step = diff_step
        head_table(diff_method, spec, np.random.default_rng(0), diff_step)
        self.stream = 0  # advances with every execution, so that noise is drawn anew and yet repeats with the seed

    def forward(self, angles: Tensor) -> Tensor:
        """See :class:`training.statevector.Head`."""
        wanted = torch.is_grad_enabled() and (angles.requires_grad or self.weights.requires_grad)
        expvals: Tensor = _ShiftFunction.apply(angles.to(torch.float64), self.weights, self, self._tables(wanted))
        return expvals

    def evaluate(self, angles: Tensor, weights: Tensor, tables: Sequence[ShiftTable]) -> tuple[Tensor, Tensor]:
        """One execution of whole tables → ⟨Z_i⟩ (…, B, n) and ∂⟨Z_i⟩/∂θ_p (…, B, P, n).

        Args:
            angles: (…, B, E), radians.
            weights: (…, L, n), radians.
            tables: Of equal size and one for each run, or one for all.
        """
        shared = weights.detach().flatten(-2)[..., None, :].expand(*angles.shape[:-1], -1)
        theta = torch.cat((angles.detach(), shared), dim=-1).cpu().numpy()
        of_runs = theta.reshape(len(tables), -1, theta.shape[-1])
        rows = np.concatenate([table.rows(one) for table, one in zip(tables, of_runs, strict=True)])
        first, num_angles = tables[0], self.spec.num_angles
        options = {} if first.observables is None else {"observables": first.observables}
        answer = self.backend.run(
            self.spec, rows[:, num_angles:].reshape(-1, *self.spec.weights_shape), rows[:, :num_angles], stream=self.stream, **options
        )
        self.stream += 1
        self.num_rows += answer.record.num_rows
        self.num_jobs += answer.record.num_jobs
        self.qpu_seconds += answer.record.qpu_seconds
        parts = np.split(answer.expvals, len(tables))
        jacobian = np.concatenate([table.jacobian(part) for table, part in zip(tables, parts, strict=True)])
        expvals = answer.expvals[:: first.num_points, : self.spec.num_qubits]
        batch = angles.shape[:-1]
        shaped = (torch.from_numpy(part.reshape(*batch, *part.shape[1:])) for part in (expvals, jacobian))
        values, slopes = (part.to(angles.device) for part in shaped)
        return values, slopes

    def close(self) -> None:
        """Close the backend."""
        self.backend.close()

    def _tables(self, wanted: bool) -> list[ShiftTable]:
        if not wanted:
            return [forward_only(self.spec.num_angles + self.spec.num_weights)]
        rng = np.random.default_rng([self.seed, self.stream])
        count = len(self.weights) if self.diff_method == "spsa" and self.weights.ndim == 3 else 1
        return [head_table(self.diff_method, self.spec, rng, self.diff_step) for _ in range(count)]


class _ShiftFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, angles: Tensor, weights: Tensor, head: ShiftHead, tables: Sequence[ShiftTable]) -> Tensor:
        expvals, jacobian = head.evaluate(angles, weights, tables)
        ctx.save_for_backward(jacobian)
        ctx.weights_shape = weights.shape
        return expvals

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (jacobian,) = ctx.saved_tensors
        per_parameter = torch.einsum("...i,...pi->...p", grads[0], jacobian)
        num_angles = jacobian.shape[-2] - math.prod(ctx.weights_shape[-2:])
        to_angles, to_weights = per_parameter[..., :num_angles], per_parameter[..., num_angles:].sum(-2)
        return to_angles, to_weights.reshape(ctx.weights_shape), None, None


def resolve_diff_method(backend: str, shots: int | None, requested: str = "auto", spec: HeadSpec | None = None) -> str:
    """The gradient method that a backend with these shots will use for a head.

    ``auto`` takes the first legal one: backprop, else the device's adjoint, else the ansatz's own, else parameter-shift.

    Args:
        backend: Its name.
        shots: Repetitions, None = exact.
        requested: A method, or ``auto``.
        spec: The head; None is the paper's.

    Raises:
        UnknownBackendError: No such backend.
        CapabilityError: The method is not legal here; the message lists those that are.
    """
    spec = spec or HeadSpec()
    able = backend_capabilities(backend)
    legal = [method for method in able.diff_methods if _is_legal(backend, shots, method, spec)]
    if requested == "auto":
        return legal[0]
    if requested not in legal:
        sampled = f"{shots} shots" if shots is not None else "exact values" if able.exact else "its own number of shots"
        raise CapabilityError(
            f"diff_method {requested!r} cannot be used on {backend!r} with {sampled} and the ansatz {spec.ansatz}; "
            f"legal are {', '.join(legal)} and auto"
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
        weights: Initial values (L, n), or (S, L, n) of S runs at once, radians.
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
    method = resolve_diff_method(backend, shots, diff_method, spec)
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


def _is_legal(backend: str, shots: int | None, method: str, spec: HeadSpec) -> bool:
    if method in _ANSATZ_OF:
        return spec.ansatz == _ANSATZ_OF[method]
    if method not in ("backprop", "adjoint"):
        return True
    if shots is not None:
        return False
    devices: dict[str, tuple[str, ...]] = {"backprop": _BACKPROP_DEVICES, "adjoint": _ADJOINT_DEVICES}
    prefix, _, device = backend.partition(":")
    return prefix != "pennylane" or device in devices[method]
