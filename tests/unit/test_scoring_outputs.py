"""Rows, files and records: nothing is lost, nothing is half there."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqtl_common import ExecutionRecord, HeadSpec, ModelBundle, Prediction
from hqtl_common.errors import ConfigError, InputError, UnknownBackendError
from serving.errors import OutputError
from serving.scoring.answers import Failure, ScoredChunk
from serving.scoring.listing import Segment
from serving.scoring.options import Options, Request, resolve
from serving.scoring.outputs import ResultWriter
from serving.scoring.rows import csv_columns, csv_line, csv_values, jsonl_line, make_row
from serving.scoring.seen import Seen
from serving.scoring.state import CSV, JSONL, STATE, Position, State, holds_only_a_start, load_state, save_state
from serving.scoring.storage import locked, open_at, replace_file
from serving.scoring.tally import Tally, add_chunk
from serving.scoring.tile_rows import tile_columns

LABELS = ("crack", "no_crack")
HEAD = HeadSpec()
RECORD = ExecutionRecord("aer", "aer", shots=100, seed=7, num_rows=2, wall_seconds=0.25)
OPTIONS = Options(backend="aer", shots=100, seed=7, batch_size=4, chunk_size=4, threshold=0.5)
PATH = st.binary(min_size=1, max_size=40).map(lambda path: path.replace(b"\0", b"\r"))


def prediction(probability: float = 0.75, interval: tuple[float, float] | None = None, **fields: Any) -> Prediction:
    return Prediction(
        label="crack",
        probability=probability,
        probabilities={"crack": probability, "no_crack": 1 - probability},
        interval=interval,
        angles=np.float32([0.1, 0.2, 0.3, 0.4]),
        expvals=np.array([0.5, -0.5, 0.25, 1 / 3]),
        expval_stds=None if interval is None else np.full(4, 0.01),
        logits=np.array([1.0, -1.0]),
        execution=RECORD,
        **fields,
    )


def chunk(paths: tuple[bytes, ...] = (b"a.png", b"bad.png"), listing_end: int = 14, **fields: Any) -> ScoredChunk:
    answers = tuple(Failure("ImageDecodeError", "not an image") if b"bad" in path else prediction(**fields) for path in paths)
    return ScoredChunk(paths, answers, RECORD, listing_end)


def fresh(files: int = 2) -> State:
    return State(folder="/data", bundle_sha256="0" * 64, versions={}, options=OPTIONS, segments=(Segment(files, 14),))


@contextmanager
def writer(out: Path, state: State) -> Iterator[ResultWriter]:
    with closing(Seen(out, state.position.files)) as seen, ResultWriter(out, state, LABELS, HEAD, seen, "crack") as results:
        yield results


@given(path=PATH, message=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_every_name_survives_in_both_files(path: bytes, message: str) -> None:
    row = make_row(path, Failure("ImageDecodeError", message))
    line = jsonl_line(row)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert os.fsencode(json.loads(line)["path"]) == path
    header, data = csv_columns(LABELS, HEAD), csv_line(csv_values(row, LABELS, HEAD))
    (cells,) = csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""))
    flat = dict(zip(header, cells, strict=True))
    assert flat["path"].encode("utf-8", "surrogateescape") == path
    assert flat["error_message"] == message


@pytest.mark.parametrize("interval", [None, (0.7, 0.8)])
def test_both_files_say_the_same(interval: tuple[float, float] | None) -> None:
    row = json.loads(jsonl_line(make_row(b"a.png", prediction(interval=interval))))
    cells = csv_line(csv_values(row, LABELS, HEAD)).decode().rstrip("\n").split(",")
    flat = dict(zip(csv_columns(LABELS, HEAD), cells, strict=True))
    assert row["error"] is None
    assert [float(flat[f"expval_{k}"]) for k in range(4)] == row["expvals"]
    assert [float(flat[f"angle_{k}"]) for k in range(4)] == row["angles"]
    assert {label: float(flat[f"probability_{label}"]) for label in LABELS} == row["probabilities"]
    assert [float(flat[f"logit_{label}"]) for label in LABELS] == row["logits"]
    assert (flat["interval_low"], flat["interval_high"]) == (("", "") if interval is None else ("0.7", "0.8"))
    assert (flat["expval_std_0"], flat["shots"], flat["seed"], flat["error_code"]) == ("" if interval is None else "0.01", "100", "7", "")


def test_rows_with_and_without_answer_have_the_same_keys() -> None:
    assert make_row(b"a", prediction()).keys() == make_row(b"a", Failure("InputError", "gone")).keys()


def test_what_stands_behind_the_record_is_cut_off(tmp_path: Path) -> None:
    with writer(tmp_path, fresh()) as first:
        first.append(chunk())
    expected = {name: (tmp_path / name).read_bytes() for name in (JSONL, CSV, STATE)}
    for name in (JSONL, CSV):
        (tmp_path / name).write_bytes(expected[name] + b"half a r")
    state = load_state(tmp_path)
    assert state is not None
    assert state == first.state
    assert (state.position.files, state.position.chunks, state.complete) == (2, 1, True)
    with writer(tmp_path, state):
        pass
    assert {name: (tmp_path / name).read_bytes() for name in expected} == expected


def test_header_is_written_once_however_often_a_run_begins(tmp_path: Path) -> None:
    for _ in range(2):
        with writer(tmp_path, fresh()):
            pass
    assert (tmp_path / CSV).read_bytes() == csv_line(csv_columns(LABELS, HEAD))


def test_file_shorter_than_recorded_is_refused(tmp_path: Path) -> None:
    state = fresh().model_copy(update={"position": Position(files=1, chunks=1, listing=6, jsonl=10, csv=10)})
    with pytest.raises(InputError, match=r"scores\.jsonl' has 0 bytes, but 10 were written"), writer(tmp_path, state):
        pass


def test_link_in_place_of_a_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / JSONL).symlink_to("precious")
    with pytest.raises(OutputError, match=r"cannot write .*scores\.jsonl"), writer(tmp_path, fresh()):
        pass
    assert (tmp_path / "precious").read_text() == "x"


def test_full_disk_leaves_the_last_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def write_some(descriptor: int, data: bytes, real=os.write) -> int:
        calls.append(len(data))
        if len(calls) > 4:  # in the rows of the second chunk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    with pytest.raises(OutputError, match=r"No space left on device; make room .* --resume"), writer(tmp_path, fresh(4)) as results:  # noqa: PT012
        results.append(chunk())
        results.commit()
        calls.extend([0, 0, 0])
        monkeypatch.setattr(os, "write", write_some)
        results.append(chunk((b"c.png",), 20))
    monkeypatch.undo()
    state = load_state(tmp_path)
    assert state is not None
    assert state.position.files == 2
    with writer(tmp_path, state) as results:
        results.append(chunk((b"c.png",), 20))
    assert [json.loads(line)["path"] for line in (tmp_path / JSONL).read_text().splitlines()] == ["a.png", "bad.png", "c.png"]


def test_commits_are_rare_and_the_last_one_is_made_on_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    monkeypatch.setattr("serving.scoring.outputs.save_state", lambda out, state: commits.append(state.position.files))
    clock = [0.0]
    monkeypatch.setattr("serving.scoring.outputs.time.monotonic", lambda: clock[0])
    with writer(tmp_path, fresh(100)) as results:
        for _ in range(20):
            clock[0] += 0.1
            results.append(chunk())
    assert commits[-1] == 40
    assert len(commits) <= 5


def test_state_survives_with_names_that_are_not_utf8(tmp_path: Path) -> None:
    state = fresh().model_copy(update={"folder": "/n\udce9", "tally": Tally(failed=("x\udcff",), review=((-0.1, "\udc80"),))})
    save_state(tmp_path, state)
    assert load_state(tmp_path) == state
    assert not (tmp_path / f".{STATE}.partial").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"schema": "hqtl-score/9"}', b"\xff"])
def test_unusable_state_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(InputError, match=r"state\.json' cannot be used"):
        load_state(tmp_path)


def test_unfinished_start_is_recognised(tmp_path: Path) -> None:
    assert load_state(tmp_path / "missing") is None
    assert holds_only_a_start(tmp_path / "missing")
    (tmp_path / ".state.json.partial").touch()
    assert holds_only_a_start(tmp_path)
    (tmp_path / "thesis.pdf").touch()
    assert not holds_only_a_start(tmp_path)


def test_folder_has_one_writer(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="another run is writing"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_failures_of_the_file_system_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*missing"):
        replace_file(tmp_path / "missing" / "x", b"")
    with pytest.raises(OutputError, match=r"cannot write .*missing"), locked(tmp_path / "missing"):
        pass
    with pytest.raises(OutputError, match="Is a directory"):
        open_at(tmp_path, 0)


def test_reasons_of_a_review_stand_in_both_files() -> None:
    row = make_row(b"a.png", prediction(0.55, boundary=0.5, familiarity=0.25, unfamiliar=True, calibration="aer at 100 shots"))
    flat = dict(zip(csv_columns(LABELS, HEAD), csv_values(row, LABELS, HEAD), strict=True))
    assert (row["review"], flat["review"]) == (["unfamiliar", "close"], "unfamiliar close")
    assert (row["familiarity"], flat["familiarity"], flat["calibration"]) == (0.25, 0.25, "aer at 100 shots")
    plain = csv_values(make_row(b"a.png", prediction()), LABELS, HEAD)
    assert dict(zip(csv_columns(LABELS, HEAD), plain, strict=True))["review"] is None


def test_every_angle_has_a_column_also_where_there_are_more_than_qubits() -> None:
    head = HeadSpec(embedding="reuploading", num_layers=3)
    row = make_row(b"a.png", prediction()) | {"angles": list(range(12))}
    flat = dict(zip(csv_columns(LABELS, head), csv_values(row, LABELS, head), strict=True))
    assert [flat[f"angle_{k}"] for k in range(12)] == list(range(12))
    failed = csv_values(make_row(b"a.png", Failure("InputError", "gone")), LABELS, head)
    assert len(failed) == len(csv_columns(LABELS, head))


def test_tally_counts_and_sums_executions() -> None:
    tally = Tally()
    for _ in range(4):
        tally = add_chunk(tally, chunk((b"a.png", b"bad.png", b"b.png"), boundary=0.7))
    assert (tally.labels, tally.errors, tally.doubtful) == ({"crack": 8}, {"ImageDecodeError": 4}, 8)
    assert len(tally.review) == 5
    assert tally.failed == ("bad.png",) * 4
    (execution,) = tally.executions
    assert (execution["num_rows"], execution["num_jobs"], execution["backend_used"]) == (8, 4, "aer")
    assert "wall_seconds" not in execution
    other = ScoredChunk((), (), ExecutionRecord("aer", "statevector", shots=None, seed=None, num_rows=3, reason="down"), 0)
    assert [item["backend_used"] for item in add_chunk(tally, other).executions] == ["aer", "statevector"]
    assert add_chunk(tally, ScoredChunk((), (), None, 0)).executions == tally.executions


def test_tally_names_the_least_familiar_and_knows_when_it_cannot() -> None:
    assert add_chunk(Tally(), chunk()).unfamiliar is None  # the bundle holds no reference
    tally = add_chunk(Tally(), chunk(familiarity=0.5, calibration="one"))
    assert (tally.unfamiliar, tally.strangers, tally.calibrations) == (0, (), ("one",))
    for level in range(7):
        paths = (b"f%d.png" % level,)
        tally = add_chunk(tally, chunk(paths, familiarity=0.02 - level / 1000, unfamiliar=True, calibration="another"))
    assert tally.unfamiliar == 7
    assert [path for _, path in tally.strangers] == ["f6.png", "f5.png", "f4.png", "f3.png", "f2.png"]
    assert tally.calibrations == ("another", "one")


def test_options_come_from_the_record_or_from_the_defaults(bundle: ModelBundle) -> None:
    found = resolve(Request(), bundle, None)
    assert found == Options(backend="statevector", shots=None, seed=0, batch_size=32, chunk_size=32, threshold=0.5)
    assert resolve(Request(batch_size=5), bundle, None).chunk_size == 5
    assert resolve(Request(), bundle, OPTIONS) is OPTIONS
    assert resolve(Request(backend="aer", shots=100), bundle, OPTIONS) is OPTIONS


def test_other_options_than_recorded_are_all_named(bundle: ModelBundle) -> None:
    message = r"backend \(recorded: aer, now: statevector\), batch-size \(recorded: 4, now: 8\), threshold \(recorded: 0.5, now: 0.4\)"
    with pytest.raises(ConfigError, match=message):
        resolve(Request(backend="statevector", batch_size=8, threshold=0.4), bundle, OPTIONS)
    exact = OPTIONS.model_copy(update={"shots": None})
    with pytest.raises(ConfigError, match=r"shots \(recorded: none, now: 100\)"):
        resolve(Request(shots=100), bundle, exact)


def test_options_that_cannot_be_used(bundle: ModelBundle) -> None:
    with pytest.raises(ConfigError, match="batch size must be at least 1; got 0"):
        resolve(Request(batch_size=0), bundle, None)
    with pytest.raises(UnknownBackendError):
        resolve(Request(backend="nope"), bundle, None)


def test_the_guide_describes_every_column() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text("utf-8")
    names = {*csv_columns(("LABEL",), HEAD), *tile_columns(("LABEL",), HEAD)}
    assert {name for name in names if f"`{name}`" not in guide and not re.search(r"_[1-9]$", name)} == set()
