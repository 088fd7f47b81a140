"""Score every image of a folder: a run that can be killed at any moment and goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from hqtl_common import __version__
from hqtl_common.backends.opening import Limits
from hqtl_common.bundle import ModelBundle
from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import ConfigError, InputError
from hqtl_common.manifest import MANIFEST
from hqtl_common.preprocess import MAX_BYTES, MAX_PIXELS, suffixes_of
from hqtl_common.stages import available_cores
from serving.decoder import DecoderPool
from serving.decoder_process import Job
from serving.scoring.answers import ScoredChunk
from serving.scoring.heads import HeadRunner
from serving.scoring.listing import LISTING, Batch, Selection, Walk, plan_batches, unlisted, write_segment
from serving.scoring.options import Options, Request, open_engine, open_refiner, resolve
from serving.scoring.outcome import Outcome
from serving.scoring.outputs import ResultWriter
from serving.scoring.pipeline import Decoder, score_batches
from serving.scoring.progress import Reporter, Silent
from serving.scoring.seen import Seen
from serving.scoring.state import SUMMARY, State, holds_only_a_start, load_state, save_state
from serving.scoring.storage import locked, output_errors
from serving.scoring.summary import summary_of, write_summary
from serving.scoring.tile_pixels import Cut
from serving.scoring.tiled import TileReader, score_tiled

__all__ = ["score_folder"]

_DECODE_SECONDS = 600.0  # of one image; far beyond what any sound one takes, so that a busy machine gives the same rows


class _StoppedError(Exception):
    """The caller asked to stop while files were being listed."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What stays the same from the beginning of a run to its end."""

    folder: Path
    out: Path
    bundle: ModelBundle
    options: Options
    workers: int
    reporter: Reporter
    should_stop: Callable[[], bool]
    limits: Limits | None
    isolated: bool


def score_folder(
    folder: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    request: Request | None = None,
    *,
    resume: bool = False,
    workers: int | None = None,
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    limits: Limits | None = None,
    isolated: bool = False,
) -> Outcome:
    """Write one row per image below ``folder`` to ``scores.jsonl`` and ``scores.csv`` in ``out``.

    Args:
        folder: Where the images are.
        bundle: The model.
        out: Folder of the results; missing or empty unless ``resume``.
        request: Options that decide the answers.
        resume: Go on with the run recorded in ``out``; where none was started, start one.
        workers: Threads that decode (default: the cores this process may use).
        reporter: What is told meanwhile (default: nothing).
        should_stop: Asked after every chunk; True ends the run there, to be resumed later.
        limits: What may be spent on a paid backend.
        isolated: Decode in processes of their own, so that an image that crashes the decoder costs only its row.

    Raises:
        ConfigError: An option cannot be used, differs from the recorded one, or ``out`` is not empty or in use.
        InputError: ``folder`` cannot be read, or the files in ``out`` were changed.
        BundleError: The bundle cannot be used.
        BackendError: The head could not be run; what is done is recorded.
        OutputError: A file could not be written; what was recorded is intact.
    """
    model = ModelBundle.load(bundle)
    folder, out = _absolute(folder), _absolute(out)
    if not folder.is_dir():
        raise InputError(f"expected a folder of images; {str(folder)!r} is not a folder")
    with _output_folder(out, folder):
        recorded = _recorded(out, resume)
        options = resolve(request or Request(), model, recorded.options if recorded else None)
        run = _Run(folder, out, model, options, workers or available_cores(), reporter or Silent(), should_stop, limits, isolated)
        return _go(run, recorded)


def _go(run: _Run, recorded: State | None) -> Outcome:
    started = time.monotonic()
    state = recorded or _new_state(run)
    if recorded:
        _check_same(recorded, run)
    try:
        state = _look(run, state) if state.segments else state
        if not state.complete:
            state = _work(run, state)
    except _StoppedError:
        pass
    summary = summary_of(state, run.bundle.labels)
    if state.complete:
        write_summary(run.out, summary)
    return Outcome(
        out=run.out,
        summary=summary,
        complete=state.complete,
        done=state.position.files,
        resumed_at=recorded.position.files if recorded else 0,
        seconds=time.monotonic() - started,
        review=state.tally.review,
        strangers=state.tally.strangers,
        failed=state.tally.failed,
    )


def _scope(run: _Run) -> str:
    """What paid executions belong to: the same options on the same folder replay what was paid, wherever the results go."""
    what = json.dumps([run.bundle.manifest.model_dump(mode="json")["files"], run.options.model_dump(), str(run.folder)], sort_keys=True)
    return f"score-{hashlib.sha256(what.encode()).hexdigest()[:24]}"


def _work(run: _Run, state: State) -> State:
    backend = open_engine(run.options, run.limits, _scope(run))
    with ExitStack() as stack:
        stack.enter_context(closing(backend))
        if (refiner := open_refiner(run.options, run.limits, _scope(run))) is not None:
            stack.enter_context(closing(refiner))
        classifier = stack.enter_context(HybridClassifier(run.bundle, backend, threshold=run.options.threshold))
        if backend.shots is not None and backend.seed is None:
            run.reporter.note(f"{backend.name} draws without a seed: another run gives other samples")
        if not state.segments:
            save_state(run.out, state)  # before the folder is listed: whoever resumes gets these options
            state = _look(run, state)
        with output_errors(run.out / SUMMARY):
            (run.out / SUMMARY).unlink(missing_ok=True)
        run.reporter.begin(state.total, state.position.files)
        return _score(run, state, HeadRunner(classifier, run.options.max_shots, refiner, run.options.refine_threshold))


