"""A client in another process asks ``bentoml serve`` many different things at once: each answer is the library's, and none is a 5xx.

Good and bad requests, every kind of backend, forms and octet streams, answers at once and by jobs, 32 at a time and in random order.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from hqtl_common import HybridClassifier, ModelBundle, get_backend
from tests.e2e.test_bentoml import Served, figures, make_key, photo
from tests.hostile import KINDS, TRAPS
from tests.ibm_emulator.conftest import CLIENT_WARNINGS, redirect
from training.emulator import Emulator, EmulatorOptions, emulated_environment, start

MACHINE = "ibm:ibm_lima"
SIMULATORS = ("statevector", "pennylane:default.qubit", "aer", "fake_kolkata")
AT_ONCE = 32
MAX_BYTES, MAX_IMAGES, MAX_SHOTS = 60_000, 4, 5000
pytestmark = [pytest.mark.filterwarnings(text) for text in CLIENT_WARNINGS]


@dataclass
class Ask:
    """One request, and what must come of it.

    Args:
        kind: For the figures.
        images: Sent as files, or as the body where ``octets``.
        fields: Options.
        statuses: One of these.
        code: Of the error, None for any.
        detail: Of the error, where it matters.
        options: For httpx, in place of images and fields.
    """

    kind: str
    images: list[bytes] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    statuses: tuple[int, ...] = (200,)
    code: str | None = None
    detail: dict[str, Any] | None = None
    octets: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    answer: Any = None

    def request(self) -> tuple[str, str, dict[str, Any]]:
        texts = {name: str(value) for name, value in self.fields.items()}
        if self.options:
            return self.options.get("method", "POST"), self.options.get("url", "/v1/predict"), self.options["given"]
        if self.octets:
            headers = {"content-type": "application/octet-stream"}
            return "POST", "/v1/predict", {"params": texts, "content": self.images[0], "headers": headers}
        return "POST", "/v1/predict", {"data": texts, "files": [("image", (f"{k}.png", data)) for k, data in enumerate(self.images)]}


class Asks:
    """Makes requests from a seed; no two of them have an image or a seed of sampling in common."""

    def __init__(self, tokens: dict[str, str], paid: int) -> None:
        self.tokens = tokens
        self.rng = random.Random(5)
        self.numbers = itertools.count()
        self.paid = paid

    def all(self, count: int) -> list[Ask]:
        good: list[Callable[[], Ask]] = [self.exact, self.exact, self.drawn, self.pennylane, self.aer, self.fake, self.octets]
        bad = self.bad()
        asks = [self.hardware(fallback=k % 2 == 1) for k in range(self.paid)]
        asks += [bad[k % len(bad)]() for k in range(max(len(bad), count * 3 // 10))]
        asks += [good[k % len(good)]() for k in range(count - len(asks))]
        self.rng.shuffle(asks)
        return asks

    def photos(self, most: int = 3) -> list[bytes]:
        return [photo(next(self.numbers)) for _ in range(self.rng.randint(1, most))]

    def one(self) -> bytes:
        return photo(next(self.numbers))

    def exact(self) -> Ask:
        return Ask("statevector", self.photos(MAX_IMAGES), self.rng.choice(({}, {"backend": "statevector"}, {"threshold": 0.9})))

    def drawn(self) -> Ask:
        return Ask("statevector, shots", self.photos(), {"shots": self.rng.choice((10, 500)), "seed": next(self.numbers)})

    def pennylane(self) -> Ask:
        shots = self.rng.choice(({}, {"shots": 100, "seed": next(self.numbers)}))
        return Ask("pennylane", self.photos(), {"backend": "pennylane:default.qubit", **shots})

    def aer(self) -> Ask:
        return Ask("aer", self.photos(), {"backend": "aer", "shots": 300, "seed": next(self.numbers)})

    def fake(self) -> Ask:
        return Ask("fake_kolkata", self.photos(), {"backend": "fake_kolkata", "shots": 300, "seed": next(self.numbers)})

    def octets(self) -> Ask:
        return Ask("octet stream", [self.one()], {"shots": 50, "seed": next(self.numbers)}, octets=True)

    def hardware(self, *, fallback: bool) -> Ask:
        fields = {"backend": MACHINE, "shots": 100, "seed": next(self.numbers)}
        if fallback:
            return Ask("ibm, exact first", self.photos(), {**fields, "fallback": "statevector"})
        return Ask("ibm", self.photos(), fields, (202,))

    def bad(self) -> list[Callable[[], Ask]]:
        def refused(status: int | tuple[int, ...], code: str | None = None, **options: Any) -> Ask:
            statuses = status if isinstance(status, tuple) else (status,)
            given = {"images": [self.one()], "statuses": statuses, "code": code, **options}
            return Ask(f"bad: {code or statuses}", **given)

        def keyed(name: str, status: int, code: str, **fields: Any) -> Ask:
            headers = {"authorization": f"Bearer {self.tokens.get(name, name)}"}
            data = {key: str(value) for key, value in fields.items()}
            given = {"files": {"image": ("a.png", self.one())}, "data": data, "headers": headers}
            return refused(status, code, options={"given": given})

        def plain(method: str, url: str, status: int, **given: Any) -> Ask:
            return refused(status, options={"method": method, "url": url, "given": given})

        octets = {"content-type": "application/octet-stream"}
        return [
            lambda: refused(422, "image_decode", images=[self.one()[:80]]),
            lambda: refused(
                422, "image_decode", images=[self.one(), self.one(), self.one()[:90]], detail={"index": 2, "filename": "2.png"}
            ),
            lambda: refused(415, "unknown_image_format", images=[self.one(), self.rng.choice(TRAPS)]),
            lambda: refused((413, 415, 422), images=[KINDS[6](self.rng)]),  # a bomb
            lambda: refused((200, 413, 415, 422), images=[self.rng.choice(KINDS[:6])(self.rng)], fields={"shots": 7}),
            lambda: refused(422, "image_decode", images=[b""]),
            lambda: refused(413, "too_large", images=[self.rng.randbytes(MAX_BYTES + 1)]),
            lambda: refused(413, "too_large", images=[self.one() for _ in range(MAX_IMAGES + 1)]),
            lambda: refused(422, "unknown_backend", fields={"backend": "quantum"}),
            lambda: refused(403, "forbidden_backend", fields={"backend": "fake_lima"}),
            lambda: refused(422, "field", fields={"threshold": self.rng.choice((2, 0, -1, "nan", "x"))}),
            lambda: refused(422, "field", fields={"shots": self.rng.choice((0, -1, 1.5, "many", MAX_SHOTS + 1))}),
            lambda: refused(422, "field", fields={"seed": 2**63}),
            lambda: refused(422, "field", fields={"mitigation": "prayer"}),
            lambda: refused(422, "field", fields={"colour": "red"}),
            lambda: refused(422, "field", fields={"deadline_s": 10**6}),
            lambda: refused(422, "field", fields={"webhook": "http://169.254.169.254/latest/"}),
            lambda: refused(422, None, fields={"mitigation": "readout", "shots": 10}),
            lambda: refused(422, "field", images=[self.one()], fields={"x": 1}, octets=True),
            lambda: keyed("hqtl_00000000_" + "A" * 43, 401, "unauthorized"),
            lambda: keyed("revoked", 401, "unauthorized"),
            lambda: keyed("frugal", 403, "forbidden", backend="aer"),
            lambda: keyed("frugal", 403, "forbidden", backend=MACHINE, shots=10),
            lambda: keyed("frugal", 403, "forbidden", shots=101),
            lambda: keyed("poor", 429, "quota", backend=MACHINE, shots=MAX_SHOTS),
            lambda: plain("POST", "/v1/predict", 415, json={"image": "http://127.0.0.1:9/a.png"}),
            lambda: plain("POST", "/v1/predict", 422, content=b"", headers=octets),
            lambda: plain("POST", "/v1/predict", 400, content=b"--b", headers={"content-type": "multipart/form-data; boundary=b"}),
            lambda: plain("POST", "/v1/jobs?backend=", 422, content=self.one(), headers=octets),
            lambda: plain("POST", "/v2/models/hqtl/infer", 422, json={"inputs": []}),
            lambda: plain("POST", "/v1/inspect?tile=1", 422, content=self.one(), headers=octets),
            lambda: plain("GET", "/v1/predict", 405),
            lambda: plain("GET", "/v1/jobs/0123456789abcdef0123456789abcdef", 404),
            lambda: plain("GET", "/v1/../etc/passwd", 404),
        ]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with start(EmulatorOptions(backends=(MACHINE.partition(":")[2],), seed=3)) as emulator:
        yield emulator


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    from serving.keys import edit_keys, revoked

    path, many = tmp_path / "keys.json", {"qpu_seconds_per_day": None, "jobs_per_day": None}
    tokens = {
        "rich": make_key(path, **many),
        "revoked": make_key(path),
        "frugal": make_key(path, backends=("statevector",), max_shots=100),
        "poor": make_key(path, qpu_seconds_per_day=0.5, jobs_per_day=1),
    }
    with edit_keys(path) as keys:
        keys[:] = revoked(keys, keys[1].id)
    return tokens


@pytest.fixture
def service(bundle: ModelBundle, emulator: Emulator, tokens: dict[str, str], tmp_path: Path) -> Iterator[Served]:
    served = Served(
        tmp_path,
        HQTL_BUNDLE=str(bundle.path),
        HQTL_BACKENDS=",".join((*SIMULATORS, MACHINE)),
        HQTL_KEYS=str(tmp_path / "keys.json"),
        HQTL_JOBS=str(tmp_path / "jobs.sqlite"),
        HQTL_JOBS_POLL_S="0.2",
        HQTL_MAX_BYTES=str(MAX_BYTES),
        HQTL_MAX_IMAGES=str(MAX_IMAGES),
        HQTL_MAX_SHOTS=str(MAX_SHOTS),
        **emulated_environment(emulator, plan="pay-as-you-go"),
    )
    served.token = tokens["rich"]
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


async def ask_all(service: Served, asks: list[Ask]) -> None:
    """Every request, ``AT_ONCE`` at a time; a job is followed to its end by whoever asked for it."""
    waiting = iter(asks)
    headers = {"authorization": f"Bearer {service.token}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=AT_ONCE, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=service.url, trust_env=False, timeout=120, limits=limits) as http:

        async def client() -> None:
            for one in waiting:
                method, url, given = one.request()
                given["headers"] = headers | given.get("headers", {})
                while (answer := await http.request(method, url, **given)).status_code == 504:
                    assert answer.json()["error"]["code"] == "deadline"  # the machine is busy
                one.answer = answer
                if one.kind.startswith("ibm") and one.answer.status_code in one.statuses:
                    first = one.answer.json()
                    one.answer = (first, await followed(http, headers, first.get("job_id") or first["id"]))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(client())


async def followed(http: httpx.AsyncClient, headers: dict[str, str], identifier: str) -> dict[str, Any]:
    while True:
        answer = await http.get(f"/v1/jobs/{identifier}", headers=headers)
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        if job["state"] not in ("queued", "running"):
            return job
        await asyncio.sleep(0.3)


class Library:
    """What the library answers.

    Args:
        bundle: Of the service.
        jobs: File of the jobs, from which the counts of a paid job are replayed.
    """

    def __init__(self, bundle: ModelBundle, jobs: Path) -> None:
        self.classifier = HybridClassifier(bundle, threads=1)
        self.jobs = jobs

    def predictions(self, ask: Ask, job: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        options = {name: ask.fields[name] for name in ("shots", "seed") if name in ask.fields}
        if job is not None:
            options |= {"scope": job["id"], "ledger": self.jobs, "max_jobs": 1}
        backend = get_backend(ask.fields.get("backend", "statevector"), **options)
        try:
            batch = self.classifier.run(self.classifier.preprocess(ask.images), backend=backend, threshold=ask.fields.get("threshold"))
        finally:
            backend.close()
        return [one.to_dict() for one in batch.predictions()]

    def exact(self, ask: Ask) -> list[dict[str, Any]]:
        return self.predictions(Ask("statevector", ask.images))


def is_the_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Labels equal, numbers to rounding: a batch may add in another order than a single image."""
    numbers = ("probability", "interval", "angles", "expvals", "expval_stds", "logits")
    return len(found) == len(expected) and all(
        one["label"] == other["label"] and all(one[name] == pytest.approx(other[name], abs=1e-6) for name in numbers)
        for one, other in zip(found, expected, strict=True)
    )


