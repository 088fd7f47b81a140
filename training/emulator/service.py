"""Start the emulator, and tell a child process where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hqtl_common.errors import ConfigError
from training.emulator.faults import FaultSchedule
from training.emulator.options import INSTANCES, EmulatorOptions
from training.emulator.platform import Platform
from training.emulator.server import DOMAIN, Application, Server

__all__ = ["Emulator", "emulated_environment", "start"]

_API_KEY = "emulated-api-key"


class Emulator:
    """A running emulator.

    Args:
        server: Its server.
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def address(self) -> str:
        """URL of the server on loopback, which is also the proxy."""
        return self._server.address

    @property
    def faults(self) -> FaultSchedule:
        """The faults to come."""
        return self._server.application.faults

    def stats(self) -> dict[str, Any]:
        """Requests, jobs and QPU seconds since the start."""
        return self._server.application.stats()


@contextmanager
def start(options: EmulatorOptions | None = None, *, port: int = 0) -> Iterator[Emulator]:
    """Run the emulator in threads of this process.

    Args:
        options: How the platform behaves.
        port: Of 127.0.0.1; 0 chooses a free one.

    Raises:
        UnknownBackendError: A machine without a snapshot.
        OSError: The port is taken.
    """
    options = options or EmulatorOptions()
    platform = Platform(options)
    try:
        server = Server(Application(platform, FaultSchedule(options.seed)), port)
        server.start()
        try:
            yield Emulator(server)
        finally:
            server.stop()
    finally:
        platform.close()


def emulated_environment(emulator: Emulator | str, *, plan: str = "open", sealed: bool = True) -> dict[str, str]:
    """Variables that make a child process take the emulator for the platform.

    The key in it is none: the user's own is never needed, and hidden from the child.

    Args:
        emulator: The emulator or its address.
        plan: ``open`` or ``pay-as-you-go``.
        sealed: Send HTTPS to the emulator as well, which refuses it: nothing that honours proxies leaves the machine. A child
            that must download over HTTPS needs False.

    Raises:
        ConfigError: There is no such plan.
    """
    address = emulator if isinstance(emulator, str) else emulator.address
    instances = {instance.plan: instance.crn for instance in INSTANCES}
    if plan not in instances:
        raise ConfigError(f"unknown plan {plan!r}: expected one of {', '.join(instances)}")
    proxies = {"http_proxy": address, "no_proxy": "127.0.0.1,localhost,::1", **({"https_proxy": address} if sealed else {})}
    return {
        "QISKIT_IBM_CHANNEL": "ibm_quantum_platform",
        "QISKIT_IBM_URL": f"http://{DOMAIN}",
        "QISKIT_IBM_TOKEN": _API_KEY,
        "QISKIT_IBM_INSTANCE": instances[plan],
        "HQTL_IBM_IAM_URL": f"http://iam.{DOMAIN}",
        **proxies,
        **{name.upper(): value for name, value in proxies.items()},
    }
