"""The service under mixed traffic for minutes: errors, throughput by minute, and whether its memory grows.

    python benchmarks/soak.py --bundle BUNDLE [--minutes 10] [--clients 16] [--json]

The service is ``bentoml serve`` with a key and a file of jobs; the clients are in another process, and so is a stand-in of IBM's
platform that runs the paid jobs. The clients ask for predictions on every kind of backend, in forms, octet streams and the Open
Inference Protocol, keep jobs and follow them to their answer, inspect large images, send damaged ones and wrong options, and read
the figures. An error is an answer with another status than the one that the request deserves, or none.

Before the clock starts every kind of request is made some times, so that everything is loaded that is loaded once. Memory is the
resident size of all processes of the service, sampled every two seconds; growth compares the median of the last samples with that
of the first minute's end. The exit status is 1 where there was an error, or where memory grew by more than 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scoring import make_patches
from serving.keys import Grants, edit_keys, new_key
from training.emulator import emulated_environment

ROOT = Path(__file__).resolve().parents[1]
MACHINE = "ibm:ibm_lima"
BACKENDS = ("statevector", "pennylane:default.qubit", "aer", "fake_kolkata", MACHINE)
MOST_GROWTH = 5.0  # percent
SAMPLE_S, MEDIAN_OF = 2.0, 10  # seconds between two looks at the memory; looks behind one figure
WARM_UP = 6  # requests of each kind before the clock starts
LARGE_AT_ONCE = 2  # as many as the service decodes
START_S = 120


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as work, platform(Path(work)) as address, served(arguments.bundle, Path(work), address) as service:
        result = asyncio.run(Soak(arguments, Path(work), *service).run())
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:26} {value}" for name, value in result.items()))
    sys.exit(int(result["errors"] > 0 or result["growth_percent"] > MOST_GROWTH))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


@contextmanager
def platform(work: Path) -> Iterator[str]:
    """The stand-in of IBM's platform: its address."""
    ready = work / "platform"
    command = [sys.executable, "-m", "training.emulator", "--backend", MACHINE.partition(":")[2], "--ready-file", str(ready)]
    with running(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)) as process:
        wait_until(ready.exists, process)
        yield ready.read_text("utf-8")


@contextmanager
def served(bundle: Path, work: Path, address: str) -> Iterator[tuple[psutil.Process, str, str]]:
    """A running service on a free port of this machine: its process, its address and a key."""
    token, key = new_key("soak", Grants(qpu_seconds_per_day=None, jobs_per_day=None))
    with edit_keys(work / "keys.json") as keys:
        keys.append(key)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "HQTL_BUNDLE": str(bundle.absolute()),
        "HQTL_BACKENDS": ",".join(BACKENDS),
        "HQTL_KEYS": str(work / "keys.json"),
        "HQTL_JOBS": str(work / "jobs.sqlite"),
        "HQTL_JOBS_POLL_S": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        **emulated_environment(address, plan="pay-as-you-go"),
    }
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", "serving.service:HybridService", "--port", str(port)]
    log = (work / "service.log").open("wb")
    with log, running(psutil.Popen(command, cwd=ROOT, env={**os.environ, **variables}, stdout=log)) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_ready(url), process)
        yield process, url, token


@contextmanager
def running(process: Any) -> Iterator[Any]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def wait_until(condition: Callable[[], bool], process: Any) -> None:
    limit = time.monotonic() + START_S
    while not condition():
        if process.poll() is not None or time.monotonic() > limit:
            sys.exit(f"{process.args[:3]} did not start")
        time.sleep(0.1)


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    return False


