"""A machine to imitate: its gates and couplings, its errors, and where these figures come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qiskit.transpiler import Target

__all__ = ["Machine"]


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """What a circuit is transpiled to and whose noise it gets; one object per machine, compared by identity.

    Args:
        name: The backend's name.
        target: Qiskit's description: which gates on which qubits, with error and duration in seconds.
        calibration: Date of the figures (ISO 8601), None where unknown.
        versions: Packages that the figures come from.
        options: What the record of every execution says about the machine.
    """

    name: str
    target: Target
    calibration: str | None
    versions: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
