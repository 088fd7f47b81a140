"""Score every image of a folder: a run that can be killed at any moment and goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from hqtl_common.backends.base import Backend
from hqtl_common.backends.opening import Limits
from hqtl_common.bundle import ModelBundle
from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import ConfigError, InputError
from hqtl_common.providers import CPU
from serving.scoring.engines import engine_of
from serving.scoring.half_done import HalfDone
from serving.scoring.heads import HeadRunner
from serving.scoring.listing import LISTING, Selection, Walk, plan_batches, unlisted, write_segment
from serving.scoring.local_engine import with_decoders
from serving.scoring.options import Request, open_engine, open_refiner, resolve
from serving.scoring.outcome import Outcome
from serving.scoring.outputs import ResultWriter
from serving.scoring.progress import Reporter, Silent
from serving.scoring.run import Run, Where, bundle_hash
from serving.scoring.seen import Seen
from serving.scoring.stacks import suffixes_scored
from serving.scoring.state import SUMMARY, State, holds_only_a_start, load_state, save_state
from serving.scoring.storage import locked, output_errors
from serving.scoring.summary import summary_of, write_summary

__all__ = ["outcome_of", "output_folder", "recorded_run", "score_folder"]


class _StoppedError(Exception):
    """The caller asked to stop while files were being listed."""


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
    engine: str = "local",
    ray_address: str | None = None,
    providers: Sequence[str] = CPU,
) -> Outcome:
    """Write one row per image below ``folder`` to ``scores.jsonl`` and ``scores.csv`` in ``out``.

    Args:
        folder: Where the images are.
        bundle: The model.
        out: Folder of the results; missing or empty unless ``resume``.
        request: Options that decide the answers.
        resume: Go on with the run recorded in ``out``; where none was started, start one.
        workers: How much is done at once (default: as many files are decoded as this process may use cores).
        reporter: What is told meanwhile (default: nothing).
        should_stop: Asked after every chunk; True ends the run there, to be resumed later.
        limits: What may be spent on a paid backend.
        isolated: Decode in processes of their own, so that an image that crashes the decoder costs only its row.
        engine: Where the work is done, see :mod:`serving.scoring.engines`; every one gives the same files, and a run may change it.
        ray_address: Of a Ray cluster; None: $RAY_ADDRESS, else one is started on this machine.
        providers: Where the backbone computes, see :data:`hqtl_common.providers.PROVIDERS`; the preferred one first.

    Raises:
        ConfigError: An option cannot be used, differs from the recorded one, or ``out`` is not empty or in use.
        InputError: ``folder`` cannot be read, or the files in ``out`` were changed.
        BundleError: The bundle cannot be used.
        BackendError: The head could not be run; what is done is recorded.
        OutputError: A file could not be written; what was recorded is intact.
    """
    model = ModelBundle.load(bundle)
    folder, out = _absolute(folder), _absolute(out)
    engine_of(engine).check(where := Where(engine, workers, isolated, ray_address, tuple(providers)))
    if not folder.is_dir():
        raise InputError(f"expected a folder of images; {str(folder)!r} is not a folder")
    with output_folder(out, folder):
        recorded = recorded_run(out, resume)
        options = resolve(request or Request(), model, recorded.options if recorded else None)
        run = Run(folder, out, model, options, where, reporter or Silent(), should_stop, limits)
        return _go(run, recorded)


def _go(run: Run, recorded: State | None) -> Outcome:
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
    if state.complete:
        HalfDone(run.out).remove()
    return outcome_of(run.out, state, recorded, run.bundle.labels, started)


def outcome_of(out: Path, state: State, recorded: State | None, labels: Sequence[str], started: float) -> Outcome:
    """Where a run stands; the summary of a complete one is written.

    Args:
        out: The output folder.
        state: Its record now.
        recorded: Its record before; None for a new run.
        labels: The bundle's.
        started: ``time.monotonic()`` of its start.

    Raises:
        OutputError: The file system refused.
    """
    summary = summary_of(state, labels)
    if state.complete:
        write_summary(out, summary)
    return Outcome(
        out=out,
        summary=summary,
        complete=state.complete,
        done=state.position.rows,
        resumed_at=recorded.position.rows if recorded else 0,
        seconds=time.monotonic() - started,
        review=state.tally.review,
        strangers=state.tally.strangers,
        failed=state.tally.failed,
    )


def _scope(run: Run) -> str:
    """What paid executions belong to: the same options on the same folder replay what was paid, wherever the results go."""
    what = json.dumps([run.bundle.manifest.model_dump(mode="json")["files"], run.options.model_dump(), str(run.folder)], sort_keys=True)
    return f"score-{hashlib.sha256(what.encode()).hexdigest()[:24]}"


def _work(run: Run, state: State) -> State:
    backend = open_engine(run.options, run.limits, _scope(run))
    with ExitStack() as stack:
        stack.enter_context(closing(backend))
        if (refiner := open_refiner(run.options, run.limits, _scope(run))) is not None:
            stack.enter_context(closing(refiner))
        run = stack.enter_context(with_decoders(run))
        classifier = stack.enter_context(_open_classifier(run, backend))
        if backend.shots is not None and backend.seed is None:
            run.reporter.note(f"{backend.name} draws without a seed: another run gives other samples")
        if not state.segments:
            save_state(run.out, state)  # before the folder is listed: whoever resumes gets these options
            state = _look(run, state)
        with output_errors(run.out / SUMMARY):
            (run.out / SUMMARY).unlink(missing_ok=True)
        run.reporter.begin(state.total, state.position.files)
        return _score(run, state, HeadRunner(classifier, run.options.max_shots, refiner, run.options.refine_threshold))


def _open_classifier(run: Run, backend: Backend) -> HybridClassifier:
    options = run.options
    return HybridClassifier(run.bundle, backend, threshold=options.threshold, providers=run.where.providers, max_batch=options.batch_size)


def _score(run: Run, state: State, runner: HeadRunner) -> State:
    bundle, options, position = run.bundle, run.options, state.position
    sizes = options.batch_size, options.chunk_size
    batches = plan_batches(run.out / LISTING, state.segments, position.listing, position.chunks, *sizes, position.within)
    with (
        closing(Seen(run.out, position.files, started=position.within.part > 0)) as seen,
        ResultWriter(run.out, state, bundle.labels, bundle.head, seen, bundle.manifest.positive_label) as writer,
        closing(engine_of(run.where.engine).chunks(run, runner, batches, seen, position.files)) as chunks,
    ):
        while not run.should_stop() and (chunk := next(chunks, None)):
            writer.append(chunk)
            run.reporter.advance(writer.state.position.files)
    return writer.state


def _look(run: Run, state: State) -> State:
    """List the files of the folder that are not listed yet, and record the list."""

    def found(files: int) -> None:
        run.reporter.found(files)
        if run.should_stop():
            raise _StoppedError

    walk = Walk(run.folder, exclude=run.out, suffixes=suffixes_scored(run.bundle.preprocess))
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
def output_folder(out: Path, folder: Path) -> Iterator[None]:
    """``out``, made if missing and held by this process; an empty one that was made here goes again if the body fails.

    Raises:
        ConfigError: It is the folder of the images, no folder at all, or in use.
        OutputError: The file system refused.
    """
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


def recorded_run(out: Path, resume: bool) -> State | None:
    """The record of the run in an output folder to go on from, None for a new one.

    Raises:
        ConfigError: The folder is not empty, or holds something else.
        InputError: The record cannot be used.
    """
    if not resume:
        if any(out.iterdir()):
            raise ConfigError(f"{str(out)!r} is not empty; go on with its run by --resume, or give another output folder")
        return None
    state = load_state(out)
    if state is None and not holds_only_a_start(out):
        raise ConfigError(f"{str(out)!r} holds other files and no run to resume; give another output folder")
    return state


def _new_state(run: Run) -> State:
    return State(folder=str(run.folder), bundle_sha256=bundle_hash(run.bundle), versions=run.versions, options=run.options)


def _check_same(state: State, run: Run) -> None:
    if state.folder != str(run.folder):
        raise ConfigError(f"the run was started on the folder {state.folder!r}, now: {str(run.folder)!r}; give another output folder")
    found = bundle_hash(run.bundle)
    if state.bundle_sha256 != found:
        raise ConfigError(
            f"the run was started with another bundle (manifest SHA-256 recorded: {state.bundle_sha256[:12]}…, now: {found[:12]}…); "
            "give that one, or another output folder"
        )
    if state.versions != (now := run.versions):
        run.reporter.note(f"the run was started with {state.versions}, now: {now}; the last digits of the new rows may differ")


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  (not resolve: a link may take the place of a folder that was moved)
