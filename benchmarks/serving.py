"""The service beside the bare ONNX Runtime loop over tensors that are decoded already, in one run.

    python benchmarks/serving.py --bundle BUNDLE [--images 384] [--clients 16] [--repeats 3] [--seconds 20] [--starts 2] [--json]

The service is ``bentoml serve`` with a key, the client another process that sends JPEG patches of 224 × 224; all of it shares the
cores of this machine. The bare loop has no HTTP, no decoding and no head, and takes the best of several batch sizes.
Bare loop and service run in turns, so that a busy machine slows both; the median of the repeats counts.

throughput       images per second with --clients requests of one image at once, and their ratio to the bare loop
single request   median of one request after the other, and of the bare loop with one image
at 70 % load     requests arrive at 70 % of the throughput, evenly, and then at random times; median and 99th percentile from the
                 intended arrival. Beside random arrivals stands an ideal queue: one that takes an image at a time, in the mean time
                 of the throughput, and costs nothing else
exact head       its share of the time of the backbone, for the best batch size
cold start       seconds from the command to the first 200 of /readyz, without and with the page; the median of --starts
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scoring import make_patches
from hqtl_common import HybridClassifier, ModelBundle
from hqtl_common.preprocess import preprocess_batch
from hqtl_common.records import InferenceBatch
from serving.keys import Grants, edit_keys, new_key

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZES = (1, 4, 8, 16, 32)


def main() -> None:
    arguments = parse()
    if arguments.client:
        print(json.dumps(asyncio.run(Client(json.loads(arguments.client)).run())))
        return
    with tempfile.TemporaryDirectory() as work:
        report(arguments, measure(arguments, Path(work)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of each 70 %% load")
    parser.add_argument("--starts", type=int, default=2, help="cold starts without and with the page; 0 leaves them out")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bundle is None and arguments.client is None:
        parser.error("--bundle is needed; hqtl-train quickstart makes one")
    return arguments


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, float]:
    bundle = ModelBundle.load(arguments.bundle.absolute())
    paths = make_patches(work / "images", 64)
    bare = Bare(bundle, paths)
    found: dict[str, list[float]] = {name: [] for name in ("bare", "bare_single", "served", "single")}
    with served(arguments.bundle.absolute(), work) as (url, token):
        ask = {"url": url, "token": token, "files": [str(path) for path in paths]}
        client({**ask, "mode": "closed", "clients": arguments.clients, "images": 64})  # warm up
        best = max(BATCH_SIZES, key=lambda size: bare.rate(size, 96))
        for _ in range(arguments.repeats):
            found["bare"].append(bare.rate(best, arguments.images))
            found["served"].append(client({**ask, "mode": "closed", "clients": arguments.clients, "images": arguments.images})["rate"])
            found["bare_single"].append(statistics.median(bare.singles(48)))
            found["single"].append(statistics.median(client({**ask, "mode": "closed", "clients": 1, "images": 48})["seconds"]))
        load = {"rate": 0.7 * statistics.median(found["served"]), "for_s": arguments.seconds}
        even, random = (client({**ask, **load, "mode": mode})["seconds"] for mode in ("even", "random"))
    middle = {name: statistics.median(values) for name, values in found.items()}
    return {
        "best_batch_size": best,
        "bare_images_per_second": middle["bare"],
        "served_images_per_second": middle["served"],
        "ratio": statistics.median(s / b for s, b in zip(found["served"], found["bare"], strict=True)),
        "bare_single_ms": 1000 * middle["bare_single"],
        "single_p50_ms": 1000 * middle["single"],
        "single_cost_ms": 1000 * (middle["single"] - middle["bare_single"]),
        **tail("even", even),
        **tail("random", random),
        **tail("ideal_random", [services / middle["served"] for services in ideal_queue(0.7)]),
        "head_share": bare.head_share(best),
        **cold_starts(arguments, work),
    }


def tail(name: str, seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99])
    return {f"load_{name}_p50_ms": 1000 * p50, f"load_{name}_p99_ms": 1000 * p99, f"load_{name}_p99_over_p50": p99 / p50}


def ideal_queue(load: float, requests: int = 200_000) -> list[float]:
    """Times in a queue with random arrivals and one server that always takes the same time (M/D/1), in units of it."""
    gaps = np.random.default_rng(0).exponential(1 / load, requests)
    free, now, times = 0.0, 0.0, []
    for gap in gaps:
        now += gap
        free = max(free, now) + 1
        times.append(free - now)
    return times


def cold_starts(arguments: argparse.Namespace, work: Path) -> dict[str, float]:
    """Where Gradio is not installed there is no page."""
    pages = {"cold_start_s": "0"} | ({"cold_start_with_page_s": "1"} if find_spec("gradio") else {})
    found: dict[str, list[float]] = {name: [] for name in pages}
    for _ in range(arguments.starts):
        for name, page in pages.items():
            started = time.perf_counter()
            with served(arguments.bundle.absolute(), work, HQTL_UI=page):
                found[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in found.items() if seconds}


class Bare:
    """ONNX Runtime with its own defaults over decoded tensors."""

    def __init__(self, bundle: ModelBundle, paths: list[Path]) -> None:
        self.bundle = bundle
        self.pixels = preprocess_batch(paths, bundle.preprocess)
        self.ort_session: Any = None

    def run(self, pixels: np.ndarray) -> None:
        self.ort_session.run(None, {self.ort_session.get_inputs()[0].name: pixels})

    @contextmanager
    def session(self) -> Iterator[None]:
        """Only while it is measured: the threads of an idle session must not disturb the service."""
        self.ort_session = onnxruntime.InferenceSession(self.bundle.read("backbone.onnx"), providers=["CPUExecutionProvider"])
        self.run(self.pixels[:1])
        yield
        self.ort_session = None

    def rate(self, size: int, images: int) -> float:
        with self.session():
            started, done = time.perf_counter(), 0
            while done < images:
                at = done % len(self.pixels)
                self.run(self.pixels[at : at + size])
                done += size
            return done / (time.perf_counter() - started)

    def singles(self, images: int) -> list[float]:
        with self.session():
            return [timed(lambda k=k: self.run(self.pixels[k % len(self.pixels)][None])) for k in range(images)]

    def head_share(self, size: int) -> float:
        with HybridClassifier(self.bundle) as classifier:
            batch = InferenceBatch(pixels=self.pixels[:size])
            backbone = statistics.median(timed(lambda: classifier.featurize(batch)) for _ in range(10))
            angles = classifier.featurize(batch).angles
            head = [timed(lambda: classifier.backend.run(self.bundle.head, self.bundle.weights, angles)) for _ in range(50)]
            return statistics.median(head) / backbone


def timed(function: Any) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


@contextmanager
def served(bundle: Path, work: Path, **settings: str) -> Iterator[tuple[str, str]]:
    """A running service on a free port of this machine: its address and a key."""
    token, key = new_key("benchmark", Grants())
    with edit_keys(work / "keys.json") as keys:
        keys.append(key)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"HQTL_BUNDLE": str(bundle), "HQTL_KEYS": str(work / "keys.json"), "BENTOML_DO_NOT_TRACK": "True", **settings}
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", "serving.service:HybridService", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
    try:
        wait_ready(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}", token
    finally:
        process.terminate()
        process.wait(60)


def wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            if process.poll() is not None:
                break
        time.sleep(0.05)
    sys.exit("the service did not become ready")


def client(ask: dict[str, Any]) -> dict[str, Any]:
    """Run the client in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--client", json.dumps(ask)], stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


