"""A folder of 100,000 odd files: scored once undisturbed and once killed again and again; memory, speed, and the same bytes.

    python benchmarks/hundred_thousand.py [--files 100000] [--kills 30] [--folder FOLDER] [--seed 0]

One file in a hundred is corrupt, one has the bytes of another, one in ten has an odd name (line breaks, quotes, bytes that are not
UTF-8). The backbone is a toy, so that the rest of the pipeline is what is measured. Kills are SIGKILL, to the run alone or at
once to every process it has started, spread over its start, its rows and the making of the report; each time the same command
goes on with ``--resume``. At the end every file of both runs is compared byte for byte and every file of the folder looked
for among the rows. It fails where anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.odd_folder import make_folder, rows_of_all
from tests.tiny import tiny_bundle

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_SECONDS = 1.0

Wait = Callable[["subprocess.Popen[str]"], bool]
NOT_COMPARED = ("seen.sqlite",)  # pages of a database lie where they lie


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="hqtl-many-") as temporary:
        work = arguments.folder or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bundle = work / "bundle"
        if not bundle.exists():
            tiny_bundle(bundle)
        started = time.monotonic()
        made = make_folder(work / "photos", arguments.files, arguments.seed)
        show("folder", f"{made.total():,} files made in {time.monotonic() - started:.0f} s: {dict(made)}")
        command = [sys.executable, "-m", "serving.cli", str(work / "photos"), "--bundle", str(bundle), "--parquet", "--json"]
        for name in ("whole", "killed"):
            shutil.rmtree(work / name, ignore_errors=True)
        whole = undisturbed([*command, "--out", str(work / "whole")])
        show("rows", rows_of_all(work / "whole", work / "photos", made))
        killed([*command, "--out", str(work / "killed"), "--resume"], work / "killed", whole, arguments)
        compare(work / "whole", work / "killed")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="Keep everything here, and use again the photographs that stand there.")
    return parser.parse_args()


def show(name: str, value: object) -> None:
    print(f"{name:24} {value}", flush=True)


@dataclass
class Memory:
    """What a run and its processes hold in MB; the bytes of rows tell when."""

    samples: list[tuple[int, float, float]] = field(default_factory=list)  # bytes of rows, memory of the run, with its processes

    def look(self, process: psutil.Process, rows: int) -> None:
        with suppress(psutil.Error):
            together = [process, *process.children(recursive=True)]
            own = process.memory_info().rss / 1e6
            self.samples.append((rows, own, sum(map(share_of_memory, together))))

    def at(self, rows: float) -> str:
        _, own, together = min(self.samples, key=lambda sample: abs(sample[0] - rows))
        return f"{own:.0f} MB, with its processes {together:.0f} MB"


def share_of_memory(process: psutil.Process) -> float:
    """Memory of a process in MB, what it shares divided among those that share it."""
    try:
        return float(process.memory_full_info().pss / 1e6)
    except psutil.Error:
        return 0.0


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def rows_in(out: Path) -> int:
    """Bytes of the CSV, by which progress is measured."""
    try:
        return (out / "scores.csv").stat().st_size
    except FileNotFoundError:
        return 0


def in_report_now(out: Path) -> bool:
    """Whether something is half made that is not the record of the run."""
    return any(path.name != ".state.json.partial" for path in out.glob(".*.partial"))


def files_done(out: Path) -> int:
    """Files whose row is recorded."""
    try:
        return int(json.loads((out / "state.json").read_bytes())["position"]["files"])
    except FileNotFoundError:
        return 0


@dataclass
class Whole:
    """The undisturbed run: bytes of its rows, seconds of its report."""

    size: int
    publishing: float


def undisturbed(command: list[str]) -> Whole:
    """Run once, looking at the memory now and then."""
    out, started, memory, in_report, report_began = Path(command[-1]), time.monotonic(), Memory(), Memory(), 0.0
    process = start(command)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        if report_began or in_report_now(out):
            report_began = report_began or time.monotonic()
            in_report.look(watched, 0)
        else:
            memory.look(watched, rows_in(out))
        time.sleep(SAMPLE_SECONDS)
    ended, (output, _) = time.monotonic(), process.communicate()
    if process.returncode != 3:
        raise SystemExit(f"the undisturbed run failed: {output}")
    whole = Whole(rows_in(out), ended - (report_began or ended))
    show("undisturbed", f"{ended - started:.0f} s; {json.loads(output)['images_per_second']:.1f} images/s until the last row")
    for share in (0.1, 0.5, 1.0):
        show(f"memory at {share:.0%}", memory.at(share * whole.size))
    if in_report.samples:
        show("report", f"{whole.publishing:.0f} s, {max(own for _, own, _ in in_report.samples):.0f} MB")
    return whole


def killed(command: list[str], out: Path, whole: Whole, arguments: argparse.Namespace) -> None:
    rng = random.Random(arguments.seed)
    counts: Counter[str] = Counter()
    resumes: list[float] = []
    started = time.monotonic()
    for moment, wait in moments(out, whole, arguments.kills, rng):
        process, began, before = start(command), time.monotonic(), files_done(out)
        if moment == "rows" and wait_until(process, lambda before=before: files_done(out) > before):  # type: ignore[misc]
            resumes.append(time.monotonic() - began)
        if wait(process):
            time.sleep(rng.random() * 0.3)
        everything = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        one = rng.random() < 0.5
        for victim in everything[:1] if one else everything:
            with suppress(psutil.Error):
                victim.kill()
        process.communicate()
        counts[f"{moment}, {'the run' if one else 'all its processes'}" if process.returncode == -signal.SIGKILL else "came too late"] += 1
        left = psutil.wait_procs(everything, timeout=60)[1]
        if left:
            raise SystemExit(f"processes are left: {left}")
    process = start(command)
    output, _ = process.communicate()
    if process.returncode != 3:
        raise SystemExit(f"the last run failed: {output}")
    show("kills", dict(counts))
    show("killed and resumed", f"{time.monotonic() - started:.0f} s")
    if resumes:
        show("start to the next commit", f"median {sorted(resumes)[len(resumes) // 2]:.1f} s, at most {max(resumes):.1f} s")


def moments(out: Path, whole: Whole, kills: int, rng: random.Random) -> Iterator[tuple[str, Wait]]:
    """When to kill: what is under way then, and a function that waits for it and says whether it came."""
    starts, reports = kills // 10, kills // 5
    for _ in range(starts):
        yield "start", after(rng.random() * 3)
    for size in sorted(rng.randrange(whole.size) for _ in range(kills - starts - reports)):
        yield "rows", when(lambda size=size: rows_in(out) >= size)  # type: ignore[misc]
    for part in range(reports):
        yield (
            "report",
            when(lambda: rows_in(out) >= whole.size and in_report_now(out), then=whole.publishing * part / reports / 4),
        )  # it may be faster this time


def after(seconds: float) -> Wait:
    """Waits so long; False where the process ended before."""

    def wait(process: subprocess.Popen[str]) -> bool:
        wait_until(process, lambda: False, seconds)
        return process.poll() is None

    return wait


def when(come: Callable[[], bool], then: float = 0.0) -> Wait:
    """Waits for something, and some seconds more; False where the process ended before."""
    return lambda process: wait_until(process, come) and after(then)(process)


def wait_until(process: subprocess.Popen[str], come: Callable[[], bool], seconds: float = float("inf")) -> bool:
    """Whether it came before the process ended and the time was over."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if come():
            return True
        time.sleep(0.01)
    return False


def compare(whole: Path, other: Path) -> None:
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.name not in NOT_COMPARED}
    others = {path.relative_to(other) for path in other.rglob("*") if path.is_file() and path.name not in NOT_COMPARED}
    different = [str(name) for name in sorted(names | others) if name not in names & others or not same(whole / name, other / name)]
    if different:
        raise SystemExit(f"these differ: {', '.join(different)}")
    show("the same bytes", ", ".join(f"{name} ({(whole / name).stat().st_size / 1e6:.1f} MB)" for name in sorted(names)))


def same(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(1 << 20):
            if second.read(1 << 20) != block:
                return False
        return not second.read(1)


if __name__ == "__main__":
    main()
