"""A folder in, one row per image out: odd files, other backends, stops and resumes."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hqtl_common import HybridClassifier, ModelBundle, get_backend
from hqtl_common.errors import BudgetExceededError, ConfigError, InputError
from hqtl_common.providers import PROVIDERS
from serving.scoring import Outcome, Request, score_folder
from serving.scoring.progress import Silent
from tests.tiny import tiny_bundle

FILES = ("scores.jsonl", "scores.csv", "summary.json", "state.json")


def make_image(path: Path, seed: int = 0, size: int = 64, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.integers(0, 256, 2))
    if mode == "I;16":
        Image.fromarray(rng.integers(low * 256, high * 256 + 1, (size, size), dtype=np.uint16)).save(path)
    else:
        Image.fromarray(rng.integers(low, high + 1, (size, size, 3), dtype=np.uint8)).convert(mode).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """23 images in nested folders."""
    folder = tmp_path / "photos"
    for index in range(23):
        make_image(folder / f"wall{index % 3}" / f"{index:03d}.png", index)
    return folder


@pytest.fixture
def odd_photos(tmp_path: Path) -> Path:
    """Whatever a folder of inspectors may hold."""
    folder = tmp_path / "odd"
    make_image(folder / "deep" / "16bit.tif", 1, mode="I;16")
    make_image(folder / "deep" / "er" / "grey.JPG", 2, mode="L")
    make_image(folder / 'line\nbreak, "quoted".png', 3)
    make_image(folder / "n\udce9\udcff.bmp", 4)
    make_image(folder / "größe 漢字.webp", 5)
    make_image(folder / ".hidden.png", 6)
    (folder / "empty.png").touch()
    (folder / "text.jpeg").write_text("not an image")
    (folder / "cut.png").write_bytes((folder / 'line\nbreak, "quoted".png').read_bytes()[:900])
    (folder / "notes.txt").write_text("x")
    (folder / "loop").symlink_to("..")
    (folder / "link.png").symlink_to("größe 漢字.webp")
    os.mkfifo(folder / "pipe.png")
    return folder


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text("ascii").splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


class Told(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def score_chunks(
    chunks: int, photos: Path, bundle: ModelBundle, out: Path, request: Request | None = None, resume: bool = False
) -> Outcome:
    """A run that is asked to stop when so many chunks are done."""
    done: list[int] = []

    class Count(Silent):
        def begin(self, total: int, before: int) -> None:
            done.append(0)

        def advance(self, files: int) -> None:
            done[0] += 1

    return score_folder(
        photos, bundle.path, out, request, resume=resume, reporter=Count(), should_stop=lambda: bool(done) and done[0] >= chunks
    )


def test_odd_files_are_one_row_each(odd_photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = score_folder(odd_photos, bundle.path, out, Request(batch_size=3))
    names = ["cut.png", "deep/16bit.tif", "deep/er/grey.JPG", "empty.png", "größe 漢字.webp", 'line\nbreak, "quoted".png']
    names += ["n\udce9\udcff.bmp", "text.jpeg"]
    rows = rows_of(out)
    assert [row["path"] for row in rows] == sorted(names, key=os.fsencode)
    failed = {row["path"]: row["error"]["code"] for row in rows if row["error"]}
    assert failed == {"cut.png": "ImageDecodeError", "empty.png": "UnknownImageFormatError", "text.jpeg": "UnknownImageFormatError"}
    assert (outcome.complete, outcome.done, outcome.failures) == (True, 8, 3)
    assert outcome.summary["skipped"] == {"hidden": 1, "links": 2, "other_files": 1, "special": 1}
    with (out / "scores.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        flat = list(csv.DictReader(file))
    assert [row["path"] for row in flat] == [row["path"] for row in rows]
    assert [row["error_code"] for row in flat] == [row["error"]["code"] if row["error"] else "" for row in rows]
    assert sum(outcome.summary["labels"].values()) == 5


@pytest.mark.parametrize("request_", [Request(batch_size=5), Request(batch_size=4, chunk_size=10), Request(threshold=0.9)])
def test_answers_are_those_of_predict(photos: Path, bundle: ModelBundle, tmp_path: Path, request_: Request) -> None:
    outcome = score_folder(photos, bundle.path, tmp_path / "out", request_)
    with HybridClassifier(bundle, threshold=request_.threshold) as classifier:
        for row in rows_of(tmp_path / "out"):
            expected = classifier.predict(photos / row["path"])
            assert row["label"] == expected.label
            assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
            assert row["probability"] == row["probabilities"][row["label"]]
            for field in ("angles", "expvals", "logits"):
                np.testing.assert_allclose(row[field], getattr(expected, field), atol=1e-5)
            assert (row["interval"], row["expval_stds"], row["backend"], row["shots"], row["seed"]) == (
                None,
                None,
                "statevector",
                None,
                None,
            )
    (execution,) = outcome.summary["executions"]
    chunk = request_.chunk_size or request_.batch_size or 32
    assert (execution["num_rows"], execution["num_jobs"]) == (23, -(-23 // chunk))


@pytest.mark.parametrize("backend", ["statevector", "aer", "pennylane:default.qubit"])
def test_shots_give_intervals_and_one_job_per_chunk(photos: Path, bundle: ModelBundle, tmp_path: Path, backend: str) -> None:
    outcome = score_folder(photos, bundle.path, tmp_path / "out", Request(backend=backend, shots=200, seed=3, batch_size=8, chunk_size=16))
    rows = rows_of(tmp_path / "out")
    for row in rows:
        assert row["interval"][0] < row["probability"] < row["interval"][1]
        assert (row["backend"], row["shots"], row["seed"]) == (backend, 200, 3)
        assert all(std > 0 for std in row["expval_stds"])
    assert [item["num_jobs"] for item in outcome.summary["executions"]] == [2]
    with HybridClassifier(bundle, get_backend(backend, shots=200, seed=3)) as classifier:
        batch = classifier.preprocess([photos / row["path"] for row in rows[16:]])
        assert classifier.run(batch, stream=1).predictions()[0].probability == pytest.approx(rows[16]["probability"], abs=1e-6)


def test_backend_without_seed_says_so(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    pytest.importorskip("qiskit_aer")
    told = Told()
    with pytest.raises(ConfigError, match="takes no seed"):
        score_folder(photos, bundle.path, tmp_path / "seeded", Request(backend="pennylane:qiskit.aer", shots=10, seed=1))
    outcome = score_folder(photos, bundle.path, tmp_path / "out", Request(backend="pennylane:qiskit.aer", shots=10), reporter=told)
    assert outcome.summary["options"]["seed"] is None
    assert "draws without a seed" in told.notes[0]


def test_seed_decides_the_draw(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    for name, seed in {"a": None, "b": 0, "c": 1}.items():
        score_folder(photos, bundle.path, tmp_path / name, Request(shots=50, seed=seed))
    first, same, other = ((tmp_path / name / "scores.csv").read_bytes() for name in "abc")
    assert first == same != other


@pytest.mark.parametrize("request_", [Request(batch_size=2, chunk_size=4), Request(batch_size=4, shots=64, seed=5)])
def test_stopped_anywhere_and_resumed_is_the_same(photos: Path, bundle: ModelBundle, tmp_path: Path, request_: Request) -> None:
    (photos / "wall1" / "bad.png").write_bytes(b"bad")
    score_folder(photos, bundle.path, tmp_path / "whole", request_)
    for chunks in range(7):
        out = tmp_path / f"stopped{chunks}"
        stopped = score_chunks(chunks, photos, bundle, out, request_)
        assert (stopped.complete, stopped.done) == (chunks == 6, min(24, 4 * chunks))
        assert (out / "summary.json").exists() == stopped.complete
        resumed = score_folder(photos, bundle.path, out, resume=True, workers=1)
        assert (resumed.complete, resumed.resumed_at, resumed.done) == (True, stopped.done, 24)
        assert contents(out) == contents(tmp_path / "whole")


def test_one_chunk_per_resume_is_the_same(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    score_folder(photos, bundle.path, tmp_path / "whole", Request(batch_size=3, shots=30))
    outcome = score_chunks(1, photos, bundle, tmp_path / "out", Request(batch_size=3, shots=30))
    while not outcome.complete:
        outcome = score_chunks(1, photos, bundle, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_error_in_the_middle_keeps_what_is_done(photos: Path, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = HybridClassifier.run

    def refuse(self: HybridClassifier, batch: Any, *, stream: int = 0, **options: Any) -> Any:
        if stream == 2:
            raise BudgetExceededError("2 of 2 jobs are used")
        return run(self, batch, stream=stream, **options)

    with monkeypatch.context() as patch, pytest.raises(BudgetExceededError):  # noqa: PT012
        patch.setattr(HybridClassifier, "run", refuse)
        score_folder(photos, bundle.path, tmp_path / "out", Request(batch_size=4))
    assert len(rows_of(tmp_path / "out")) == 8
    score_folder(photos, bundle.path, tmp_path / "whole", Request(batch_size=4))
    assert score_folder(photos, bundle.path, tmp_path / "out", resume=True).resumed_at == 8
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_complete_run_does_no_work_again(photos: Path, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = score_folder(photos, bundle.path, tmp_path / "out")
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in FILES}
    monkeypatch.setattr(HybridClassifier, "__init__", lambda *arguments, **options: pytest.fail("the model was opened"))
    second = score_folder(photos, bundle.path, tmp_path / "out", resume=True)
    assert second.summary == first.summary
    assert (second.complete, second.resumed_at, second.rate) == (True, 23, 0.0)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in FILES} == times


def test_lost_summary_is_written_again(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    score_folder(photos, bundle.path, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "summary.json").unlink()
    score_folder(photos, bundle.path, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("done", [2, 100])
def test_new_files_come_after_the_recorded_ones(photos: Path, bundle: ModelBundle, tmp_path: Path, done: int) -> None:
    told = Told()
    request = Request(batch_size=4)
    score_chunks(done, photos, bundle, tmp_path / "out", request)
    make_image(photos / "aaa.png", 50)
    make_image(photos / "wall1" / "zzz.png", 51)
    outcome = score_folder(photos, bundle.path, tmp_path / "out", resume=True, reporter=told)
    assert [row["path"] for row in rows_of(tmp_path / "out")][23:] == ["aaa.png", "wall1/zzz.png"]
    assert (outcome.complete, outcome.done, outcome.summary["images"]) == (True, 25, 25)
    assert told.notes == ["2 images are new in the folder since it was listed; they are scored after the others"]


def test_vanished_files_become_error_rows(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    score_chunks(1, photos, bundle, tmp_path / "out", Request(batch_size=4))
    (photos / "wall2" / "020.png").unlink()
    os.mkfifo(photos / "wall2" / "020.png")
    (photos / "wall2" / "017.png").unlink()
    outcome = score_folder(photos, bundle.path, tmp_path / "out", resume=True)
    errors = {row["path"]: row["error"] for row in rows_of(tmp_path / "out") if row["error"]}
    assert errors["wall2/017.png"] == {"code": "InputError", "message": "cannot read 'wall2/017.png': No such file or directory"}
    assert "'wall2/020.png' is not a regular file" in errors["wall2/020.png"]["message"]
    assert (outcome.done, outcome.failures) == (23, 2)


def test_other_options_folder_or_bundle_are_refused(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score_chunks(1, photos, bundle, out, Request(batch_size=4))
    before = (out / "state.json").read_bytes()
    with pytest.raises(ConfigError, match=r"backend \(recorded: statevector, now: aer\), shots \(recorded: none, now: 9\)"):
        score_folder(photos, bundle.path, out, Request(backend="aer", shots=9), resume=True)
    other = tiny_bundle(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="started with another bundle"):
        score_folder(photos, other.path, out, resume=True)
    with pytest.raises(ConfigError, match="started on the folder"):
        score_folder(photos / "wall1", bundle.path, out, resume=True)
    with pytest.raises(ConfigError, match="is not empty; go on with its run by --resume"):
        score_folder(photos, bundle.path, out)
    assert (out / "state.json").read_bytes() == before
    assert score_folder(photos, bundle.path, out, Request(batch_size=4, seed=0), resume=True).complete


def test_output_folder_must_be_ones_own(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder of its own"):
        score_folder(photos, bundle.path, photos, resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a folder of its own"):
        score_folder(photos, bundle.path, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.pdf").touch()
    with pytest.raises(ConfigError, match="holds other files and no run to resume"):
        score_folder(photos, bundle.path, tmp_path / "mine", resume=True)
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == ["thesis.pdf"]


def test_output_inside_the_folder_is_not_scored(photos: Path, bundle: ModelBundle) -> None:
    out = photos / "results"
    assert score_chunks(2, photos, bundle, out, Request(batch_size=5)).done == 10
    make_image(out / "overlay.png")
    assert score_folder(photos, bundle.path, out, resume=True).done == 23


def test_nothing_is_left_by_a_run_that_could_not_start(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        score_folder(photos, bundle.path, tmp_path / "out", Request(shots=10**9))
    with pytest.raises(InputError):
        score_folder(tmp_path / "missing", bundle.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resume_where_nothing_was_started_starts(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    score_folder(photos, bundle.path, tmp_path / "whole")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".state.json.partial").write_bytes(b"{")
    assert score_folder(photos, bundle.path, tmp_path / "out", resume=True).resumed_at == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_stop_while_listing_can_be_resumed(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    request = Request(batch_size=3, shots=11)
    stopped = score_folder(photos, bundle.path, tmp_path / "out", request, should_stop=lambda: True)
    assert (stopped.complete, stopped.done) == (False, 0)
    assert score_folder(photos, bundle.path, tmp_path / "out", resume=True).complete
    score_folder(photos, bundle.path, tmp_path / "whole", request)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_empty_folder_and_folder_of_failures(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = score_folder(tmp_path / "empty", bundle.path, tmp_path / "none")
    assert (outcome.complete, outcome.done, outcome.failures, rows_of(tmp_path / "none")) == (True, 0, 0, [])
    assert score_folder(tmp_path / "empty", bundle.path, tmp_path / "none", resume=True).complete
    killed_while_listing = {**json.loads((tmp_path / "none" / "state.json").read_text()), "segments": [], "position": {}}
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "state.json").write_text(json.dumps(killed_while_listing))
    assert score_folder(tmp_path / "empty", bundle.path, tmp_path / "later", resume=True).complete
    assert contents(tmp_path / "later") == contents(tmp_path / "none")
    (tmp_path / "empty" / "a.png").touch()
    outcome = score_folder(tmp_path / "empty", bundle.path, tmp_path / "bad")
    assert (outcome.done, outcome.failures, outcome.summary["executions"]) == (1, 1, [])


def test_more_than_two_labels(photos: Path, tmp_path: Path) -> None:
    three = tiny_bundle(tmp_path / "bundle", labels=("crack", "pore, open", "none"))
    outcome = score_folder(photos, three.path, tmp_path / "out")
    assert sum(outcome.summary["labels"].values()) == 23
    assert outcome.summary["options"]["threshold"] is None
    assert "probability_pore, open" in next(csv.reader((tmp_path / "out" / "scores.csv").read_text().splitlines()))
    with pytest.raises(ConfigError, match="two classes"):
        score_folder(photos, three.path, tmp_path / "other", Request(threshold=0.4))


def test_versions_that_changed_are_told(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    told = Told()
    score_chunks(1, photos, bundle, tmp_path / "out", Request(batch_size=4))
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    state["versions"]["pillow"] = "1.0"
    (tmp_path / "out" / "state.json").write_text(json.dumps(state))
    outcome = score_folder(photos, bundle.path, tmp_path / "out", resume=True, reporter=told)
    assert outcome.complete
    assert "the last digits of the new rows may differ" in told.notes[0]


def test_answer_holds_plain_values(odd_photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    outcome: Outcome = score_folder(odd_photos, bundle.path, tmp_path / "out")
    answer = json.loads(json.dumps(outcome.to_dict(), allow_nan=False))
    assert answer["images_per_second"] > 0
    assert Path(answer["files"]["scores.csv"]).is_file()
    assert {key: answer[key] for key in outcome.summary} == outcome.summary == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_where_the_backbone_computes_is_checked_first(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no CUDAExecutionProvider .*onnxruntime-gpu"):
        score_folder(photos, bundle.path, tmp_path / "out", providers=("cuda", "cpu"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="workers of Ray"):
        score_folder(photos, bundle.path, tmp_path / "out", engine="ray", providers=("cuda",))


def test_where_it_computes_is_recorded(photos: Path, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a graphics card that is none."""
    outcome = score_folder(photos, bundle.path, tmp_path / "plain")
    assert "providers" not in outcome.summary["versions"]
    monkeypatch.setitem(PROVIDERS, "cuda", "CPUExecutionProvider")
    monkeypatch.setattr("hqtl_common.stages._options_of", lambda *_: {})
    outcome = score_folder(photos, bundle.path, tmp_path / "card", providers=("cuda",))
    assert outcome.summary["versions"]["providers"] == "cuda"
