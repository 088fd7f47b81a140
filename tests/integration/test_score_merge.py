"""Parts of a folder scored apart and joined: what one run over the folder gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hqtl_common import ModelBundle
from hqtl_common.errors import ConfigError, InputError
from serving.cli import main
from serving.scoring import Request, merge_runs, score_folder
from serving.scoring.progress import Silent
from serving.scoring.state import load_state
from tests.tiny import tiny_bundle


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """34 images in four folders: some damaged, some with the bytes of others in every part, names of any bytes."""
    folder = tmp_path_factory.mktemp("merge") / "photos"
    rng = np.random.default_rng(0)
    for index in range(18):
        path = folder / f"wall{index % 3}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low, high = sorted(rng.integers(0, 256, 2))
        Image.fromarray(rng.integers(low, high + 1, (90, 100 + index, 3), dtype=np.uint8)).save(path)
    for copy in range(6):
        (folder / f"copy{copy}\n.png").write_bytes((folder / "wall1" / "01.png").read_bytes())
        (folder / "wall2" / f"n\udce9\udcff{copy}.png").write_bytes((folder / "wall2" / "05.png").read_bytes())
        (folder / "wall0" / f"cut{copy % 2}{copy}.png").write_bytes((folder / "wall0" / "00.png").read_bytes()[: 300 + copy % 2])
    (folder / "stack.tif").parent.mkdir(exist_ok=True)
    pages = [Image.fromarray(rng.integers(0, 256, (70, 70), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(folder / "stack.tif", save_all=True, append_images=pages[1:])
    (folder / "wall1" / "again.tif").write_bytes((folder / "stack.tif").read_bytes())
    return folder


@pytest.fixture(scope="module")
def scored(photos: Path, bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Path]:
    """``scored("2/3")``: the output folder of a part; None: of the whole folder."""
    base, made = tmp_path_factory.mktemp("parts"), dict[str | None, Path]()

    def scored(shard: str | None) -> Path:
        if shard not in made:
            made[shard] = base / (shard or "whole").replace("/", "-")
            score_folder(photos, bundle.path, made[shard], Request(tiles=60, overlap=20, chunk_size=5, shard=shard))
        return made[shard]

    return scored


def parts_of(scored: Callable[[str | None], Path]) -> list[Path]:
    return [scored(f"{part}/3") for part in (3, 1, 2)]


def assert_same(out: Path, expected: Path, *names: str) -> None:
    """The same rows in the same order. The last digits may depend on which images go through the backbone together."""
    assert (out / "listing.nul").read_bytes() == (expected / "listing.nul").read_bytes()
    for name in names:
        rows, others = rows_of(out, name), rows_of(expected, name)
        assert len(rows) == len(others)
        for row, other in zip(rows, others, strict=True):
            assert flat(row) == pytest.approx(flat(other), abs=1e-6)


def flat(row: Any, key: str = "") -> dict[str, Any]:
    """Numbers, texts and None by where they stand in nested values."""
    if not isinstance(row, dict | list):
        return {key: row}
    pairs = row.items() if isinstance(row, dict) else enumerate(row)
    return {name: value for place, inner in pairs for name, value in flat(inner, f"{key}/{place}").items()}


def test_parts_make_the_whole(photos: Path, bundle: ModelBundle, scored: Callable[[str | None], Path], tmp_path: Path) -> None:
    outcome = merge_runs(photos, bundle.path, tmp_path / "out", parts_of(scored))
    whole = scored(None)
    assert_same(tmp_path / "out", whole, "scores.jsonl", "tiles.jsonl")
    assert (tmp_path / "out" / "scores.csv").read_bytes().count(b"\n") == (whole / "scores.csv").read_bytes().count(b"\n")
    merged, expected = load_state(tmp_path / "out"), load_state(whole)
    assert merged is not None
    assert expected is not None
    assert (merged.options, merged.segments, merged.skipped) == (expected.options, expected.segments, expected.skipped)
    assert (merged.position.files, merged.position.rows, merged.position.chunks) == (
        *(expected.position.files, expected.position.rows, expected.position.chunks),
    )
    assert [path for _, path in merged.tally.review] == [path for _, path in expected.tally.review]
    same = {"executions", "review", "strangers"}
    assert merged.tally.model_dump(exclude=same) == expected.tally.model_dump(exclude=same)  # labels, errors, duplicates, tiles, …
    rows = sum(execution["num_rows"] for execution in outcome.summary["executions"])
    apart = [json.loads((part / "summary.json").read_text()) for part in parts_of(scored)]
    assert rows == sum(execution["num_rows"] for part in apart for execution in part["executions"])
    assert outcome.complete
    assert outcome.summary["duplicates"] > sum(part["duplicates"] for part in apart)  # also between the parts


def test_stopped_and_taken_up(
    photos: Path, bundle: ModelBundle, scored: Callable[[str | None], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.scoring.merge._PIECE", 2)
    out, stops = tmp_path / "out", 0
    while not merge_runs(photos, bundle.path, out, parts_of(scored), resume=stops > 0, should_stop=lambda: True).complete:
        stops += 1
    assert stops > 10
    assert_same(out, scored(None), "scores.jsonl", "tiles.jsonl")
    merge_runs(photos, bundle.path, tmp_path / "at once", parts_of(scored))
    for name in ("scores.jsonl", "scores.csv", "tiles.jsonl", "tiles.csv", "listing.nul", "state.json", "summary.json"):
        assert (out / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()


def test_sampled_answers_are_those_of_the_parts(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    request = Request(shots=40, seed=5, threshold=0.4, refine_with="aer", refine_shots=90)
    parts = [tmp_path / str(part) for part in (1, 2)]
    for part in parts:
        score_folder(photos, bundle.path, part, Request(**{**_given(request), "shard": f"{part.name}/2"}))
    merge_runs(photos, bundle.path, tmp_path / "out", parts, request)
    rows = {row["path"]: row for part in parts for row in rows_of(part) if row["part"] is None}
    merged = [row for row in rows_of(tmp_path / "out") if row["part"] is None]
    assert {row["backend"] for row in merged} >= {"statevector", "aer"}
    assert [row for row in merged if row["duplicate_of"] is None] == [rows[row["path"]] for row in merged if row["duplicate_of"] is None]
    firsts = {row["path"]: row for row in merged}
    for row in merged:
        if row["duplicate_of"] is not None:
            assert row == {**firsts[row["duplicate_of"]], "path": row["path"], "duplicate_of": row["duplicate_of"]}


def test_images_found_later_come_later(photos: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for index, name in enumerate(("m.png", "n.png", "o.png", "p.png")):
        make_image(folder / name, index)
    outs = {name: tmp_path / name for name in ("whole", "1", "2")}
    requests = {name: Request(shard=None if name == "whole" else f"{name}/2") for name in outs}
    for name, out in outs.items():
        score_folder(folder, bundle.path, out, requests[name])
    for index, name in enumerate(("a.png", "b.png", "z.png")):
        make_image(folder / name, index)  # the bytes of m, n and o
    for name, out in outs.items():
        score_folder(folder, bundle.path, out, requests[name], resume=True)
    merge_runs(folder, bundle.path, tmp_path / "out", [outs["1"], outs["2"]])
    assert_same(tmp_path / "out", outs["whole"], "scores.jsonl")
    assert [row["duplicate_of"] for row in rows_of(tmp_path / "out")][4:] == ["m.png", "n.png", "o.png"]


def make_image(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 100 + seed, (40, 40, 3), dtype=np.uint8)).save(path)


def rows_of(out: Path, name: str = "scores.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text("ascii").splitlines()]


def _given(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__slots__}


def test_what_does_not_belong_together(photos: Path, bundle: ModelBundle, scored: Callable[[str | None], Path], tmp_path: Path) -> None:
    one, two, three = (scored(f"{part}/3") for part in (1, 2, 3))
    other = tmp_path / "other"
    score_folder(photos, bundle.path, other, Request(shard="2/3"))
    again = Path(shutil.copytree(two, tmp_path / "again"))
    begun = tmp_path / "begun"
    request = Request(tiles=60, overlap=20, chunk_size=5, shard="2/3")
    score_folder(photos, bundle.path, begun, request, should_stop=lambda: (begun / "listing.nul").exists())
    for parts, words in (
        ([one, three], "parts are missing: 2/3"),
        ([one, two, three, two], "every part is needed once; got /"),
        ([one, two, three, again], "every part is needed once; got 1/3, 2/3, 2/3, 3/3"),
        ([one, two, scored(None)], "holds no run over a part"),
        ([one, tmp_path / "none", three], "is not a folder"),
        ([one, other, three], "other options than the first part: chunk_size, overlap, tile_quantile, tiles"),
        ([one, begun, three], "go on with its run by --resume first"),
    ):
        with pytest.raises(ConfigError, match=words):
            merge_runs(photos, bundle.path, tmp_path / "out", parts)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="is a part of the folder"):
        merge_runs(tmp_path, bundle.path, tmp_path / "out", [one, two, three])
    with pytest.raises(ConfigError, match="another bundle"):
        merge_runs(photos, tiny_bundle(tmp_path / "bundle", seed=1).path, tmp_path / "out", [one, two, three])
    with pytest.raises(ConfigError, match="shots"):
        merge_runs(photos, bundle.path, tmp_path / "out", [one, two, three], Request(shots=7))


@pytest.mark.parametrize("name", ["scores.jsonl", "tiles.jsonl", "listing.nul"])
def test_rows_that_were_changed(photos: Path, bundle: ModelBundle, tmp_path: Path, name: str) -> None:
    parts = [tmp_path / "1", tmp_path / "2"]
    for part in parts:
        score_folder(photos, bundle.path, part, Request(tiles=60, overlap=20, shard=f"{part.name}/2"))
    data = (parts[0] / name).read_bytes()
    (parts[0] / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"was changed|were changed|are not those"):
        merge_runs(photos, bundle.path, tmp_path / "out", parts)


def test_the_command(photos: Path, bundle: ModelBundle, scored: Callable[[str | None], Path], tmp_path: Path) -> None:
    parts_of(scored)
    pattern = str(scored("1/3").parent / "?-3")
    command = [str(photos), "--bundle", str(bundle.path), "--out", str(tmp_path / "out"), "--merge", pattern, "--parquet", "--json"]
    answer = CliRunner().invoke(main, command)
    assert answer.exit_code == 3, answer.output
    document = json.loads(answer.stdout)
    assert document["complete"]
    assert {"scores.csv", "tiles.jsonl", "report.html", "coco.json", "scores.parquet", "tiles.parquet", "maps"} <= document["files"].keys()
    missing = CliRunner().invoke(main, [*command[:3], "--out", str(tmp_path / "no"), "--merge", str(scored("1/3"))])
    assert missing.exit_code == 1
    assert "parts are missing: 2/3, 3/3" in missing.stderr


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_other_versions_are_told(photos: Path, bundle: ModelBundle, scored: Callable[[str | None], Path], tmp_path: Path) -> None:
    parts = [tmp_path / "1", tmp_path / "2"]
    for part in parts:
        score_folder(photos, bundle.path, part, Request(shard=f"{part.name}/2"))
    state = (parts[1] / "state.json").read_text()
    (parts[1] / "state.json").write_text(state.replace('"numpy": "', '"numpy": "0.'))
    told = Told()
    merge_runs(photos, bundle.path, tmp_path / "out", parts, reporter=told)
    assert told.notes == ["the parts were scored with different versions of the packages; their last digits may differ"]
