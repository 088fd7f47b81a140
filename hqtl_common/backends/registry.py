"""Names → backends. A lazy table: nothing heavy is imported until a backend is made."""

from __future__ import annotations

import importlib
import string
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from hqtl_common.backends.base import Backend, Capabilities, DiffMethod
from hqtl_common.errors import BackendUnavailableError, ConfigError, UnknownBackendError

__all__ = ["FAMILIES", "Family", "backend_capabilities", "backend_names", "family_of", "get_backend", "import_backend", "is_installed"]

_SHIFTS: tuple[DiffMethod, ...] = ("commuting", "parameter-shift", "lean-shift", "finite-diff", "finite-diff-forward", "spsa")


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table.

    Args:
        pattern: Name shown to people; a last word in capitals stands for any text, as in ``pennylane:NAME``.
        target: ``module:class``, imported when a backend of the family is made.
        capabilities: What the family can do at most; an instance may be narrower.
        package: The importable package behind it, None when nothing more is needed; the extra ``quantum`` brings them all.
    """

    pattern: str
    target: str
    capabilities: Capabilities
    package: str | None = None

    def matches(self, name: str) -> bool:
        """True if ``name`` belongs to this family."""
        prefix = self.pattern.rstrip(string.ascii_uppercase)
        return name == prefix if prefix == self.pattern else name.startswith(prefix) and name != prefix


FAMILIES: tuple[Family, ...] = (
    Family(
        "statevector",
        "hqtl_common.backends.statevector:StatevectorBackend",
        Capabilities(
            summary="exact simulator (NumPy; torch in training); with shots a seeded draw from exact probabilities",
            exact=True,
            shots=True,
            noise=None,
            paid=False,
            diff_methods=("backprop", *_SHIFTS),
        ),
    ),
    Family(
        "pennylane:NAME",
        "hqtl_common.backends.pennylane:PennyLaneBackend",
        Capabilities(
            summary="any installed PennyLane device; qiskit.remote (slow) with the option fake_backend=fake_kolkata",
            exact=True,
            shots=True,
            noise=None,
            paid=False,
            diff_methods=("backprop", "adjoint", *_SHIFTS),
        ),
        package="pennylane",
    ),
    Family(
        "aer",
        "hqtl_common.backends.sampler:AerBackend",
        Capabilities(
            summary="Qiskit Aer's sampler without noise, all rows as one PUB",
            exact=False,
            shots=True,
            noise=None,
            paid=False,
            diff_methods=_SHIFTS,
        ),
        package="qiskit_aer",
    ),
    Family(
        "fake_NAME",
        "hqtl_common.backends.fake:NoisyBackend",
        Capabilities(
            summary="a snapshot of an IBM machine, for example fake_kolkata: exact noisy values, or shots drawn from them",
            exact=True,
            shots=True,
            noise="gate, relaxation and readout errors of the snapshot's day, by Aer's noise model",
            paid=False,
            diff_methods=_SHIFTS,
        ),
        package="qiskit_aer",
    ),
    Family(
        "paper:NAME",
        "hqtl_common.backends.fake:NoisyBackend",
        Capabilities(
            summary="stand-in of a machine of the paper, all retired: paper:kolkata, paper:ehningen, paper:lima",
            exact=True,
            shots=True,
            noise="the averages of the paper's table 2, equal on all qubits",
            paid=False,
            diff_methods=_SHIFTS,
        ),
        package="qiskit_aer",
    ),
    Family(
        "profile:PATH",
        "hqtl_common.backends.fake:NoisyBackend",
        Capabilities(
            summary="stand-in made from a JSON file of T1, T2, gate and readout errors",
            exact=True,
            shots=True,
            noise="the averages of the file, equal on all qubits",
            paid=False,
            diff_methods=_SHIFTS,
        ),
        package="qiskit_aer",
    ),
    Family(
        "ibm:NAME",
        "hqtl_common.backends.hardware:HardwareBackend",
        Capabilities(
            summary="a machine of IBM, for example ibm:ibm_fez or ibm:least_busy; every job is recorded before it is paid",
            exact=False,
            shots=True,
            noise="the machine's own",
            paid=True,
            diff_methods=_SHIFTS,
        ),
        package="qiskit_ibm_runtime",
    ),
)


def backend_names() -> tuple[str, ...]:
    """The names and name patterns that :func:`get_backend` knows."""
    return tuple(family.pattern for family in FAMILIES)


def family_of(name: str) -> Family:
    """The family of a backend name.

    Raises:
        UnknownBackendError: No family has this name.
    """
    for family in FAMILIES:
        if family.matches(name):
            return family
    raise UnknownBackendError(f"unknown backend {name!r}; known are {', '.join(backend_names())}")


def backend_capabilities(name: str) -> Capabilities:
    """What a backend can do, without making it (see :class:`Family`).

    Raises:
        UnknownBackendError: No family has this name.
    """
    return family_of(name).capabilities


def is_installed(name: str) -> bool:
    """True if the package behind a backend is installed; nothing is imported.

    Raises:
        UnknownBackendError: No family has this name.
    """
    package = family_of(name).package
    return package is None or find_spec(package) is not None


def import_backend(name: str) -> type[Any]:
    """The class of a backend; imports the packages behind it, and makes nothing.

    Raises:
        UnknownBackendError: No backend has this name.
        BackendUnavailableError: The package behind the backend is not installed.
    """
    module, _, attribute = family_of(name).target.partition(":")
    try:
        found: type[Any] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend {name!r} needs a package that is not installed ({error.name}); install it with: pip install 'hqtl[quantum]'"
        ) from error
    return found


def get_backend(name: str, **options: Any) -> Backend:
    """Make a backend.

    Args:
        name: For example ``statevector``, ``pennylane:default.qubit``, ``aer``.
        options: ``shots`` (None = exact where possible), ``seed``, and what the backend names in its ``OPTIONS``.

    Raises:
        UnknownBackendError: No backend has this name.
        ConfigError: An unknown option, or a value out of range; nothing has run.
        CapabilityError: The backend cannot do what the options ask.
        BackendUnavailableError: The package behind the backend is not installed.
    """
    backend_class = import_backend(name)
    unknown = sorted(set(options) - backend_class.OPTIONS)
    if unknown:
        raise ConfigError(f"backend {name!r} has no option {', '.join(unknown)}; it knows {', '.join(sorted(backend_class.OPTIONS))}")
    backend: Backend = backend_class(name, **options)
    return backend
