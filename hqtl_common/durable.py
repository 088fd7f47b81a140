"""Files that are replaced whole: readers and a crash see the old one or the new one, never a mixture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replace_file", "replacing"]


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one step, durably.

    Raises:
        OSError: The file system refused; what stood at ``path`` stands there still.
    """
    with replacing(path) as staging:
        staging.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file that takes the place of ``path`` when the block ends well, and goes away otherwise.

    Args:
        path: The place; its folder exists.

    Yields:
        ``.NAME.partial`` beside it.

    Raises:
        OSError: The file system refused; what stood at ``path`` stands there still.
    """
    staging = path.with_name(f".{path.name}.partial")
    try:
        yield staging
        _sync(staging)
        staging.replace(path)
    except BaseException:
        with suppress(OSError):
            staging.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some file systems cannot sync a folder
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
