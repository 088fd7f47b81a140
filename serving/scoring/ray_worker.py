"""What a worker of a Ray cluster does: one chunk, with the same code as a run on one machine.

It is sent paths and options, and gives back what :mod:`serving.scoring.wire` packs. It never sees an account or a token: a head
that costs money runs where the run was started.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hqtl_common.bundle import ModelBundle
from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import ConfigError, HqtlError, InputError
from serving.errors import ConflictError
from serving.scoring.heads import HeadRunner
from serving.scoring.listing import Batch
from serving.scoring.local_engine import Featurizer
from serving.scoring.options import Options, open_engine
from serving.scoring.progress import Silent
from serving.scoring.rows import text_of
from serving.scoring.run import Run, Where, bundle_hash, package_versions
from serving.scoring.unscored import Unscored
from serving.scoring.wire import error_of, pack, pack_error

__all__ = ["Worker", "job_of", "score_rows"]

_TELL_SECONDS = 5.0
_READERS = 8  # files that are opened at once, where storage is far away

_workers: dict[str, Worker] = {}  # of this process, by their job; at most one

Ask = Callable[[int, dict[str, Any]], dict[str, Any]]
Tell = Callable[[int, str], None]


def job_of(run: Run, *, head: bool) -> str:
    """What every worker of a run is told, JSON.

    Args:
        run: The run.
        head: Whether workers run the head.
    """
    return json.dumps(
        {
            "folder": str(run.folder),
            "bundle": str(run.bundle.path.absolute()),
            "bundle_sha256": bundle_hash(run.bundle),
            "options": run.options.model_dump(),
            "versions": package_versions(),
            "isolated": run.where.isolated,
            "head": head,
        }
    )


def score_rows(table: Any, job: str, desk: Any) -> Any:
    """Ray Data's function: an Arrow table of chunks as JSON → one of chunks as packed.

    Args:
        table: Column ``chunk``; see :meth:`Worker.score`.
        job: See :func:`job_of`.
        desk: The handle of a :class:`serving.scoring.ray_desk.Desk`.
    """
    import pyarrow
    import ray

    def ask(chunk: int, question: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = ray.get(desk.ask.remote(chunk, question))
        return answer

    def tell(done: int, kind: str) -> None:
        desk.tell.remote(done, kind)

    packed = [answer for chunk in table["chunk"].to_pylist() for answer in _answers(job, json.loads(chunk), ask, tell)]
    return pyarrow.table({"packed": pyarrow.array(packed, pyarrow.binary())})


def _answers(job: str, chunk: dict[str, Any], ask: Ask, tell: Tell) -> list[bytes]:
    try:
        return _worker(job).score(chunk, ask, tell)
    except HqtlError as error:
        return [pack_error(error)]


def _worker(job: str) -> Worker:
    """Made once per process and run."""
    if job not in _workers:
        for other in _workers.values():
            other.close()
        _workers.clear()
        _workers[job] = Worker(json.loads(job))
    return _workers[job]


class _Notes(Silent):
    """Keeps what is to be told with the answers, and tells now and then how far the file in work is."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tell: Tell = lambda *_: None
        self._told = time.monotonic()

    def within(self, done: int, kind: str = "tile") -> None:
        """See :class:`serving.scoring.progress.Reporter`."""
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._told = time.monotonic()
            self.tell(done, kind)

    def note(self, message: str) -> None:
        """See :class:`serving.scoring.progress.Reporter`."""
        self.notes.append(f"{socket.gethostname()}: {message}")


