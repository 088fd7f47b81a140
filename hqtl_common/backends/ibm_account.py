"""Logging in to IBM's platform, strictly: no key ever leaves in place of a token, nothing is sent twice, nothing waits for ever.

Account: the client's own variables QISKIT_IBM_TOKEN, QISKIT_IBM_INSTANCE (a CRN), QISKIT_IBM_CHANNEL and QISKIT_IBM_URL, or its
saved account (readable by nobody else). HTTP_PROXY and HTTPS_PROXY are honoured. HQTL_IBM_IAM_URL sends the token exchange
elsewhere, for rehearsals against a stand-in on this machine only.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qiskit_ibm_runtime import QiskitRuntimeService
from qiskit_ibm_runtime.api import client_parameters
from qiskit_ibm_runtime.api.auth import CloudAuth
from requests.adapters import HTTPAdapter

from hqtl_common.errors import BackendAuthError, BackendUnavailableError, ConfigError

__all__ = ["TIMEOUTS_S", "account_overview", "open_service", "without_secrets"]

TIMEOUTS_S = (10.0, 30.0)  # connecting, reading; below the time that a submit is given to settle

_ACCOUNT_FILE = Path.home() / ".qiskit" / "qiskit-ibm.json"
_CONSTRUCTION = threading.Lock()


def open_service() -> tuple[QiskitRuntimeService, tuple[str, ...]]:
    """Log in; the service, and the texts that must not appear in a message.

    Raises:
        ConfigError: HQTL_IBM_IAM_URL names another machine.
        BackendAuthError: No account, or one that is refused.
    """
    _check_account()
    secrets = _known_secrets()
    _guard_logs(secrets)
    try:
        with _strict_authentication():
            service = QiskitRuntimeService()
        account = service.active_account() or {}
    except Exception as error:
        raise BackendAuthError(f"IBM's platform did not let the account in: {without_secrets(str(error), secrets)}") from None
    instance = str(account.get("instance") or "")
    if not instance.startswith("crn:"):
        raise BackendAuthError("the account names no instance; set QISKIT_IBM_INSTANCE to its CRN (crn:v1:…)")
    service._active_api_client = service._api_clients[instance]  # one client for everything
    session = service._active_api_client._session
    session.mount(session.base_url, _SendOnce(max_retries=0))
    return service, tuple(filter(None, {*secrets, account.get("token"), instance}))


def account_overview() -> dict[str, Any]:
    """Machines with queue and calibration, and what is left of the plan; JSON-ready, without token and instance.

    Raises:
        BackendAuthError: See :func:`open_service`.
        BackendUnavailableError: The platform does not answer.
    """
    service, secrets = open_service()
    try:
        usage = {key: value for key, value in service.usage().items() if key not in ("instance_id", "instance", "crn")}
        return {"machines": [_machine(backend) for backend in service.backends()], "usage": usage}
    except Exception as error:
        raise BackendUnavailableError(f"IBM's platform does not answer: {without_secrets(str(error), secrets)}") from None


def _machine(backend: Any) -> dict[str, Any]:
    status, properties = backend.status(), backend.properties()
    return {
        "name": str(backend.name),
        "num_qubits": int(backend.num_qubits),
        "pending_jobs": int(status.pending_jobs),
        "operational": bool(status.operational),
        "calibration": None if properties is None else properties.last_update_date.isoformat(),
    }


def _check_account() -> None:
    if os.environ.get("QISKIT_IBM_TOKEN"):
        return
    if not _ACCOUNT_FILE.exists():
        raise BackendAuthError(
            "no IBM account: set QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE, or save one with QiskitRuntimeService.save_account"
        )
    if _ACCOUNT_FILE.stat().st_mode & 0o077:
        raise BackendAuthError(f"{_ACCOUNT_FILE} holds a key and can be read by others; run: chmod 600 {_ACCOUNT_FILE}")


def _known_secrets() -> tuple[str, ...]:
    """Keys and CRNs of the variables and of all saved accounts."""
    found: list[Any] = [os.environ.get("QISKIT_IBM_TOKEN"), os.environ.get("QISKIT_IBM_INSTANCE")]
    with suppress(OSError, ValueError, AttributeError):  # no file, or one that the client will refuse
        found += [account.get(key) for account in json.loads(_ACCOUNT_FILE.read_text()).values() for key in ("token", "instance")]
    return tuple({str(secret) for secret in found if secret})


class _HideSecrets(logging.Filter):
    """Takes keys and CRNs out of what the client logs."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: tuple[str, ...] = ()

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging."""
        record.msg, record.args = without_secrets(record.getMessage(), self.secrets), ()
        return True


_HIDING = _HideSecrets()


def _guard_logs(secrets: tuple[str, ...]) -> None:
    logging.getLogger("ibm-cloud-sdk-core").setLevel(logging.INFO)  # below, it prints every header, the CRN among them
    _HIDING.secrets = tuple({*_HIDING.secrets, *secrets})
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("qiskit_ibm_runtime")]:
        logging.getLogger(name).addFilter(_HIDING)  # a filter of a parent does not see what its children log


@contextmanager
def _strict_authentication() -> Iterator[None]:
    """Services made in the body authenticate by :class:`_StrictAuth`; the client has no other place to say so."""
    with _CONSTRUCTION, warnings.catch_warnings():
        before = client_parameters.CloudAuth
        client_parameters.CloudAuth = _StrictAuth
        try:
            yield
        finally:
            client_parameters.CloudAuth = before


def _iam_url() -> str | None:
    url = os.environ.get("HQTL_IBM_IAM_URL")
    if url is None:
        return None
    host = urlsplit(url).hostname or ""
    if host in ("127.0.0.1", "localhost", "::1") or host.endswith(".test"):
        return url
    raise ConfigError(f"HQTL_IBM_IAM_URL is for stand-ins on this machine only (loopback or a name ending in .test); got the host {host!r}")


def without_secrets(text: str, secrets: tuple[str, ...]) -> str:
    """``text`` on one line, with every secret replaced."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return " ".join(text.split())


class _StrictAuth(CloudAuth):  # type: ignore[misc]
    """IBM's authentication, without its habit of sending the key itself where the exchange for a token fails."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if redirected := _iam_url():
            self.tm.url = redirected

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> _StrictAuth:
        return _StrictAuth(self.api_key, self.crn, private=self.private, proxies=self.proxies, verify=self.verify)

    def renew(self) -> None:
        """Forget the token: the next request exchanges the key for a new one, at once."""
        self.tm.expire_time = self.tm.request_time = 0

    def get_headers(self) -> dict[str, str]:
        """Service and bearer token; raises where no token can be had."""
        try:
            return {"Service-CRN": self.crn, "Authorization": f"Bearer {self.tm.get_token()}"}
        except Exception:
            self.renew()  # the client would sleep for a minute before it tries again
            raise


class _SendOnce(HTTPAdapter):  # type: ignore[misc]
    """No repetitions, and never a wait without end."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """See requests."""
        return super().send(request, *args, **{**kwargs, "timeout": TIMEOUTS_S})
