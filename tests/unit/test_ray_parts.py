"""What the Ray engine is made of, without Ray: bytes on the wire, the desk, a worker, and an address nobody listens at."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hqtl_common import HybridClassifier, ModelBundle, get_backend
from hqtl_common.errors import BundleIntegrityError, ConfigError, InputError
from hqtl_common.tiles import tile_grid
from serving.errors import ConflictError, NotReadyError, OutputError
from serving.scoring.answers import Duplicate, Facts, Failure, StackPart
from serving.scoring.engines import ENGINES, engine_of
from serving.scoring.heads import HeadRunner, Part, parts_of
from serving.scoring.listing import Batch
from serving.scoring.options import Request, resolve
from serving.scoring.progress import Silent
from serving.scoring.ray_desk import Desk
from serving.scoring.ray_engine import _Cluster, _Task
from serving.scoring.ray_worker import Worker, job_of
from serving.scoring.run import Run, Where
from serving.scoring.unscored import Unscored, scored
from serving.scoring.wire import error_of, pack, pack_error, unpack

GRIDS = st.one_of(
    st.none(),
    st.builds(Failure, st.text(), st.text(st.characters())),
    st.builds(Duplicate, st.integers(0, 10**9)),
    st.builds(tile_grid, st.integers(1, 900), st.integers(1, 900), st.just(100), st.just(70), st.just("pad")),
)
FACTS = st.builds(
    Facts,
    st.none() | st.text("0123456789abcdef"),
    st.none() | st.integers(1),
    taken=st.none() | st.text(),
    longitude=st.none() | st.floats(-180, 180),
)
STACK = st.none() | st.builds(
    StackPart, st.sampled_from(["frame", "page"]), st.none() | st.integers(0), st.floats(0, 9), st.integers(0), st.integers(1)
)


@settings(max_examples=60)
@given(st.data(), st.lists(GRIDS, max_size=5), st.booleans(), st.lists(st.text(), max_size=2))
def test_whatever_is_packed_comes_back(data: st.DataObject, grids: list[Any], known: bool, notes: list[str]) -> None:
    count = sum(1 if grid is None else len(grid) if hasattr(grid, "xs") else 0 for grid in grids)
    rng = np.random.default_rng(count)
    parts = tuple(Part(rng.normal(size=4).astype(np.float32), np.float32(rng.random()) if known else None) for _ in range(count))
    paths = tuple(data.draw(st.binary(max_size=9)) for _ in grids)
    facts, stack = (tuple(data.draw(kind) for _ in grids) for kind in (FACTS, STACK))
    chunk = Unscored(7, 99, paths, facts, tuple(grids), parts, stack, ends=known)
    found = unpack(pack(chunk, None, notes))
    assert found.chunk is not None
    assert (found.result, found.notes, found.error) == (None, tuple(notes), None)
    assert dataclasses.replace(found.chunk, parts=()) == dataclasses.replace(chunk, parts=())
    for one, other in zip(found.chunk.parts, parts, strict=True):
        np.testing.assert_array_equal(one.angles, other.angles)
        assert (one.familiarity, one.angles.dtype) == (other.familiarity, np.float32)


@pytest.mark.parametrize(("shots", "max_shots"), [(None, None), (50, None), (50, 200)])
def test_answers_of_a_head_far_away_are_those_of_one_here(bundle: ModelBundle, shots: int | None, max_shots: int | None) -> None:
    with HybridClassifier(bundle, get_backend("statevector", shots=shots, seed=3)) as classifier:
        pixels = np.random.default_rng(0).normal(size=(5, 3, 224, 224)).astype(np.float32)
        parts = tuple(parts_of(classifier, pixels))
        chunk = Unscored(4, 9, tuple(b"%d" % place for place in range(5)), (Facts(),) * 5, (None,) * 5, parts)
        runner = HeadRunner(classifier, max_shots)
        here = scored(runner, chunk, None)
        packed = unpack(pack(chunk, runner.evaluate(parts, chunk.chunk)))
    assert packed.result is not None
    assert [answer.to_dict() for answer in packed.result.predictions()] == [answer.to_dict() for answer in here.answers]  # type: ignore[union-attr]
    assert [answer.margin for answer in packed.result.predictions()] == [answer.margin for answer in here.answers]  # type: ignore[union-attr]
    assert packed.result.execution is not None
    assert here.execution is not None
    assert {**packed.result.execution.to_dict(), "wall_seconds": 0} == {**here.execution.to_dict(), "wall_seconds": 0}


def test_errors_keep_their_kind() -> None:
    for error in (InputError("a"), OutputError("b\udcff"), BundleIntegrityError("c")):
        again = error_of(*unpack(pack_error(error)).error or ("", ""))
        assert (type(again), str(again)) == (type(error), str(error))
    assert isinstance(error_of("RejectedImageError", "it takes more than a message"), NotReadyError)
    assert isinstance(error_of("Exception", "unheard of"), NotReadyError)


def test_desk_keeps_questions_and_answers_until_they_are_done() -> None:
    async def talk() -> None:
        desk = Desk()
        first = asyncio.ensure_future(desk.ask(3, {"hashes": ["a"]}))
        assert await desk.asked(3) == {"hashes": ["a"]}
        first.cancel()  # the worker dies while it waits
        again = asyncio.ensure_future(desk.ask(3, {"hashes": ["changed"]}))
        await asyncio.sleep(0)
        assert await desk.asked(3) == {"hashes": ["a"]}
        await desk.answer(3, {"firsts": [None]})
        assert await again == {"firsts": [None]}
        assert await desk.ask(3, {}) == {"firsts": [None]}
        await desk.forget(3)
        anew = asyncio.ensure_future(desk.asked(3))
        await asyncio.sleep(0)
        assert not anew.done()
        anew.cancel()

    asyncio.run(talk())


def test_desk_passes_on_how_far_workers_are() -> None:
    async def talk() -> None:
        desk = Desk()
        first = asyncio.ensure_future(desk.told())
        await desk.tell(32, "tile")
        await desk.tell(7, "frame")
        assert [await first, await desk.told()] == [(32, "tile"), (7, "frame")]

    asyncio.run(talk())


def test_desk_gives_up_files_that_kill_every_worker() -> None:
    async def talk() -> dict[str, Any]:
        desk = Desk()
        await desk.answer(0, {})
        answers = [await desk.ask(0, {}) for _ in range(11)]
        assert answers[:10] == [{}] * 10
        return answers[10]

    name, message = asyncio.run(talk())["error"]
    assert isinstance(error_of(name, message), NotReadyError)
    assert "died of the same files" in message


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 200 + index, (50, 60, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    (folder / "copy\n.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:300])
    return folder


def run_of(photos: Path, bundle: ModelBundle) -> Run:
    return Run(photos, photos.parent / "out", bundle, resolve(Request(shots=20), bundle, None), Where("ray"), Silent(), lambda: False, None)


def task() -> _Task:
    return _Task(10, (Batch(5, (b"0.png", b"1.png"), False, 40), Batch(5, (b"copy\n.png", b"cut.png", b"gone.png"), True, 40)))


class Known:
    """Whether bytes came before, as the run knows it."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def first(self, sha256: str | None, number: int) -> int | None:
        found = number if sha256 is None else self.numbers.setdefault(sha256, number)
        return None if found == number else found