def _score(run: _Run, state: State, runner: HeadRunner) -> State:
    bundle, options, position = run.bundle, run.options, state.position
    batches = plan_batches(run.out / LISTING, state.segments, position.listing, position.chunks, options.batch_size, options.chunk_size)
    with (
        closing(Seen(run.out, position.files)) as seen,
        ResultWriter(run.out, state, bundle.labels, bundle.head, seen, bundle.manifest.positive_label) as writer,
        closing(_chunks(run, runner, batches, seen, position.files)) as chunks,
    ):
        while not run.should_stop() and (chunk := next(chunks, None)):
            writer.append(chunk)
            run.reporter.advance(writer.state.position.files)
    return writer.state


def _chunks(run: _Run, runner: HeadRunner, batches: Iterator[Batch], seen: Seen, files: int) -> Generator[ScoredChunk, None, None]:
    spec, options = run.bundle.preprocess, run.options
    if options.tiles is not None:
        cut = Cut(spec, options.tiles, options.stride, options.batch_size)
        positive, quantile = run.bundle.manifest.positive_label, options.tile_quantile or 1.0
        with TileReader(run.folder, cut, seen, files, isolated=run.isolated) as reader:
            yield from score_tiled(runner, reader, batches, positive, quantile, run.should_stop, run.reporter.within)
        return
    with ExitStack() as stack:
        pool = stack.enter_context(_decoders(run)) if run.isolated and spec.depth is None else None
        decoder = stack.enter_context(Decoder(run.folder, spec, run.workers, pool))
        yield from score_batches(runner, decoder, batches, seen, files)


@contextmanager
def _decoders(run: _Run) -> Iterator[DecoderPool | None]:
    """Processes that decode; None, and a note, where the system does not grant them."""
    try:
        pool = DecoderPool(Job(run.bundle.preprocess, MAX_BYTES, MAX_PIXELS, _DECODE_SECONDS), run.workers)
    except OSError as error:
        run.reporter.note(f"images are decoded in this process, which a broken one may end: {error.strerror}")
        yield None
        return
    with closing(pool):
        yield pool


def _look(run: _Run, state: State) -> State:
    """List the files of the folder that are not listed yet, and record the list."""

    def found(files: int) -> None:
        run.reporter.found(files)
        if run.should_stop():
            raise _StoppedError

    walk = Walk(run.folder, exclude=run.out, suffixes=suffixes_of(run.bundle.preprocess))
    listing = run.out / LISTING
    start = state.segments[-1].end if state.segments else 0
    selection = Selection(run.options.exclude, run.options.shard)
    segment = write_segment(listing, start, unlisted(filter(selection, walk), listing, state.segments), found)
    if segment.files and state.segments:
        run.reporter.note(f"{segment.files:,} images are new in the folder since it was listed; they are scored after the others")
    segments = (*state.segments, segment) if segment.files or not state.segments else state.segments
    looked = state.model_copy(update={"segments": segments, "skipped": dict(sorted((walk.skipped + selection.skipped).items()))})
    if looked != state:
        save_state(run.out, looked)
    return looked


@contextmanager
def _output_folder(out: Path, folder: Path) -> Iterator[None]:
    """``out``, made if missing and held by this process; an empty one that was made here goes again if the body fails."""
    if out.exists() and (not out.is_dir() or out.samefile(folder)):
        raise ConfigError(f"the output must be a folder of its own; got {str(out)!r}")
    made = not out.exists()
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out):
            yield
    except BaseException:
        with suppress(OSError):
            if made:
                out.rmdir()
        raise


def _recorded(out: Path, resume: bool) -> State | None:
    if not resume:
        if any(out.iterdir()):
            raise ConfigError(f"{str(out)!r} is not empty; go on with its run by --resume, or give another output folder")
        return None
    state = load_state(out)
    if state is None and not holds_only_a_start(out):
        raise ConfigError(f"{str(out)!r} holds other files and no run to resume; give another output folder")
    return state


def _new_state(run: _Run) -> State:
    return State(folder=str(run.folder), bundle_sha256=_bundle_hash(run.bundle), versions=_versions(), options=run.options)


def _check_same(state: State, run: _Run) -> None:
    if state.folder != str(run.folder):
        raise ConfigError(f"the run was started on the folder {state.folder!r}, now: {str(run.folder)!r}; give another output folder")
    found = _bundle_hash(run.bundle)
    if state.bundle_sha256 != found:
        raise ConfigError(
            f"the run was started with another bundle (manifest SHA-256 recorded: {state.bundle_sha256[:12]}…, now: {found[:12]}…); "
            "give that one, or another output folder"
        )
    if state.versions != _versions():
        run.reporter.note(f"the run was started with {state.versions}, now: {_versions()}; the last digits of the new rows may differ")


def _bundle_hash(bundle: ModelBundle) -> str:
    try:
        return hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {MANIFEST} of the bundle {str(bundle.path)!r}: {error.strerror}") from error


def _versions() -> dict[str, str]:
    return {"hqtl": __version__, **{name: version(name) for name in ("numpy", "onnxruntime", "pillow")}}


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  (not resolve: a link may take the place of a folder that was moved)
