"""Files that survive a kill: whole writes, atomic replacement, truncation to a recorded length, one writer at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hqtl_common import durable
from hqtl_common.errors import ConfigError, InputError
from serving.errors import OutputError

__all__ = ["locked", "open_at", "output_errors", "replace_file", "write_all"]


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the body into an OutputError that names the file and what to do.

    Raises:
        OutputError: The body raised an OSError.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"cannot write {str(path)!r}: {reason}; make room or mend it, then run the same command with --resume") from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, however many calls it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one step: readers and a crash see the old file or the new one, never a mixture.

    Raises:
        OutputError: The file system refused.
    """
    with output_errors(path):
        durable.replace_file(path, data)


def open_at(path: Path, length: int) -> int:
    """Open ``path`` for writing (made if missing), cut to ``length`` bytes, and return its descriptor, standing at the end.

    Raises:
        InputError: The file is shorter than ``length``: it was changed after it was written.
        OutputError: The file system refused.
    """
    with output_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            found = os.fstat(descriptor).st_size
            if found < length:
                raise InputError(
                    f"{str(path)!r} has {found:,} bytes, but {length:,} were written: it was changed since; give another output folder"
                )
            os.ftruncate(descriptor, length)
            os.lseek(descriptor, length, os.SEEK_SET)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process alone; the lock ends with the process, however it ends.

    File systems that know no locks are used without one.

    Raises:
        ConfigError: Another process holds it.
        OutputError: The folder cannot be opened.
    """
    with output_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"another run is writing to {str(folder)!r}; wait for it, or give another output folder") from None
