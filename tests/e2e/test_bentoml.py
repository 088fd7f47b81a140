"""``bentoml serve`` and ``bentoml build`` as an operator runs them: real processes, real HTTP on loopback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from hqtl_common import HybridClassifier, ModelBundle, get_backend
from serving.keys import Grants, edit_keys, new_key, revoked
from tests.tiny import tiny_bundle

ROOT = Path(__file__).parents[2]
BENTOML = Path(sys.executable).with_name("bentoml")
START_S = 400


def http(method: str, url: str, **options: Any) -> httpx.Response:
    return httpx.request(method, url, trust_env=False, timeout=120, **options)


def environment(home: Path, **variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HQTL_", "BENTOML_", "PROMETHEUS_"))}
    home.mkdir(exist_ok=True)
    return {**clean, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", **variables}


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)


def figures(service: Served) -> dict[str, float]:
    """What /metrics says: name with labels → value."""
    lines = service.ask("GET", "/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def free_port() -> int:
    """One of those that the system gives to nobody who does not ask for it, so that it is still free a moment later."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def make_key(path: Path, **grants: Any) -> str:
    """Add a key to a file of keys; the text to send."""
    token, key = new_key("test", Grants(**grants))
    with edit_keys(path) as keys:
        keys.append(key)
    return token


