"""A stand-in for the IBM Quantum Platform on loopback, to rehearse with before paying.

The installed, unmodified ``QiskitRuntimeService`` and ``SamplerV2`` work against it over HTTP; jobs run on Aer with the noise of
a machine's snapshot, wait in a queue, cost QPU seconds, and meet the faults that are asked for::

    with start(EmulatorOptions(backends=("ibm_kolkata",), seed=7)) as emulator:
        emulator.faults.add(Fault(kind="error_after"))
        subprocess.run(command, env=os.environ | emulated_environment(emulator))
        print(emulator.stats()["jobs_executed"])

A child process finds the platform by ``QISKIT_IBM_URL`` and ``HTTP_PROXY``. Only the token exchange, whose address the client has
fixed, must be turned by the child itself to ``HQTL_IBM_IAM_URL``, before it makes a service::

    from qiskit_ibm_runtime.api import auth
    manager = auth.IAMTokenManager
    auth.IAMTokenManager = lambda api_key, *, url, **options: manager(api_key, url=iam_url, **options)

As a process of its own: ``python -m training.emulator``.
"""

from __future__ import annotations

from training.emulator.faults import ROUTE_NAMES, Fault, FaultKind, FaultSchedule
from training.emulator.options import INSTANCES, EmulatorOptions, Instance
from training.emulator.service import Emulator, emulated_environment, start

__all__ = [
    "INSTANCES",
    "ROUTE_NAMES",
    "Emulator",
    "EmulatorOptions",
    "Fault",
    "FaultKind",
    "FaultSchedule",
    "Instance",
    "emulated_environment",
    "start",
]
