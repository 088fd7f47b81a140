"""The connection to a Ray cluster, as long as a run needs it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hqtl_common.errors import ConfigError
from hqtl_common.stages import available_cores
from serving.scoring.ray_desk import Desk
from serving.scoring.run import Where

__all__ = ["check_cluster", "connected", "in_order", "open_desk"]

_WAITING = 100_000  # workers that may wait at the desk at the same time
_TOKENS = ("QISKIT_IBM_TOKEN",)  # no worker needs one
_KNOCK_SECONDS = 10.0  # until a cluster answers; Ray itself tries for minutes


def check_cluster(where: Where) -> None:
    """Refuse to begin without Ray, or where nobody listens at the address.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    _import_ray()
    address = _address(where)
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not (host and port.isdecimal()):
        raise ConfigError(f"give the address HOST:PORT of a Ray cluster that this machine is part of; got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster answers at {address!r} ({error}); start one, or leave out the address") from error


@contextmanager
def connected(where: Where) -> Iterator[Any]:
    """The module ``ray``, connected: to a cluster, or to one of this machine that ends with the block.

    A connection that this process has already is used, and stays.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield ray
        return
    _connect(ray, where)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def open_desk(ray: Any) -> Iterator[Any]:
    """The handle of a :class:`serving.scoring.ray_desk.Desk` on this machine."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(num_cpus=0, max_concurrency=_WAITING, scheduling_strategy=here)(Desk).remote()
    try:
        yield desk
    finally:
        ray.kill(desk)


@contextmanager
def in_order(ray: Any) -> Iterator[None]:
    """Data sets that are made in the block give their blocks back in order, and show no bars of their own."""
    context = ray.data.DataContext.get_current()
    options = context.execution_options
    before = options.preserve_order, context.enable_progress_bars
    options.preserve_order, context.enable_progress_bars = True, False
    try:
        yield
    finally:
        options.preserve_order, context.enable_progress_bars = before


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a run leaves the house
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what comes in a later Ray; else it warns
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(
            f"the engine ray needs packages that are not installed ({error}); pip install 'hqtl[ray]', or take --engine local"
        ) from error
    return ray


def _address(where: Where) -> str:
    return where.ray_address or os.environ.get("RAY_ADDRESS") or "local"


def _connect(ray: Any, where: Where) -> None:
    address = _address(where)
    local = {} if address != "local" else {"num_cpus": where.workers or available_cores(), "include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    tokens = {name: os.environ.pop(name) for name in _TOKENS if name in os.environ}  # a cluster that begins here would inherit them
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what went wrong is said by the run, in one line
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"no Ray cluster answers at {address!r}: {' '.join(str(error).split())[:500]}") from error
    finally:
        os.environ.update(tokens)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own, which would end the run in the middle of a chunk
