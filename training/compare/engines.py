"""Where the tasks of a comparison run: a lazy table, so that Ray is imported only where it is asked for."""

from __future__ import annotations

import importlib
import os

from hqtl_common.errors import ConfigError
from training.compare.local_engines import Engine, EngineOptions

__all__ = ["ENGINES", "make_engine", "pick_engine"]

ENGINES = {
    "local": "training.compare.local_engines:LocalEngine",
    "process": "training.compare.local_engines:ProcessEngine",
    "ray": "training.compare.ray_engine:RayEngine",
}


def pick_engine(name: str, options: EngineOptions) -> str:
    """The engine's name; ``auto`` is ``ray`` where a cluster's address is given or configured, else ``process``."""
    if name != "auto":
        return name
    return "ray" if options.ray_address or os.environ.get("RAY_ADDRESS") else "process"


def make_engine(name: str, options: EngineOptions) -> Engine:
    """An engine by name.

    Raises:
        ConfigError: No such engine, or Ray is not installed or has no such cluster.
    """
    if name not in ENGINES:
        raise ConfigError(f"the engine is one of auto, {', '.join(ENGINES)}; got {name!r}")
    module, _, attribute = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)(options)
    return engine
