"""The emulator as a process: nothing leaves the machine, and the caller's key goes no further than its own process."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from ibm_cloud_sdk_core import IAMTokenManager
from qiskit_ibm_runtime.api import auth

from hqtl_common.errors import ConfigError
from training.emulator import INSTANCES, Emulator, emulated_environment
from training.emulator.__main__ import main

ROOT = Path(__file__).parents[2]
CANARY = "canary-4f1d6c0e9b7a4c53"

# A process that a user would start: the client, one redirected address, one job; it notes whom it talks to and what it is told.
CHILD = """
import ipaddress, os, socket
import requests

hosts, told = set(), []
connect, send = socket.socket.connect, requests.Session.send

def guarded(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        hosts.add(address[0])
        assert ipaddress.ip_address(address[0]).is_loopback, address
    connect(self, address)

def noted(self, request, **options):
    answer = send(self, request, **options)
    told.append(f"{answer.headers} {answer.text}")
    return answer

socket.socket.connect, requests.Session.send = guarded, noted

from qiskit_ibm_runtime.api import auth
manager = auth.IAMTokenManager
auth.IAMTokenManager = lambda api_key, *, url, **options: manager(api_key, url=os.environ["HQTL_IBM_IAM_URL"], **options)

from qiskit import QuantumCircuit, transpile
from qiskit_ibm_runtime import QiskitRuntimeService, SamplerV2
service = QiskitRuntimeService()
backend = service.least_busy()
circuit = QuantumCircuit(1)
circuit.x(0)
circuit.measure_all()
job = SamplerV2(mode=backend).run([transpile(circuit, backend)], shots=100)
counts = job.result()[0].data.meas.get_counts()
assert counts["1"] > 80
assert os.environ["QISKIT_IBM_TOKEN"] not in "".join(told)
print(backend.name, sorted(hosts), len(told) > 10)
"""


@contextmanager
def emulator_process(folder: Path, *arguments: str) -> Iterator[tuple[str, Path]]:
    """Its address and its log."""
    ready, log = folder / "ready", folder / "log"
    command = [sys.executable, "-m", "training.emulator", "--ready-file", str(ready), "--verbose", *arguments]
    with log.open("w") as stream, subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream) as process:
        try:
            deadline = time.monotonic() + 300
            while not ready.exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield ready.read_text(), log
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0


def test_a_child_process_stays_on_loopback_and_its_key_is_seen_nowhere(tmp_path: Path) -> None:
    with emulator_process(tmp_path, "--backend", "ibm_lima", "--seed", "3") as (address, log):
        environment = {**os.environ, **emulated_environment(address), "QISKIT_IBM_TOKEN": CANARY, "HOME": str(tmp_path)}
        child = subprocess.run([sys.executable, "-c", CHILD], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert child.returncode == 0, child.stderr
        assert child.stdout == "ibm_lima ['127.0.0.1'] True\n"
        stats = requests.get(f"{address}/_emulator/stats", timeout=60)
        assert (stats.json()["jobs_executed"], stats.json()["unknown"], stats.json()["refused_hosts"]) == (1, {}, {})
        told = log.read_text()
    assert "POST jobs.submit 200" in told
    for secret in (CANARY, "crn:", "Bearer", "apikey"):
        assert secret not in told + stats.text


def test_a_token_holds_nothing_of_the_key(emulator: Emulator) -> None:
    answer = requests.post(f"{emulator.address}/identity/token", data={"apikey": CANARY}, timeout=60)
    payload = answer.json()["access_token"].split(".")[1]
    assert CANARY.encode() not in base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    assert CANARY not in answer.text


def test_a_process_that_does_not_redirect_the_token_exchange_reaches_nothing(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in emulated_environment(emulator).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(auth, "IAMTokenManager", IAMTokenManager)
    handler = auth.CloudAuth(CANARY, INSTANCES[0].crn)
    with pytest.warns(UserWarning, match="Unable to retrieve IBM Cloud access token"):
        handler.get_headers()
    assert emulator.stats()["refused_hosts"] == {"iam.cloud.ibm.com:443": 1}


def test_the_emulator_carries_nothing_for_others(emulator: Emulator) -> None:
    proxies = {"http": emulator.address, "https": emulator.address}
    assert requests.get("http://example.org/", proxies=proxies, timeout=60).status_code == 403
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get("https://quantum.cloud.ibm.com/", proxies=proxies, timeout=60)
    assert emulator.stats()["refused_hosts"] == {"example.org": 1, "quantum.cloud.ibm.com:443": 1}


def test_the_environment_of_a_child(emulator: Emulator) -> None:
    sealed, unsealed = emulated_environment(emulator), emulated_environment(emulator.address, plan="pay-as-you-go", sealed=False)
    assert sealed["HTTPS_PROXY"] == sealed["https_proxy"] == sealed["HTTP_PROXY"] == emulator.address
    assert {name for name in unsealed if "https" in name.lower()} == set()
    assert unsealed["QISKIT_IBM_INSTANCE"] == INSTANCES[1].crn
    with pytest.raises(ConfigError, match="expected one of open, pay-as-you-go"):
        emulated_environment(emulator, plan="premium")


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--backend", "ibm_unheard"], "no such snapshot"), (["--faults", "FILE"], "Input should be")]
)
def test_what_cannot_be_started_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    bad = tmp_path / "faults.json"
    bad.write_text('[{"kind": "explode"}]')
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert main([str(bad) if argument == "FILE" else argument for argument in arguments]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert message in capsys.readouterr().err
