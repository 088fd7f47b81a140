"""The main job end to end on photographs made here: what ``make quickstart`` runs, by the commands a user would type."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.table import Table

from hqtl_common.errors import ConfigError, HqtlError
from training.backbones import load_backbone
from training.console import STDOUT, say, warn
from training.plots import plot_gallery

__all__ = ["REQUIRED_ACCURACY", "run_quickstart"]

REQUIRED_ACCURACY = 0.90  # with ImageNet weights, on the synthetic test split
_NUM_IMAGES, _NUM_SCORED, _EPOCHS = 600, 48, 30
_READY_WITHIN_S = 60.0


def run_quickstart(out: Path) -> bool:
    """Run every step below ``out`` (removed first) and print a table; False if the accuracy is below what it must be.

    Raises:
        HqtlError: A step failed; its own output says why.
    """
    if out.exists() and not (out / ".quickstart").exists() and any(out.iterdir()):
        raise ConfigError(f"{str(out)!r} was not made by quickstart and is not removed; give another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / ".quickstart").touch()
    started = time.perf_counter()
    weights = _best_weights()
    photographs, run, bundle, folder, scores = (out / name for name in ("photographs", "run", "bundle", "inspection", "scores"))
    _command("training.cli", "data", "synth", "--out", photographs, "--num-images", _NUM_IMAGES)
    result = _command("training.cli", "fit", photographs, "--out", run, "--weights", weights, "--epochs", _EPOCHS, "--json")
    _command("training.cli", "export", run, bundle, "--fuse")
    checks = _command("training.cli", "verify", bundle, "--json")["checks"]
    _command("training.cli", "data", "synth", "--out", folder, "--num-images", _NUM_SCORED, "--seed", 1)
    summary = _command("serving.cli", folder, "--bundle", bundle, "--out", scores, "--json")
    image = sorted((folder / "crack").iterdir())[0]
    with _service(bundle) as address:
        answer = _predict(address, image)
    rows = [json.loads(line) for line in (scores / "scores.jsonl").read_text().splitlines()]
    plot_gallery([(folder / row["path"], row["label"], row["probability"]) for row in rows[::4]], out / "gallery.png")
    _print_summary(weights, result, checks, summary, answer, image.name, time.perf_counter() - started)
    for picture in (run / "curves.png", run / "confusion.png", out / "gallery.png"):
        print(picture)
    return weights == "none" or result["test"]["accuracy"] >= REQUIRED_ACCURACY


def _best_weights() -> str:
    try:
        load_backbone("resnet18", "imagenet")
    except ConfigError as error:
        warn(str(error))
        warn("going on with random weights: everything runs, but the accuracy below says nothing about the method")
        return "none"
    return "imagenet"


def _command(module: str, *arguments: object) -> Any:
    """Run one of our commands; the JSON it prints with ``--json``, else None."""
    words = [str(argument) for argument in arguments]
    name = {"training.cli": "hqtl-train", "serving.cli": "hqtl-score"}[module]
    say(f"$ {name} {' '.join(words)}")
    done = subprocess.run([sys.executable, "-m", module, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise HqtlError(f"{name} {words[0]} ended with exit code {done.returncode}")
    return json.loads(done.stdout) if "--json" in words else None


@contextmanager
def _service(bundle: Path) -> Iterator[str]:
    """A running service on a free port of this machine; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    say(f"$ HQTL_INSECURE_NO_AUTH=1 HQTL_BUNDLE={bundle} bentoml serve serving.service:HybridService --port {port}")
    bentoml = Path(sys.executable).with_name("bentoml")
    environment = {**os.environ, "HQTL_BUNDLE": str(bundle.absolute()), "HQTL_INSECURE_NO_AUTH": "1", "BENTOML_DO_NOT_TRACK": "True"}
    environment.pop("HQTL_KEYS", None)
    command = [str(bentoml), "serve", "serving.service:HybridService", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{address}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise HqtlError("the service did not become ready; its own output says why")


def _predict(address: str, image: Path) -> dict[str, Any]:
    say(f"$ curl -F image=@{image} {address}/v1/predict")
    answer = httpx.post(f"{address}/v1/predict", files={"image": (image.name, image.read_bytes())}, trust_env=False, timeout=60)
    if answer.status_code != 200:
        raise HqtlError(f"the service answered {answer.status_code}: {answer.text}")
    prediction: dict[str, Any] = answer.json()["predictions"][0]
    return prediction


def _print_summary(
    weights: str,
    result: dict[str, Any],
    checks: list[dict[str, Any]],
    summary: dict[str, Any],
    answer: dict[str, Any],
    image: str,
    seconds: float,
) -> None:
    test, reference = result["test"], result["logistic_regression"]
    low, high = test["accuracy_interval"]
    table = Table("step", "result")
    table.add_row("train", f"resnet18 ({weights} weights) + 4 qubits, best epoch {result['best_epoch']} of {result['epochs']}")
    table.add_row("test accuracy", f"{100 * test['accuracy']:.1f} % ({100 * low:.1f} – {100 * high:.1f}), {test['num_images']} images")
    table.add_row("logistic regression", f"{100 * reference['accuracy']:.1f} % on the same features and images")
    table.add_row("export, verify", f"{sum(check['passed'] for check in checks)} of {len(checks)} checks passed")
    table.add_row("score a folder", f"{summary['images']} images, {summary['images_per_second']:.0f} per second")
    table.add_row("ask the service", f"{image}: {answer['label']} ({100 * answer['probability']:.1f} %)")
    table.add_row("all steps", f"{seconds:.0f} s")
    STDOUT.print(table)
