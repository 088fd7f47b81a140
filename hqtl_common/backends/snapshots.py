"""``fake_NAME``: snapshots of IBM's machines that come with qiskit-ibm-runtime, each with the calibration of one day.

See https://quantum.cloud.ibm.com/docs/api/qiskit-ibm-runtime/fake-provider for the list.
"""

from __future__ import annotations

import difflib
import warnings
from functools import cache, lru_cache
from typing import Any

import qiskit_ibm_runtime
from qiskit.circuit import Measure
from qiskit.transpiler import InstructionProperties, Target
from qiskit_ibm_runtime import fake_provider

from hqtl_common.backends.machine import Machine
from hqtl_common.errors import UnknownBackendError

__all__ = ["snapshot", "snapshot_class", "snapshot_names"]


def snapshot_names() -> tuple[str, ...]:
    """All names, sorted, for example ``fake_kolkata``."""
    return tuple(sorted(_classes()))


def snapshot_class(name: str) -> Any:
    """The class of qiskit-ibm-runtime behind a name; nothing is read from disk.

    Raises:
        UnknownBackendError: There is no such snapshot.
    """
    if name not in _classes():
        close = difflib.get_close_matches(name, snapshot_names(), n=4, cutoff=0.5)
        known = f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(snapshot_names())}"
        raise UnknownBackendError(f"unknown backend {name!r}: qiskit-ibm-runtime has no such snapshot; {known}")
    return _classes()[name]


@lru_cache(maxsize=16)
def snapshot(name: str) -> Machine:
    """The machine of a snapshot.

    The oldest snapshots describe readout errors but no measurement; it is added with these errors. What a snapshot warns
    of becomes the ``caveat`` of every record.

    Raises:
        UnknownBackendError: There is no such snapshot.
    """
    kind = snapshot_class(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backend = kind()
        target, properties = backend.target, backend.properties()
    caveats = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    if "measure" not in target.operation_names:
        _add_measurement(target, properties)
    date = properties.last_update_date.isoformat()
    versions = {"qiskit-ibm-runtime": qiskit_ibm_runtime.__version__}
    return Machine(name, target, date, versions=versions, options={"caveat": " ".join(caveats)} if caveats else {})


@cache
def _classes() -> dict[str, Any]:
    named = ((getattr(value, "backend_name", None), value) for value in vars(fake_provider).values() if isinstance(value, type))
    return {name: value for name, value in named if name}


def _add_measurement(target: Target, properties: Any) -> None:
    errors = {(qubit,): InstructionProperties(error=properties.readout_error(qubit)) for qubit in range(target.num_qubits)}
    target.add_instruction(Measure(), errors)
