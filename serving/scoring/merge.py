"""The parts of a folder that were scored apart (``--shard``), joined to what one run over the whole folder gives.

Files stand in the order of such a run, and a file with the bytes of an earlier one has its answer, also where another part scored
that one: what a part found for it is left out. With an exact head every row is that of the undivided run; a sampled head has drawn
other noise, as it does wherever chunks are cut differently.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hqtl_common.bundle import ModelBundle
from hqtl_common.errors import ConfigError, InputError
from serving.scoring.answers import Answer, Duplicate, Facts, ScoredChunk, StackPart, Tiled
from serving.scoring.folder import outcome_of, output_folder, recorded_run
from serving.scoring.listing import LISTING, Batch, Segment, plan_batches, read_paths, write_segment
from serving.scoring.options import Request, resolve
from serving.scoring.outcome import Outcome
from serving.scoring.outputs import ResultWriter
from serving.scoring.progress import Reporter, Silent
from serving.scoring.recorded import RecordedFile, recorded_files
from serving.scoring.run import bundle_hash
from serving.scoring.seen import Seen
from serving.scoring.state import State, load_state, save_state
from serving.scoring.storage import locked
from serving.scoring.tally import Tally, sum_executions

__all__ = ["merge_runs"]

_PIECE = 1000  # rows that are in memory, but for those of a single file


@dataclass(frozen=True, slots=True)
class _Part:
    """The output folder of a part of the folder, and its record."""

    out: Path
    state: State


def merge_runs(
    folder: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    parts: Sequence[str | os.PathLike[str]],
    request: Request | None = None,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Write the rows of runs over the parts of a folder to ``out``, as one run over the folder would.

    Args:
        folder: The folder that was scored.
        bundle: The model.
        out: Folder of the results; missing or empty unless ``resume``.
        parts: Output folders of the runs, every part once.
        request: Options as given, which must be those of the parts.
        resume: Go on with what was begun in ``out``.
        reporter: What is told meanwhile (default: nothing).
        should_stop: Asked after every thousand rows or so; True ends it there, to be resumed later.

    Raises:
        ConfigError: A part is missing, there twice, not complete, or of another folder, bundle or options; or ``out`` is in use.
        InputError: The files of a part were changed.
        BundleError: The bundle cannot be used.
        OutputError: A file could not be written; what was recorded is intact.
    """
    started, reporter, model = time.monotonic(), reporter or Silent(), ModelBundle.load(bundle)
    folder, out = Path(os.path.abspath(folder)), Path(os.path.abspath(out))  # noqa: PTH100  (not resolve, as the runs)
    outs = [Path(os.path.abspath(part)) for part in parts]  # noqa: PTH100
    if len(set(outs)) < len(outs) or not outs:
        raise ConfigError(f"every part is needed once; got {', '.join(map(str, outs)) or 'none'}")
    with ExitStack() as stack:
        stack.enter_context(output_folder(out, folder))
        found = [_opened(part, stack) for part in outs]
        begun = _begun(found, folder, model, reporter)
        resolve(request or Request(), model, begun.options)
        recorded = recorded_run(out, resume)
        if recorded is not None and (recorded.folder, recorded.bundle_sha256, recorded.options) != (
            *(begun.folder, begun.bundle_sha256, begun.options),
        ):
            raise ConfigError(f"{str(out)!r} holds a run of another folder, bundle or options; give another output folder")
        state = recorded or begun
        if not state.segments:
            state = state.model_copy(update={"segments": _listed(out, found, reporter)})
            save_state(out, state)
        if not state.complete:
            state = _written(out, state, found, model, reporter, should_stop)
    return outcome_of(out, state, recorded, model.labels, started)


def _opened(out: Path, stack: ExitStack) -> _Part:
    if not out.is_dir():
        raise ConfigError(f"expected the output folder of a part; {str(out)!r} is not a folder")
    stack.enter_context(locked(out))
    state = load_state(out)
    if state is None or state.options.shard is None:
        raise ConfigError(f"{str(out)!r} holds no run over a part of a folder, made with --shard I/N")
    if not state.complete:
        raise ConfigError(f"{str(out)!r} has {state.position.files:,} of {state.total:,} files; go on with its run by --resume first")
    return _Part(out, state)


def _begun(parts: Sequence[_Part], folder: Path, bundle: ModelBundle, reporter: Reporter) -> State:
    """The record of the whole before its first row.

    Raises:
        ConfigError: The parts do not belong together.
    """
    first = parts[0].state
    for part in parts:
        _check_same(part, first, folder, bundle)
    _check_shards(parts)
    if any(part.state.versions != first.versions for part in parts):
        reporter.note("the parts were scored with different versions of the packages; their last digits may differ")
    skipped = {kind: count for kind, count in first.skipped.items() if kind != "other_shards"}
    executions = sum_executions(execution for part in parts for execution in part.state.tally.executions)
    options = first.options.model_copy(update={"shard": None})
    return State(
        folder=first.folder,
        bundle_sha256=first.bundle_sha256,
        versions=first.versions,
        options=options,
        skipped=skipped,
        tally=Tally(executions=executions),
    )


