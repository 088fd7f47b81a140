"""The tasks of a comparison on Ray: an existing cluster, or one of this machine that ends with the comparison.

Only Ray's core is used: a task per stack of runs, with retries where a worker dies. Run folders, images and the feature cache must
lie on storage that every node sees under the same path, and hqtl must be installed on every node.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from hqtl_common.errors import ConfigError
from training.compare.local_engines import EngineOptions, Work
from training.compare.task import Task, train_task

__all__ = ["RayEngine"]


class RayEngine:
    """See :class:`training.compare.local_engines.Engine`.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """

    name = "ray"

    def __init__(self, options: EngineOptions, work: Work = train_task) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "the engine ray needs a package that is not installed; pip install 'hqtl[ray]', or take --engine process"
            ) from error
        self._ray: Any = ray
        self._options, self._work = options, work
        self._address = options.ray_address or os.environ.get("RAY_ADDRESS")

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str | None]]:
        """See :class:`training.compare.local_engines.Engine`."""
        self._connect()
        try:
            options = self._options
            remote = self._ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=options.retries)(self._work)
            running = {remote.remote(task): task for task in tasks}
            while running:
                (done,), _ = self._ray.wait(list(running), num_returns=1)
                yield running.pop(done), self._death(done)
        finally:
            self._ray.shutdown()

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a training leaves the house
        local = {} if self._address else {"num_cpus": self._options.workers, "include_dashboard": False}
        try:
            self._ray.init(address=self._address or "local", log_to_driver=False, **local)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"no Ray cluster answers at {self._address or 'this machine'}: {error}") from error

    def _death(self, reference: Any) -> str | None:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return f"the worker on the cluster died: {' '.join(str(error).split())[:500]}"
        return None