class FakeRay:
    """Ray's face on objects of this process."""

    def __init__(self, question: dict[str, Any]) -> None:
        self.question, self.said = question, {}
        self.asked = self.answer = self.told = self
        self.calls = 0

    def remote(self, chunk: int, answer: dict[str, Any] | None = None) -> Any:
        if answer is not None:
            self.said = answer
        return self.question

    def get(self, value: Any) -> Any:
        return value


def said(photos: Path, bundle: ModelBundle, question: dict[str, Any]) -> dict[str, Any]:
    fake = FakeRay(question)
    _Cluster(fake, fake, run_of(photos, bundle), "").answer([task()], Known())
    return fake.said


@pytest.mark.parametrize("head", [True, False])
def test_a_worker_scores_a_chunk(photos: Path, bundle: ModelBundle, head: bool) -> None:
    run = run_of(photos, bundle)
    worker = Worker(json.loads(job_of(run, head=head)))
    try:
        (packed,) = worker.score(json.loads(task().to_json()), lambda _, question: said(photos, bundle, question))
    finally:
        worker.close()
    found = unpack(packed)
    assert found.chunk is not None
    assert (found.chunk.chunk, found.chunk.listing_end, found.chunk.ends) == (5, 40, True)
    assert found.chunk.paths == (b"0.png", b"1.png", b"copy\n.png", b"cut.png", b"gone.png")
    assert found.chunk.grids[:3] == (None, None, Duplicate(11))
    assert [grid.code for grid in found.chunk.grids[3:] if isinstance(grid, Failure)] == ["ImageDecodeError", "InputError"]
    assert len(found.chunk.parts) == 2
    assert (found.result is not None) is head
    with HybridClassifier(bundle, get_backend("statevector", shots=20, seed=0)) as classifier:
        batch = classifier.preprocess([photos / "0.png", photos / "1.png"])
        expected = HeadRunner(classifier).evaluate(parts_of(classifier, batch.pixels), 5)  # type: ignore[arg-type]
    angles = np.stack([part.angles for part in found.chunk.parts])
    np.testing.assert_allclose(angles, expected.angles, atol=1e-6)
    if found.result is not None:
        np.testing.assert_allclose(found.result.expvals, expected.expvals, atol=1e-12)  # the same draws


