"""``python -m training.emulator``: the emulator as a process of its own, until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hqtl_common.durable import replace_file
from hqtl_common.errors import HqtlError
from training.emulator.faults import Fault
from training.emulator.options import EmulatorOptions
from training.emulator.service import start

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; prints the address, and writes it to the ready file once requests are answered."""
    parser = _parser()
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if given.verbose else logging.WARNING, stream=sys.stderr, format="%(asctime)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        faults = TypeAdapter(list[Fault]).validate_json(given.faults.read_bytes()) if given.faults else []
        with start(_options(given), port=given.port) as emulator:
            emulator.faults.add(*faults)
            print(emulator.address, flush=True)
            if given.ready_file:
                replace_file(given.ready_file, emulator.address.encode())
            stop.wait()
    except (HqtlError, OSError, ValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _options(given: argparse.Namespace) -> EmulatorOptions:
    return EmulatorOptions(
        backends=tuple(given.backend or EmulatorOptions().backends),
        seed=given.seed,
        time_factor=given.time_factor,
        queue_seconds=tuple(given.queue_seconds),
        submits_per_minute=given.submits_per_minute,
        open_seconds=None if math.isinf(given.open_seconds) else given.open_seconds,
        token_lifetime=given.token_lifetime,
        listing_lag=given.listing_lag,
    )


def _parser() -> argparse.ArgumentParser:
    default = EmulatorOptions()
    parser = argparse.ArgumentParser(prog="python -m training.emulator", description="A stand-in for the IBM Quantum Platform on loopback.")
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1 [0: any free one]")
    parser.add_argument("--backend", action="append", metavar="NAME", help=f"a machine with a snapshot; repeatable [{default.backends[0]}]")
    parser.add_argument("--seed", type=int, default=default.seed, help="of samples and queue delays [%(default)s]")
    parser.add_argument(
        "--time-factor", type=float, default=default.time_factor, help="real seconds per second of the platform [%(default)s: no waiting]"
    )
    parser.add_argument("--queue-seconds", type=float, nargs=2, default=default.queue_seconds, metavar=("MIN", "MAX"), help="wait of a job")
    parser.add_argument("--submits-per-minute", type=int, metavar="N", help="429 beyond [no limit]")
    parser.add_argument(
        "--open-seconds", type=float, default=default.open_seconds, help="QPU seconds of the Open plan, inf without limit [%(default)s]"
    )
    parser.add_argument("--token-lifetime", type=float, default=default.token_lifetime, help="seconds [%(default)s]")
    parser.add_argument("--listing-lag", type=float, default=default.listing_lag, help="seconds until listings show a job [%(default)s]")
    parser.add_argument("--faults", type=Path, metavar="FILE", help="JSON list of faults")
    parser.add_argument("--ready-file", type=Path, metavar="FILE", help="gets the address once requests are answered")
    parser.add_argument("--verbose", action="store_true", help="a line per request on standard error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