def _check_same(part: _Part, first: State, folder: Path, bundle: ModelBundle) -> None:
    state = part.state
    if state.folder != str(folder):
        raise ConfigError(f"{str(part.out)!r} is a part of the folder {state.folder!r}, not of {str(folder)!r}")
    if state.bundle_sha256 != bundle_hash(bundle):
        raise ConfigError(f"{str(part.out)!r} was scored with another bundle than {str(bundle.path)!r}; give that one")
    one, other = ({**options.model_dump(), "shard": None} for options in (first.options, state.options))
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    if different:
        raise ConfigError(f"{str(part.out)!r} was scored with other options than the first part: {', '.join(different)}")


def _check_shards(parts: Sequence[_Part]) -> None:
    shards = {part.out: tuple(map(int, (part.state.options.shard or "").split("/"))) for part in parts}
    count = shards[parts[0].out][1]
    if len(set(shards.values())) < len(shards) or any(n != count for _, n in shards.values()):
        raise ConfigError(f"every part is needed once; got {', '.join(sorted(part.state.options.shard or '' for part in parts))}")
    if missing := sorted(set(range(1, count + 1)) - {number for number, _ in shards.values()}):
        raise ConfigError(
            f"parts are missing: {', '.join(f'{number}/{count}' for number in missing)}; score them, or name their folders too"
        )


def _listed(out: Path, parts: Sequence[_Part], reporter: Reporter) -> tuple[Segment, ...]:
    """The list of the whole: for every look at the folder the files that the parts found, in the order of their bytes."""
    segments: list[Segment] = []
    for look in range(max(len(part.state.segments) for part in parts)):
        paths = heapq.merge(*(_paths(part, look) for part in parts))
        segments.append(write_segment(out / LISTING, segments[-1].end if segments else 0, paths, reporter.found))
    return tuple(segments)


def _paths(part: _Part, look: int) -> Iterator[bytes]:
    ends = [0, *(segment.end for segment in part.state.segments)]
    return read_paths(part.out / LISTING, *ends[look : look + 2]) if look + 1 < len(ends) else iter(())


def _files(parts: Sequence[_Part], positive: str) -> Iterator[RecordedFile]:
    """The files of the parts in the order of the list of the whole."""
    readers = [recorded_files(part.out, part.state, positive) for part in parts]
    for look in range(max(len(part.state.segments) for part in parts)):
        counts = [part.state.segments[look].files if look < len(part.state.segments) else 0 for part in parts]
        yield from heapq.merge(*(islice(reader, count) for reader, count in zip(readers, counts, strict=True)), key=lambda file: file.path)


def _written(
    out: Path, state: State, parts: Sequence[_Part], bundle: ModelBundle, reporter: Reporter, should_stop: Callable[[], bool]
) -> State:
    position, options = state.position, state.options
    sizes = options.chunk_size, options.chunk_size
    batches = plan_batches(out / LISTING, state.segments, position.listing, position.chunks, *sizes, position.within)
    files = islice(_files(parts, bundle.manifest.positive_label), position.files, None)
    reporter.begin(state.total, position.files)
    with (
        closing(Seen(out, position.files)) as seen,
        ResultWriter(out, state, bundle.labels, bundle.head, seen, bundle.manifest.positive_label) as writer,
    ):
        for piece in _pieces(batches, files, seen, position.files):
            writer.append(piece)
            reporter.advance(writer.state.position.files)
            if should_stop():
                break
    return writer.state


def _pieces(batches: Iterator[Batch], files: Iterator[RecordedFile], seen: Seen, number: int) -> Iterator[ScoredChunk]:
    """Chunks of the whole, in pieces where they hold many rows."""
    for batch in batches:
        held = _Held()
        for place, path in enumerate(batch.paths, 1):
            file = next(files, None)
            if file is None or file.path != path:
                raise InputError(f"the rows of the parts are not those of their lists, from {path!r} on; score that part again")
            held.add(file, seen.first(file.facts[0].sha256, number))
            number += 1
            if place == len(batch.paths) or len(held.paths) >= _PIECE:
                yield held.chunk(batch.listing_end, ends=place == len(batch.paths))
                held = _Held()


class _Held:
    """Rows that become a piece."""

    def __init__(self) -> None:
        self.paths: list[bytes] = []
        self._answers: list[Answer] = []
        self._facts: list[Facts] = []
        self._tiled: list[Tiled | None] = []
        self._stack: list[StackPart | None] = []

    def add(self, file: RecordedFile, first: int | None) -> None:
        """The rows of a file; one for a duplicate, whose rows are those of the first file with its bytes."""
        if first is None and file.copied:
            raise InputError(f"{file.path!r} has the answer of a file that no part holds; score its part again")
        count = len(file.answers) if first is None else 1
        self.paths += [file.path] * count
        self._answers += file.answers if first is None else [Duplicate(first)]
        self._facts += file.facts[:count]
        self._tiled += file.tiled if first is None else [None]
        self._stack += file.stack if first is None else [None]

    def chunk(self, listing_end: int, *, ends: bool) -> ScoredChunk:
        stack: Any = tuple(self._stack) if any(part is not None for part in self._stack) else ()
        held = tuple(self.paths), tuple(self._answers), None, listing_end, tuple(self._facts), tuple(self._tiled)
        return ScoredChunk(*held, stack=stack, ends=ends)
