"""Python's garbage collector in a worker: what stays as long as the process is not looked through again and again.

A full collection stops every thread while it walks all objects, and most of them are imported packages; it can come in the middle of any
request.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["exempt", "exempt_imports"]

_MANY = 50


def exempt() -> None:
    """Leave everything that exists now out of later collections; to be called when a process has started."""
    gc.collect()
    gc.freeze()


@contextmanager
def exempt_imports() -> Iterator[None]:
    """Leave out what is imported within as well, in a process that has called :func:`exempt`; others keep their collector as it is."""
    before = len(sys.modules)
    yield
    if gc.get_freeze_count() and len(sys.modules) - before > _MANY:
        exempt()