def check(ask: Ask, library: Library) -> None:
    if ask.kind.startswith("ibm"):
        first, job = ask.answer
        assert job["state"] == "done", job["error"]
        assert job["backend_used"] == MACHINE
        assert is_the_same(job["answer"]["predictions"], library.predictions(ask, job)), ask
        if "fallback" in ask.fields:
            assert is_the_same(first["predictions"], library.exact(ask)), ask
        return
    answer = ask.answer
    assert answer.status_code in ask.statuses, (ask, answer.text)
    if answer.status_code == 200:
        body = answer.json()
        assert body["execution"]["backend_used"] == ask.fields.get("backend", "statevector")
        assert ask.statuses != (200,) or is_the_same(body["predictions"], library.predictions(ask)), ask
        return
    error = answer.json()["error"]
    if isinstance(error, str):  # the Open Inference Protocol's own form
        return
    assert error["request_id"] == answer.headers["x-request-id"]
    assert ask.code in (None, error["code"]), (ask.kind, error)
    assert ask.detail in (None, error["detail"])


@pytest.mark.parametrize(("count", "paid"), [(64, 2), pytest.param(500, 24, marks=pytest.mark.slow)])
def test_every_answer_is_right(
    count: int,
    paid: int,
    service: Served,
    bundle: ModelBundle,
    emulator: Emulator,
    tokens: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asks = Asks(tokens, paid).all(count)
    worker = service.worker().pid
    asyncio.run(ask_all(service, asks))
    seen = figures(service)
    library = Library(bundle, tmp_path / "jobs.sqlite")
    redirect(monkeypatch, emulator)
    for ask in asks:
        check(ask, library)
    statuses = Counter(200 if isinstance(ask.answer, tuple) else ask.answer.status_code for ask in asks)
    print(f"{len(asks)} requests: {dict(sorted(statuses.items()))}; {dict(Counter(ask.kind for ask in asks).most_common())}")
    assert len(asks) == count
    assert not [status for status in statuses if status >= 500]
    assert emulator.stats()["submits_received"] == emulator.stats()["jobs_executed"] == paid
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as kept:
        assert kept.execute("SELECT state, COUNT(*) FROM service_jobs GROUP BY state").fetchall() == [("done", paid)]
    assert service.worker().pid == worker
    assert seen[f'hqtl_images_total{{backend="{MACHINE}"}}'] == sum(len(ask.images) for ask in asks if ask.kind.startswith("ibm"))
    log = service.log.read_text()
    assert "Traceback" not in log
    assert not [token for token in tokens.values() if token in log]
