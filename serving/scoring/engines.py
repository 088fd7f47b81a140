"""Where the chunks of a run are scored: a lazy table, so that Ray is imported only where it is asked for.

Every engine gives the same chunks, so that the record of a run does not name one, and a run may go on with another.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterator
from typing import Protocol

from hqtl_common.errors import ConfigError
from serving.scoring.answers import ScoredChunk
from serving.scoring.heads import HeadRunner
from serving.scoring.listing import Batch
from serving.scoring.run import Run, Where
from serving.scoring.seen import Earlier

__all__ = ["ENGINES", "Engine", "engine_of"]

ENGINES = {
    "local": "serving.scoring.local_engine:LocalEngine",
    "ray": "serving.scoring.ray_engine:RayEngine",
}


class Engine(Protocol):
    """Scores chunk by chunk."""

    def check(self, where: Where) -> None:
        """Refuse what cannot work, before anything is written.

        Raises:
            ConfigError: A package is missing, or nobody answers at an address.
        """

    def chunks(
        self, run: Run, runner: HeadRunner, batches: Iterator[Batch], seen: Earlier, files: int
    ) -> Generator[ScoredChunk, None, None]:
        """The chunks in the order of the list.

        Args:
            run: What is scored and how.
            runner: What runs the head.
            batches: What is to be scored; starts with the first batch of a chunk.
            seen: Which bytes were scored before.
            files: Number of files before.

        Raises:
            HqtlError: It cannot go on; what was yielded before stands.
        """


def engine_of(name: str) -> Engine:
    """An engine by name.

    Raises:
        ConfigError: No such engine.
    """
    if name not in ENGINES:
        raise ConfigError(f"the engine is one of {', '.join(ENGINES)}; got {name!r}")
    module, _, attribute = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    return engine