class Client:
    """Sends images and keeps the seconds of each request."""

    def __init__(self, ask: dict[str, Any]) -> None:
        self.ask = ask
        self.bodies = [Path(name).read_bytes() for name in ask["files"]]
        self.headers = {"authorization": f"Bearer {ask['token']}", "content-type": "application/octet-stream"}
        self.seconds: list[float] = []

    async def run(self) -> dict[str, Any]:
        connector = aiohttp.TCPConnector(limit=200)
        async with aiohttp.ClientSession(self.ask["url"], headers=self.headers, connector=connector, raise_for_status=True) as http:
            await self.send(http, 0, time.perf_counter())
            self.seconds.clear()
            started = time.perf_counter()
            await (self.closed(http) if self.ask["mode"] == "closed" else self.open(http))
            return {"rate": len(self.seconds) / (time.perf_counter() - started), "seconds": self.seconds}

    async def closed(self, http: aiohttp.ClientSession) -> None:
        numbers = iter(range(self.ask["images"]))

        async def one_after_the_other() -> None:
            for number in numbers:
                await self.send(http, number, time.perf_counter())

        await asyncio.gather(*(one_after_the_other() for _ in range(self.ask["clients"])))

    async def open(self, http: aiohttp.ClientSession) -> None:
        count = int(self.ask["rate"] * self.ask["for_s"])
        scatter = np.random.default_rng(0).exponential(size=count) if self.ask["mode"] == "random" else np.ones(count)
        gaps = scatter / self.ask["rate"]
        arrivals, started = np.cumsum(gaps), time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number, arrival in enumerate(arrivals):
                await asyncio.sleep(max(0.0, started + arrival - time.perf_counter()))
                tasks.create_task(self.send(http, number, started + arrival))

    async def send(self, http: aiohttp.ClientSession, number: int, arrival: float) -> None:
        async with http.post("/v1/predict", data=self.bodies[number % len(self.bodies)]) as answer:
            await answer.read()
        self.seconds.append(time.perf_counter() - arrival)


def report(arguments: argparse.Namespace, result: dict[str, float]) -> None:
    rounded = {name: round(value, 4) for name, value in result.items()}
    print(json.dumps(rounded) if arguments.json else "\n".join(f"{name:26} {value}" for name, value in rounded.items()))


if __name__ == "__main__":
    main()