def test_a_worker_tells_how_far_it_is_within_a_file(photos: Path, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.scoring.ray_worker._TELL_SECONDS", 0.0)
    np.save(photos / "cube.npy", np.zeros((3, 20, 20), np.uint8))
    batch = dataclasses.asdict(Batch(0, (b"cube.npy",), True, 9)) | {"paths": [b"cube.npy".hex()]}
    worker, told = Worker(json.loads(job_of(run_of(photos, bundle), head=False))), []
    try:
        worker.score(
            {"number": 0, "batches": [batch]},
            lambda _, question: {"hashes": question["hashes"], "firsts": [None]},
            lambda *progress: told.append(progress),
        )
    finally:
        worker.close()
    assert told == [(1, "slice"), (2, "slice"), (3, "slice")]


def test_what_workers_tell_reaches_the_run_until_the_desk_goes(photos: Path, bundle: ModelBundle) -> None:
    told, shown = [(32, "tile"), (7, "frame")], []

    class Told(FakeRay):
        def remote(self, *_: Any) -> Any:
            return told.pop(0)

    reporter = Silent()
    reporter.within = lambda *progress: shown.append(progress)  # type: ignore[method-assign]
    fake = Told({})
    with pytest.raises(IndexError):  # as Ray raises when the desk is gone
        _Cluster(fake, fake, dataclasses.replace(run_of(photos, bundle), reporter=reporter), "").watch()
    assert shown == [(32, "tile"), (7, "frame")]


def test_a_file_that_changes_meanwhile_is_no_row(photos: Path, bundle: ModelBundle) -> None:
    worker = Worker(json.loads(job_of(run_of(photos, bundle), head=False)))

    def ask(chunk: int, question: dict[str, Any]) -> dict[str, Any]:
        (photos / "1.png").write_bytes((photos / "0.png").read_bytes())
        return said(photos, bundle, question)

    try:
        with pytest.raises(ConflictError, match=r"'1\.png' was changed while it was scored"):
            worker.score(json.loads(task().to_json()), ask)
    finally:
        worker.close()


def test_a_machine_that_does_not_see_a_file_is_named(photos: Path, bundle: ModelBundle) -> None:
    gone = {"host": "node7", "hashes": [None] * 5, "missing": [4]}
    assert "error" not in said(photos, bundle, gone)  # it is not there for the run either
    name, message = said(photos, bundle, gone | {"missing": [1, 4]})["error"]
    assert name == "InputError"
    assert "node7 does not see '1.png'" in message


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"folder": "/nowhere/photos"}, InputError, "does not see '/nowhere/photos'"),
        ({"bundle": "/nowhere/bundle"}, InputError, "does not see the bundle '/nowhere/bundle'"),
        ({"bundle_sha256": "00"}, InputError, "has another bundle"),
        ({"versions": {"numpy": "0"}}, ConfigError, "install the same versions on every node"),
    ],
)
def test_a_worker_that_cannot_give_the_same_refuses(
    photos: Path, bundle: ModelBundle, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        Worker(json.loads(job_of(run_of(photos, bundle), head=False)) | change)
    assert socket.gethostname() in str(raised.value)


def test_what_workers_are_told_holds_no_account(photos: Path, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "very secret")
    told = job_of(run_of(photos, bundle), head=False) + task().to_json().decode()
    assert "very secret" not in told
    assert set(json.loads(job_of(run_of(photos, bundle), head=False))) == {
        *("folder", "bundle", "bundle_sha256", "options", "versions", "isolated", "head")
    }


def test_engines_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(ENGINES) == {"local", "ray"}
    with pytest.raises(ConfigError, match="one of local, ray; got 'slurm'"):
        engine_of("slurm")
    engine_of("local").check(Where())
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install 'hqtl\[ray\]'"):
        engine_of("ray").check(Where("ray"))


@pytest.mark.parametrize("address", ["ray://head:10001", "head", ":6379", "head:port", "head:99999"])
def test_addresses_that_are_none(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("serving.scoring.ray_cluster._import_ray", lambda: None)  # it takes seconds
    with pytest.raises(ConfigError, match=r"HOST:PORT|no Ray cluster answers"):
        engine_of("ray").check(Where("ray", ray_address=address))


def test_a_cluster_that_does_not_answer_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.scoring.ray_cluster._import_ray", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        engine_of("ray").check(Where("ray"))
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at '{address}'"):
        engine_of("ray").check(Where("ray"))