class Worker:
    """The model and the decoders of one process.

    Args:
        job: See :func:`job_of`.

    Raises:
        InputError: This machine does not see the folder or the bundle, or another bundle.
        BundleError: The bundle cannot be used.
        ConfigError: This machine has other versions of the packages that decide the last digits.
        BackendError: The backend cannot be opened here.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        _check_versions(job["versions"])
        folder, bundle = Path(job["folder"]), _bundle(Path(job["bundle"]), job["bundle_sha256"])
        if not folder.is_dir():
            raise InputError(
                f"the machine {socket.gethostname()} does not see {str(folder)!r}; share it with every node under the same path"
            )
        options = Options.model_validate(job["options"])
        self._notes = _Notes()
        run = Run(folder, Path(), bundle, options, Where("ray", workers=1, isolated=job["isolated"]), self._notes, lambda: False, None)
        with ExitStack() as stack:
            backend = open_engine(options, None, "") if job["head"] else None
            if backend is not None:
                stack.callback(backend.close)
            classifier = stack.enter_context(HybridClassifier(bundle, backend, threads=1, threshold=options.threshold))
            self._runner = HeadRunner(classifier, options.max_shots) if backend is not None else None
            self._featurizer = stack.enter_context(Featurizer(run, classifier))
            self._stack = stack.pop_all()

    def score(self, chunk: dict[str, Any], ask: Ask, tell: Tell = lambda *_: None) -> list[bytes]:
        """One chunk; several pieces where it holds stacks.

        Args:
            chunk: ``number`` of the first file, and ``batches``: the fields of each :class:`serving.scoring.listing.Batch`.
            ask: Gives the answer of the desk to a question about a chunk.
            tell: Told now and then how far the file in work is.

        Raises:
            HqtlError: It cannot be scored.
        """
        self._notes.tell = tell
        batches = [Batch(**{**batch, "paths": tuple(map(bytes.fromhex, batch["paths"]))}) for batch in chunk["batches"]]
        paths = [path for batch in batches for path in batch.paths]
        with ThreadPoolExecutor(_READERS) as pool:
            hashes = list(pool.map(self._featurizer.hash_of, paths))
        missing = [index for index, sha256 in enumerate(hashes) if sha256 is None and not self._featurizer.exists(paths[index])]
        answer = ask(batches[0].chunk, {"host": socket.gethostname(), "hashes": hashes, "missing": missing})
        seen = _Answered(answer, chunk["number"], paths)
        return [self._packed(unscored) for unscored in self._featurizer.chunks(iter(batches), seen, chunk["number"])]

    def _packed(self, unscored: Unscored) -> bytes:
        result = self._runner.evaluate(unscored.parts, unscored.chunk) if self._runner is not None and unscored.parts else None
        notes, self._notes.notes = self._notes.notes, []
        return pack(unscored, result, notes)

    def close(self) -> None:
        """End the processes that decode, and free the model."""
        self._stack.close()


class _Answered:
    """The desk's answer in the place of :class:`serving.scoring.seen.Seen`.

    Raises:
        HqtlError: The answer is that the run cannot go on.
    """

    def __init__(self, answer: dict[str, Any], number: int, paths: list[bytes]) -> None:
        if "error" in answer:
            raise error_of(*answer["error"])
        self._hashes: list[str | None] = answer["hashes"]
        self._firsts: list[int | None] = answer["firsts"]
        self._number, self._paths = number, paths

    def first(self, sha256: str | None, number: int) -> int | None:
        """See :meth:`serving.scoring.seen.Seen.first`.

        Raises:
            ConflictError: The file has changed since it was asked for.
        """
        place = number - self._number
        if sha256 != self._hashes[place]:
            raise ConflictError(f"{text_of(self._paths[place])!r} was changed while it was scored; run the same command with --resume")
        return self._firsts[place]


def _bundle(path: Path, sha256: str) -> ModelBundle:
    where = f"the machine {socket.gethostname()}"
    if not path.is_dir():
        raise InputError(f"{where} does not see the bundle {str(path)!r}; share it with every node under the same path")
    bundle = ModelBundle.load(path)
    if bundle_hash(bundle) != sha256:
        raise InputError(f"{where} has another bundle at {str(path)!r}; every node needs the same one")
    return bundle


def _check_versions(wanted: dict[str, str]) -> None:
    if (found := package_versions()) != wanted:
        raise ConfigError(f"the machine {socket.gethostname()} has {found}, the run {wanted}; install the same versions on every node")