class Served:
    """A running ``bentoml serve`` with one key; whatever happens, nothing of it is left behind."""

    def __init__(self, folder: Path, *arguments: str, cwd: Path = ROOT, **variables: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.keys = folder / f"keys-{self.port}.json"
        self.token = make_key(self.keys)
        if "HQTL_INSECURE_NO_AUTH" not in variables:
            variables = {"HQTL_KEYS": str(self.keys), **variables}
        self.log = folder / f"serve-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = psutil.Popen(
                [str(BENTOML), "serve", *arguments, "--port", str(self.port)],
                cwd=cwd,
                env=environment(folder / f"home-{self.port}", **variables),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def wait_ready(self) -> None:
        limit = time.monotonic() + START_S
        while time.monotonic() < limit and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if http("GET", f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.1)
        pytest.fail(f"the service did not become ready:\n{self.log.read_text()}")

    def worker(self) -> psutil.Process:
        (worker,) = self.workers()
        return worker

    def workers(self) -> list[psutil.Process]:
        found = []
        for child in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "_bentoml_impl.worker.service" in child.cmdline():
                    found.append(child)
        return found

    def predict(self, *files: bytes, **fields: Any) -> httpx.Response:
        parts = [("image", (f"{k}.png", data)) for k, data in enumerate(files)]
        while True:
            answer = self.ask("POST", "/v1/predict", files=parts, data={k: str(v) for k, v in fields.items()})
            if answer.status_code != 504:  # on a busy machine a first import may take longer than any request, and goes on
                return answer

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request with the key."""
        return http(method, f"{self.url}{path}", headers={"authorization": f"Bearer {self.token}"}, **options)

    def stop(self) -> None:
        family = [self.process, *self.process.children(recursive=True)] if self.process.is_running() else []
        if self.process.poll() is None:
            self.process.terminate()
        _, alive = psutil.wait_procs(family, timeout=30)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=10)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(*arguments: str, **options: Any) -> Served:
        running.append(Served(tmp_path, *arguments, **options))
        return running[-1]

    yield start
    for service in running:
        service.stop()


@pytest.fixture(scope="module")
def service(bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Plain ``bentoml serve`` in the root of the repository."""
    served = Served(tmp_path_factory.mktemp("serve"), HQTL_BUNDLE=str(bundle.path))
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


def photo(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((50, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def probabilities(answer: httpx.Response) -> list[dict[str, float]]:
    assert answer.status_code == 200, answer.text
    return [prediction["probabilities"] for prediction in answer.json()["predictions"]]


def library(bundle: ModelBundle, *files: bytes, backend: str = "statevector", **options: Any) -> list[dict[str, float]]:
    with HybridClassifier(bundle, get_backend(backend, **options)) as classifier:
        return [prediction.probabilities for prediction in classifier.predict_many(files)]


class TestFromTheRepository:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"shots": 100, "seed": 3},
            {"backend": "pennylane:default.qubit"},
            {"backend": "pennylane:default.qubit", "shots": 100, "seed": 3},
            {"backend": "aer", "seed": 3},
        ],
    )
    def test_answers_are_the_librarys(self, service: Served, bundle: ModelBundle, options: dict[str, Any]) -> None:
        files = [photo(seed) for seed in range(3)]
        for answer, expected in zip(probabilities(service.predict(*files, **options)), library(bundle, *files, **options), strict=True):
            assert answer == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize(
        ("files", "fields", "status"),
        [
            ([b"text"], {}, 415),
            ([photo(0)[:60]], {}, 422),
            ([photo(0)], {"shots": -1}, 422),
            ([photo(0)], {"backend": "pennylane:x"}, 403),
            ([], {}, 415),
        ],
    )
    def test_errors_are_the_envelope(self, service: Served, files: list[bytes], fields: dict[str, Any], status: int) -> None:
        answer = service.predict(*files, **fields)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])

    def test_other_routes(self, service: Served, bundle: ModelBundle) -> None:
        assert service.ask("GET", "/v1/model").json()["labels"] == list(bundle.labels)
        assert service.ask("GET", "/v1/backends").json()["default"] == "statevector"
        assert [service.ask("GET", path).status_code for path in ("/livez", "/readyz", "/healthz", "/metrics", "/")] == [200] * 5
        nowhere = service.ask("GET", "/static_content/index.css")
        assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")

    def test_without_a_key_nothing_of_ours_or_of_bentoml_answers(self, service: Served) -> None:
        shut = ("/", "/metrics", "/v1/model", "/v1/openapi.json", "/docs", "/docs.json", "/schema.json", "/static_content/index.css", "/x")
        assert {http(method, f"{service.url}{path}").status_code for path in shut for method in ("GET", "POST")} == {401}
        assert {http("GET", f"{service.url}{path}").status_code for path in ("/livez", "/readyz", "/healthz")} == {200}

    def test_a_key_is_revoked_and_another_is_made_while_it_runs(self, service: Served) -> None:
        other = make_key(service.keys)
        with edit_keys(service.keys) as keys:
            keys[:] = revoked(keys, keys[0].id)
        wait_until(lambda: service.ask("GET", "/v1/model").status_code == 401)
        first, service.token = service.token, other
        assert service.predict(photo(0)).status_code == 200
        assert first not in service.log.read_text()

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: KEY\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", 400),
            (b"hello\r\n\r\n", 400),
            (b"GET \xff\xfe HTTP/1.1\r\n\r\n", 400),
            (b"GET /%ff%00 HTTP/1.1\r\nHost: \xff\xfe\r\nAuthorization: KEY\r\n\r\n", 404),
            (b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\nAuthorization: KEY\r\n\r\n", 400),
            (b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nAuthorization: KEY\r\n\r\nzz\r\n", 400),
            (
                b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nAuthorization: KEY\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                415,
            ),
            (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nAuthorization: KEY\r\n\r\n", 400),
            (b"TRACE / HTTP/1.1\r\nHost: x\r\nAuthorization: KEY\r\n\r\n", 405),
            (b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\r\n\r\n", 401),
        ],
    )
    def test_what_is_hardly_http_is_the_clients_fault(self, service: Served, sent: bytes, status: int) -> None:
        with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
            connection.sendall(sent.replace(b"KEY", b"Bearer " + service.token.encode()))
            assert connection.recv(100).split()[1] == str(status).encode()

    def test_a_client_that_goes_away_leaves_nothing_behind(self, service: Served) -> None:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token}\r\n"
        head += "Content-Type: multipart/form-data; boundary=b"
        for _ in range(40):  # more than may be in work at once
            with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
                connection.sendall(f"{head}\r\nContent-Length: 100000\r\n\r\n--b\r\n".encode())
        wait_until(lambda: service.predict(photo(0)).status_code == 200)

    def test_an_upload_that_is_refused_early_is_answered(self, service: Served) -> None:
        answer = service.predict(bytes(20 * 2**20))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")

    def test_it_listens_on_loopback_only(self, service: Served) -> None:
        family = [service.process, *service.process.children(recursive=True)]
        listening = {c.laddr.ip for process in family for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}

    def test_the_worker_holds_no_torch(self, service: Served) -> None:
        for backend in ("statevector", "pennylane:default.qubit", "aer"):
            assert service.predict(photo(0), backend=backend).status_code == 200
        mapped = Path(f"/proc/{service.worker().pid}/maps").read_text()
        assert "onnxruntime" in mapped
        assert "torch" not in mapped

    def test_the_log_holds_no_traceback_and_no_name_of_a_file(self, service: Served) -> None:
        def asked() -> list[dict[str, Any]]:
            lines = service.log.read_text().rpartition("\n")[0].splitlines()
            found = [json.loads(line) for line in lines if line.startswith("{")]
            return [line for line in found if line.get("route") == "/v1/predict"]

        service.predict(photo(0), b"text")
        wait_until(lambda: "code" in asked()[-1])
        requests, log = asked(), service.log.read_text()
        assert {"request_id", "status", "duration_ms", "key", "backend", "images", "shots", "bytes_in", "client"} <= requests[-2].keys()
        assert requests[-1]["code"] == "unknown_image_format"
        assert not re.search(f"Traceback|0.png|{service.token}|Bearer", log)

    def test_figures_of_all_that_was_asked(self, service: Served) -> None:
        before = figures(service)
        service.predict(photo(0), photo(1), backend="aer", shots=100)
        service.predict(b"text")
        for k in range(50):
            service.ask("GET", f"/random/{k}")
        after = figures(service)
        grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
        assert grown['hqtl_shots_total{backend="aer"}'] == 200
        assert grown['hqtl_rejected_total{reason="unknown_image_format"}'] == 1
        assert sum(value for name, value in grown.items() if "request_total" in name and 'endpoint="other"' in name) == 50
        assert not any("random" in name for name in after)


def test_sigterm_lets_work_in_progress_finish(serve: Callable[..., Served], bundle: ModelBundle) -> None:
    service = serve(HQTL_BUNDLE=str(bundle.path))
    service.wait_ready()
    worker, answers = service.worker(), []
    before = libraries(worker)
    request = threading.Thread(target=lambda: answers.append(service.predict(photo(0), backend="pennylane:default.qubit")))
    request.start()
    wait_until(lambda: len(libraries(worker) - before) > 3)  # it has begun to import PennyLane, and goes on for seconds
    assert not answers
    family = service.process.children(recursive=True)
    service.process.send_signal(signal.SIGTERM)
    request.join(300)
    assert [answer.status_code for answer in answers] == [200]
    assert service.process.wait(300) == 0
    assert psutil.wait_procs(family, timeout=120)[1] == []
    assert "Traceback" not in service.log.read_text()


def libraries(process: psutil.Process) -> set[str]:
    """What is mapped into its memory."""
    return {line.split()[-1] for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines() if ".so" in line}


def run_to_the_end(home: Path, *arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(BENTOML), "serve", *arguments, "--port", str(free_port())]
    variables = {"HQTL_INSECURE_NO_AUTH": "1", **variables}
    return subprocess.run(command, cwd=cwd, env=environment(home, **variables), capture_output=True, text=True, timeout=START_S)


class TestItDoesNotStart:
    def one_line(self, result: subprocess.CompletedProcess[str]) -> str:
        assert result.returncode == 1
        (line,) = (result.stdout + result.stderr).splitlines()
        return line

    def test_without_a_bundle(self, tmp_path: Path) -> None:
        assert self.one_line(run_to_the_end(tmp_path / "home")).startswith("hqtl service: HQTL_BUNDLE is not set; ")

    @pytest.mark.parametrize("service", [".", "serving.service:HybridService"])
    def test_with_a_changed_bundle(self, tmp_path: Path, service: str) -> None:
        folder = tiny_bundle(tmp_path / "bundle").path
        data = bytearray((folder / "backbone.onnx").read_bytes())
        data[40] ^= 1
        (folder / "backbone.onnx").write_bytes(data)
        line = self.one_line(run_to_the_end(tmp_path / "home", service, HQTL_BUNDLE=str(folder)))
        assert line.startswith("hqtl service: backbone.onnx of the bundle ")

    def test_with_a_manifest_that_is_not_one(self, tmp_path: Path) -> None:
        (tmp_path / "manifest.json").write_text("{}")
        assert "manifest.json" in self.one_line(run_to_the_end(tmp_path / "home", HQTL_BUNDLE=str(tmp_path)))

    def test_with_a_wrong_setting(self, tmp_path: Path, bundle: ModelBundle) -> None:
        line = self.one_line(run_to_the_end(tmp_path / "home", HQTL_BUNDLE=str(bundle.path), HQTL_BACKENDS="statevector,magic"))
        assert line.startswith("hqtl service: HQTL_BACKENDS must be ")

    def test_with_a_file_of_jobs_that_is_none(self, tmp_path: Path, bundle: ModelBundle) -> None:
        (tmp_path / "jobs").write_text("no database at all")
        line = self.one_line(run_to_the_end(tmp_path / "home", HQTL_BUNDLE=str(bundle.path), HQTL_JOBS=str(tmp_path / "jobs")))
        assert "is not a ledger" in line


def test_no_authentication_and_an_open_address_do_not_go_together(serve: Callable[..., Served], bundle: ModelBundle) -> None:
    service = serve("--host", "0.0.0.0", HQTL_BUNDLE=str(bundle.path), HQTL_INSECURE_NO_AUTH="1")
    service.process.wait(START_S)
    assert "hqtl service: HQTL_INSECURE_NO_AUTH serves 127.0.0.1 only, and this service would listen on 0.0.0.0" in service.log.read_text()


def test_figures_of_two_workers_are_added_up(serve: Callable[..., Served], bundle: ModelBundle) -> None:
    service = serve(HQTL_BUNDLE=str(bundle.path), BENTOML_CONFIG_OPTIONS="services.hqtl.workers=2")
    service.wait_ready()
    for k in range(20):
        assert service.predict(photo(k), shots=10).status_code == 200
    assert figures(service)['hqtl_shots_total{backend="statevector"}'] == 200
    service.workers()[0].kill()
    wait_until(lambda: len(service.workers()) == 2)
    assert service.predict(photo(0), shots=10).status_code == 200
    assert figures(service)['hqtl_shots_total{backend="statevector"}'] == 210


def test_a_worker_that_finds_the_bundle_changed_ends_it_all(serve: Callable[..., Served], tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "bundle").path
    service = serve(HQTL_BUNDLE=str(folder))
    service.wait_ready()
    (folder / "MODEL_CARD.md").write_text("other")
    service.worker().kill()  # BentoML starts another one within ten seconds
    service.process.wait(START_S)
    log = service.log.read_text()
    assert log.count("hqtl service: MODEL_CARD.md of the bundle ") == 1
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bento built from the repository."""
    home = tmp_path_factory.mktemp("bentoml")
    command = [str(BENTOML), "build", "--output", "tag"]
    subprocess.run(command, cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=300, check=True)
    (folder,) = [path.parent for path in (home / "bentos" / "hqtl").glob("*/bento.yaml")]
    return folder


class TestBento:
    def test_it_holds_the_service_and_nothing_of_training(self, bento: Path) -> None:
        held = {path.relative_to(bento / "src").as_posix() for path in (bento / "src").rglob("*") if path.is_file()}
        source = [path for package in ("serving", "hqtl_common") for path in (ROOT / package).rglob("*.*")]
        expected = {path.relative_to(ROOT).as_posix() for path in source if path.suffix in {".py", ".j2", ".css"}}
        assert held == expected | {"pyproject.toml", "LICENSE", "bentofile.yaml"}

    def test_its_packages_are_those_of_the_project_without_training(self, bento: Path) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"]
        listed = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"]
        assert listed == [*project["dependencies"], *extras["serve"], *extras["quantum"]]
        requirements = set((bento / "env/python/requirements.txt").read_text().split())
        assert requirements == set(listed)
        assert not any("torch" in requirement for requirement in requirements)

    def test_it_serves_with_no_repository_around_it(self, serve: Callable[..., Served], bento: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(bento, tmp_path / "bento"))
        marked = copy / "src" / "hqtl_common" / "__init__.py"
        marked.write_text(re.sub(r'__version__ = ".*"', '__version__ = "of the bento"', marked.read_text()))
        bundle = tiny_bundle(tmp_path / "elsewhere" / "bundle")
        service = serve(str(copy), cwd=tmp_path / "elsewhere", HQTL_BUNDLE="bundle")
        service.wait_ready()
        (answer,) = probabilities(service.predict(photo(1)))
        assert answer == pytest.approx(library(bundle, photo(1))[0], abs=1e-9)
        assert service.ask("GET", "/").json()["version"] == "of the bento"

    def test_it_does_not_start_without_a_bundle(self, bento: Path, tmp_path: Path) -> None:
        result = run_to_the_end(tmp_path / "home", str(bento), cwd=tmp_path)
        (line,) = result.stderr.splitlines()
        assert result.returncode == 1
        assert line.startswith("hqtl service: HQTL_BUNDLE is not set; ")
