"""Which files are scored, in which order, and the list on disk."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtl_common.errors import InputError
from serving.scoring.listing import Batch, Segment, Walk, plan_batches, read_paths, unlisted, write_segment

NAME = (
    st.binary(min_size=1, max_size=12)
    .map(lambda name: name.translate(None, b"/\0"))
    .filter(lambda name: name and not name.startswith(b"."))
)
FILES = st.lists(
    st.lists(NAME, max_size=3).flatmap(lambda folders: NAME.map(lambda name: b"/".join([*folders, name + b".png"]))), max_size=12
)
PATHS = st.sets(st.binary(min_size=1, max_size=30).map(lambda path: path.replace(b"\0", b"\n")), max_size=40).map(sorted)


def touch(root: Path, relative: bytes) -> bool:
    """Make an empty file; False where a file and a folder would need the same name."""
    full = root / os.fsdecode(relative)
    try:
        full.parent.mkdir(parents=True, exist_ok=True)
        full.touch()
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        return False
    return True


@given(files=FILES)
@settings(max_examples=60)
def test_order_is_that_of_whole_paths_whatever_the_names(files: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = {relative for relative in files if touch(Path(folder), relative)}
        assert list(Walk(Path(folder))) == sorted(made)


def test_only_images_are_listed_and_the_rest_is_counted(tmp_path: Path) -> None:
    for name in (b"a.PNG", b"b.jpeg", b"deep/er/c.TiFf", b"d.txt", b"png", b".hidden.png", b".git/x.png", b"folder.png/e.webp"):
        assert touch(tmp_path, name)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("a.PNG")
    (tmp_path / "deep" / "loop").symlink_to("..")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket.png"))
        walk = Walk(tmp_path)
        assert list(walk) == [b"a.PNG", b"b.jpeg", b"deep/er/c.TiFf", b"folder.png/e.webp"]
    assert walk.skipped == {"other_files": 2, "hidden": 2, "special": 2, "links": 3}


def test_the_output_folder_is_not_walked(tmp_path: Path) -> None:
    for name in (b"a.png", b"out/b.png", b"outer/c.png"):
        assert touch(tmp_path, name)
    walk = Walk(tmp_path, exclude=tmp_path / "out")
    assert list(walk) == [b"a.png", b"outer/c.png"]
    assert walk.skipped == {"output_folders": 1}
    assert list(Walk(tmp_path, exclude=tmp_path / "missing")) == [b"a.png", b"out/b.png", b"outer/c.png"]


def test_folders_deeper_than_pythons_stack_are_walked(tmp_path: Path) -> None:
    depth = sys.getrecursionlimit() + 100
    folders = [tmp_path / ("d/" * level) for level in range(1, depth + 1)]
    for folder in folders:
        folder.mkdir()
    (folders[-1] / "a.png").touch()
    assert list(Walk(tmp_path)) == [b"d/" * depth + b"a.png"]
    (folders[-1] / "a.png").unlink()
    for folder in reversed(folders):
        folder.rmdir()


def test_unreadable_folder_is_counted_and_unreadable_root_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (b"a.png", b"locked/b.png"):
        assert touch(tmp_path, name)
    scandir = os.scandir

    def refuse(path: bytes) -> Iterator[os.DirEntry[bytes]]:
        if b"locked" in path:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    walk = Walk(tmp_path)
    assert list(walk) == [b"a.png"]
    assert walk.skipped == {"unreadable_folders": 1}
    with pytest.raises(InputError, match=r"cannot read the folder .*missing"):
        list(Walk(tmp_path / "missing"))


def record(folder: str, parts: list[list[bytes]]) -> tuple[Path, list[Segment]]:
    listing, segments = Path(folder) / "listing", []
    for paths in parts:
        start = segments[-1].end if segments else 0
        segments.append(write_segment(listing, start, paths, lambda files: None))
    return listing, segments


@given(parts=st.lists(PATHS, min_size=1, max_size=4))
def test_list_gives_back_every_path(parts: list[list[bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        listing, segments = record(folder, parts)
        assert [segment.files for segment in segments] == [len(paths) for paths in parts]
        assert list(read_paths(listing, 0, segments[-1].end)) == [path for paths in parts for path in paths]


@given(found=PATHS, parts=st.lists(PATHS, max_size=4))
def test_unlisted_is_the_difference_in_order(found: list[bytes], parts: list[list[bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        listing, segments = record(folder, parts)
        known = {path for paths in parts for path in paths}
        assert list(unlisted(found, listing, segments)) == [path for path in found if path not in known]


@given(parts=st.lists(PATHS, min_size=1, max_size=3), batch_size=st.integers(1, 7), chunk_size=st.integers(1, 20))
def test_chunks_do_not_depend_on_where_a_run_stopped(parts: list[list[bytes]], batch_size: int, chunk_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        listing, segments = record(folder, parts)
        whole = list(plan_batches(listing, segments, 0, 0, batch_size, chunk_size))
        assert [path for batch in whole for path in batch.paths] == [path for paths in parts for path in paths]
        for position, batch in enumerate(whole):
            assert 0 < len(batch.paths) <= batch_size
            if batch.ends_chunk:
                rest = list(plan_batches(listing, segments, batch.listing_end, batch.chunk + 1, batch_size, chunk_size))
                assert rest == whole[position + 1 :]


def test_new_segment_begins_a_new_chunk(tmp_path: Path) -> None:
    listing, segments = record(str(tmp_path), [[b"a", b"b", b"c"], [b"aa"]])
    assert list(plan_batches(listing, segments, 0, 0, 2, 2)) == [
        Batch(0, (b"a", b"b"), True, 4),
        Batch(1, (b"c",), True, 6),
        Batch(2, (b"aa",), True, 9),
    ]


def test_segment_replaces_what_was_left_of_an_interrupted_one(tmp_path: Path) -> None:
    listing, (first, _) = record(str(tmp_path), [[b"a"], [b"half", b"written"]])
    again = write_segment(listing, first.end, [b"z"], lambda files: None)
    assert list(read_paths(listing, 0, again.end)) == [b"a", b"z"]
    assert listing.stat().st_size == again.end


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(b"a\0b"), lambda path: path.unlink(), lambda path: path.write_bytes(b"abcdef")]
)
def test_changed_list_is_refused(tmp_path: Path, damage: object) -> None:
    listing, (segment,) = record(str(tmp_path), [[b"a", b"b", b"c"]])
    damage(listing)  # type: ignore[operator]
    with pytest.raises(InputError, match="give another output folder"):
        list(read_paths(listing, 0, segment.end))


def test_blocks_do_not_cut_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.scoring.listing._BLOCK", 3)
    paths = [b"a", b"bb", b"cccccccc", b"dd"]
    listing, (segment,) = record(str(tmp_path), [paths])
    assert list(read_paths(listing, 0, segment.end)) == paths