class Soak:
    """The clients, and who watches the memory."""

    def __init__(self, arguments: argparse.Namespace, work: Path, process: psutil.Process, url: str, token: str) -> None:
        self.clients, self.seconds = arguments.clients, 60 * arguments.minutes
        self.quiet = arguments.json
        self.process, self.url, self.token = process, url, token
        self.images = [path.read_bytes() for path in make_patches(work / "images", 48)]
        self.large = encoded(np.random.default_rng(1).integers(60, 200, (1200, 1600), dtype=np.uint8))
        self.inspecting = asyncio.Semaphore(LARGE_AT_ONCE)
        self.kinds: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.by_minute: Counter[int] = Counter()
        self.memory: list[tuple[float, int]] = []  # seconds since the start, bytes

    async def run(self) -> dict[str, Any]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.clients, keepalive_expiry=2)
        headers = {"authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=90, limits=limits) as self.http:
            await self.warm_up()
            self.started = time.monotonic()
            watching = asyncio.create_task(self.watch())
            await asyncio.gather(*(self.client(number) for number in range(self.clients)))
            watching.cancel()
        return self.result()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    async def warm_up(self) -> None:
        waiting = iter([do for do, _ in self.traffic() for _ in range(WARM_UP)])

        async def client() -> None:
            for do in waiting:
                await self.do(do, random.Random(do.__name__))

        await asyncio.gather(*(client() for _ in range(self.clients)))

    async def client(self, number: int) -> None:
        rng = random.Random(number)
        kinds, weights = zip(*self.traffic(), strict=True)
        while self.elapsed < self.seconds:
            (do,) = rng.choices(kinds, weights)
            await self.do(do, rng)
            self.kinds[do.__name__] += 1
            self.by_minute[int(self.elapsed // 60)] += 1

    async def do(self, do: Callable[[random.Random], Awaitable[None]], rng: random.Random) -> None:
        try:
            await do(rng)
        except (httpx.HTTPError, AssertionError) as error:
            self.wrong[f"{do.__name__}: {type(error).__name__} {str(error)[:200]}"] += 1

    def traffic(self) -> list[tuple[Callable[[random.Random], Awaitable[None]], int]]:
        return [
            (self.one_image, 40),
            (self.form, 20),
            (self.sampled, 8),
            (self.bad, 15),
            (self.protocol, 5),
            (self.free_job, 3),
            (self.paid_job, 1),
            (self.inspect, 1),
            (self.look, 5),
        ]

    async def ask(self, method: str, path: str, *expected: int, **options: Any) -> httpx.Response:
        answer = await self.http.request(method, path, **options)
        assert answer.status_code in (expected or (200,)), f"{answer.status_code} {answer.text[:150]}"
        return answer

    async def one_image(self, rng: random.Random) -> None:
        query = rng.choice(({}, {"shots": "200", "seed": str(rng.randrange(10**6))}, {"explain": "true"}))
        headers = {"content-type": "application/octet-stream"}
        await self.ask("POST", "/v1/predict", params=query, content=rng.choice(self.images), headers=headers)

    async def form(self, rng: random.Random) -> None:
        await self.predict(rng, rng.randint(1, 8), {})

    async def sampled(self, rng: random.Random) -> None:
        for backend in rng.sample(BACKENDS[1:4], 3):
            fields = {"backend": backend, "shots": str(rng.choice((100, 1000))), "seed": str(rng.randrange(10**6))}
            await self.predict(rng, rng.randint(1, 3), fields)

    async def bad(self, rng: random.Random) -> None:
        image = rng.choice(self.images)
        broken = image[: rng.randrange(1, len(image) // 2)]
        what = rng.choice(("cut", "text", "backend", "field", "key", "route"))
        if what == "cut":
            await self.predict(rng, 1, {}, 415, 422, images=[image, broken])
        elif what == "text":
            await self.predict(rng, 1, {}, 415, images=[rng.randbytes(2000)])
        elif what == "backend":
            await self.predict(rng, 1, {"backend": f"quantum{rng.random()}"}, 422)
        elif what == "field":
            await self.predict(rng, 1, {f"x{rng.random()}": "1"}, 422)
        elif what == "key":
            await self.ask("GET", "/v1/model", 401, headers={"authorization": f"Bearer hqtl_{rng.random()}"})
        else:
            await self.ask("GET", f"/{rng.random()}", 404)

    async def protocol(self, rng: random.Random) -> None:
        data = base64.b64encode(rng.choice(self.images)).decode()
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [data]}
        await self.ask("POST", "/v2/models/hqtl/infer", json={"inputs": [tensor]})

    async def free_job(self, rng: random.Random) -> None:
        await self.follow(rng, {"backend": rng.choice(("statevector", "aer")), "shots": "500"})

    async def paid_job(self, rng: random.Random) -> None:
        await self.follow(rng, {"backend": MACHINE, "shots": "200", **rng.choice(({}, {"fallback": "statevector"}))})

    async def inspect(self, rng: random.Random) -> None:
        form = rng.choice(("json", "geojson", "png"))
        headers = {"content-type": "application/octet-stream"}
        async with self.inspecting:
            await self.ask("POST", "/v1/inspect", params={"format": form, "tile": "400"}, content=self.large, headers=headers)

    async def look(self, rng: random.Random) -> None:
        await self.ask("GET", rng.choice(("/metrics", "/v1/backends", "/v1/model", "/v1/jobs", "/readyz", "/v1/estimate?images=3")))

    async def predict(self, rng: random.Random, count: int, fields: dict[str, str], *expected: int, images: Any = None) -> None:
        sent = images or [rng.choice(self.images) for _ in range(count)]
        files = [("image", (f"{index}.jpg", data)) for index, data in enumerate(sent)]
        await self.ask("POST", "/v1/predict", *expected, files=files, data=fields)

    async def follow(self, rng: random.Random, fields: dict[str, str]) -> None:
        files = [("image", ("a.jpg", rng.choice(self.images)))]
        kept = (await self.ask("POST", "/v1/jobs", 202, files=files, data=fields)).json()
        while True:
            job = (await self.ask("GET", f"/v1/jobs/{kept['id']}")).json()
            if job["state"] not in ("queued", "running"):
                break
            await asyncio.sleep(0.5)
        assert job["state"] == "done", f"a job {job['state']}: {job['error']}"

    async def watch(self) -> None:
        shown = 0
        while True:
            await asyncio.sleep(SAMPLE_S)
            self.memory.append((self.elapsed, resident(self.process)))
            if (minute := int(self.elapsed // 60)) > shown and not self.quiet:
                now = f"{self.memory[-1][1] / 2**20:.0f} MiB, {sum(self.wrong.values())} errors"
                print(f"minute {minute:3}: {self.by_minute[shown]} requests, {now}", flush=True)
                shown = minute

    def result(self) -> dict[str, Any]:
        warm_s = min(60.0, self.seconds / 2)
        warm = [size for at, size in self.memory if at <= warm_s][-MEDIAN_OF:]
        first, last = statistics.median(warm), statistics.median([size for _, size in self.memory[-MEDIAN_OF:]])
        whole = int(self.seconds // 60)
        return {
            "minutes": self.seconds / 60,
            "clients": self.clients,
            "requests": sum(self.kinds.values()),
            "errors": sum(self.wrong.values()),
            "which_errors": dict(self.wrong.most_common(5)),
            "requests_of_each_kind": dict(self.kinds.most_common()),
            "requests_by_minute": [self.by_minute[minute] for minute in range(whole)],
            "processes": {name: round(size / 2**20) for name, size in sizes(self.process)},
            "warm_mib": round(first / 2**20, 1),
            "end_mib": round(last / 2**20, 1),
            "growth_percent": round(100 * (last / first - 1), 2),
        }


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def sizes(process: psutil.Process) -> Iterator[tuple[str, int]]:
    """Each process of the service and its resident bytes."""
    for one in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            module = next((word for word in one.cmdline() if word.startswith(("serving.", "_bentoml"))), "bentoml")
            yield f"{module} {one.pid}", one.memory_info().rss


def resident(process: psutil.Process) -> int:
    return sum(size for _, size in sizes(process))


def encoded(values: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
