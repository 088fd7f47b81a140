"""Folder scoring beside the bare ONNX Runtime loop over tensors that are decoded already, in one run.

    python benchmarks/scoring.py [--images 1024] [--bundle BUNDLE] [--batch-size 32] [--workers N] [--repeats 3]

The bare loop is what no pipeline can beat: no files, no decoding, no head, no rows. Both sides run in turns, so that a
busy machine slows both; the median of the repeats' ratios counts. Images are decoded in processes of their own, as by the command.
``ratio`` holds everything from the first look at the folder to the last row; ``ratio_after_start`` leaves out what happens once,
however many images there are: loading the model, starting the processes, and the first batch. ``cpu_ratio`` compares
processor time, which a busy machine changes less. Without --bundle a toy bundle is used whose backbone costs almost nothing: the
ratio then tells what decoding costs, not how well it is hidden.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hqtl_common import ModelBundle
from hqtl_common.preprocess import preprocess_batch
from serving.scoring import Request, score_folder
from serving.scoring.progress import Silent
from tests.tiny import tiny_bundle

DECODED_BATCHES = 4  # the bare loop goes round these, so that its memory does not grow with --images


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "images")
        bundle = ModelBundle.load(arguments.bundle) if arguments.bundle else tiny_bundle(Path(work, "bundle"))
        paths = make_patches(folder, arguments.images)
        bare = BareLoop(bundle, paths, arguments.batch_size)
        bare.rate(arguments.batch_size)  # warm up
        turns = [turn(arguments, bundle, bare, folder, Path(work, f"out{repeat}")) for repeat in range(arguments.repeats)]
    report(arguments, bundle, turns)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def make_patches(folder: Path, count: int) -> list[Path]:
    """Grey 224 × 224 JPEG patches of filtered noise, about as large as a patch of concrete (12 kB)."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = [folder / f"patch_{index:06d}.jpg" for index in range(count)]
    for path in paths:
        noise = Image.fromarray(rng.integers(60, 200, (224, 224), dtype=np.uint8))
        noise.filter(ImageFilter.GaussianBlur(1)).convert("RGB").save(path, quality=90)
    return paths


class BareLoop:
    """ONNX Runtime with its own defaults over decoded tensors."""

    def __init__(self, bundle: ModelBundle, paths: list[Path], batch_size: int) -> None:
        kept = paths[: DECODED_BATCHES * batch_size]
        self.batches = [preprocess_batch(kept[k : k + batch_size], bundle.preprocess) for k in range(0, len(kept), batch_size)]
        self.ort_session = onnxruntime.InferenceSession(bundle.read("backbone.onnx"), providers=["CPUExecutionProvider"])
        self.input = self.ort_session.get_inputs()[0].name

    def rate(self, images: int) -> float:
        done, turn, started = 0, 0, time.perf_counter()
        while done < images:
            batch = self.batches[turn % len(self.batches)][: images - done]
            self.ort_session.run(None, {self.input: batch})
            done, turn = done + len(batch), turn + 1
        return done / (time.perf_counter() - started)


class Watch(Silent):
    """When the first rows came, and how many."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None

    def advance(self, done: int) -> None:
        self.first = self.first or (time.monotonic(), done)


def turn(arguments: argparse.Namespace, bundle: ModelBundle, bare: BareLoop, folder: Path, out: Path) -> dict[str, float]:
    """Both sides once: images per second, and processor seconds per image."""
    started = processor_seconds()
    bare_rate = bare.rate(arguments.images)
    between, watch, request = processor_seconds(), Watch(), Request(batch_size=arguments.batch_size)
    outcome = score_folder(folder, bundle.path, out, request, workers=arguments.workers, reporter=watch, isolated=True)
    ended = time.monotonic()
    assert watch.first is not None
    when, done = watch.first
    steady = (arguments.images - done) / (ended - when) if arguments.images > done else outcome.rate
    return {
        "bare_images_per_second": bare_rate,
        "scored_images_per_second": outcome.rate,
        "ratio": outcome.rate / bare_rate,
        "ratio_after_start": steady / bare_rate,
        "cpu_ratio": (between - started) / (processor_seconds() - between),
    }


def processor_seconds() -> float:
    """Of this process and of those that it has ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def report(arguments: argparse.Namespace, bundle: ModelBundle, turns: list[dict[str, float]]) -> None:
    result = {
        "backbone": bundle.manifest.backbone.name,
        "images": arguments.images,
        "batch_size": arguments.batch_size,
        "repeats": arguments.repeats,
        **{name: round(statistics.median(one[name] for one in turns), 4) for name in turns[0]},
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result) if arguments.json else "\n".join(f"{name:26} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
