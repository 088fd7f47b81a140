"""Where a study ran: packages, processor, and when."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hqtl_common import __version__

__all__ = ["environment"]

_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pennylane", "qiskit", "qiskit-aer", "qiskit-ibm-runtime")


def environment(workers: int) -> dict[str, Any]:
    """JSON-ready: versions, processor, cores, the number of worker processes, and today's date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hqtl": __version__,
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "workers": workers,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
