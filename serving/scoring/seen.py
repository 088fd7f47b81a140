"""Which bytes were scored before, and where their row stands: an SQLite file beside the results, so that memory stays flat."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from hqtl_common.errors import InputError
from serving.errors import OutputError

__all__ = ["SEEN", "Earlier", "Seen"]

SEEN = "seen.sqlite"

_TABLES = """
CREATE TABLE IF NOT EXISTS claims (sha256 TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, start INTEGER NOT NULL, length INTEGER NOT NULL);
"""


_PLACE = """
INSERT INTO rows VALUES (?, ?, ?) ON CONFLICT (number) DO UPDATE SET length = excluded.start + excluded.length - start
"""


class Earlier(Protocol):
    """Knows which bytes came before."""

    def first(self, sha256: str | None, number: int) -> int | None:
        """See :meth:`Seen.first`."""


class Seen:
    """Every file's bytes by their hash; what it holds beyond ``files`` is forgotten when it is opened.

    Safe to use from several threads.

    Args:
        out: The output folder.
        files: Number of files whose rows are complete.
        started: Whether the next one has rows already.

    Raises:
        OutputError: The file system refused.
    """

    def __init__(self, out: Path, files: int, *, started: bool = False) -> None:
        self._path = out / SEEN
        self._lock = threading.Lock()
        with self._guarded():
            address = f"file:{quote(os.fsencode(self._path))}?nolock=1"  # the folder is locked, where its file system can
            self._database = sqlite3.connect(address, uri=True, check_same_thread=False)
            self._database.executescript(_TABLES)
            self._database.execute("DELETE FROM claims WHERE number >= ?", (files,))
            self._database.execute("DELETE FROM rows WHERE number >= ?", (files + started,))
            self._database.commit()

    def first(self, sha256: str | None, number: int) -> int | None:
        """The first file with these bytes if ``number`` is another one, else None; must be asked in the order of the files.

        Raises:
            OutputError: The file system refused.
        """
        if sha256 is None:
            return None
        with self._guarded():
            self._database.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", (sha256, number))
            (found,) = self._database.execute("SELECT number FROM claims WHERE sha256 = ?", (sha256,)).fetchone()
            return None if found == number else int(found)

    def place(self, number: int, start: int, length: int) -> None:
        """A row of a file stands at these bytes of the JSON Lines; its rows stand one behind the other.

        Raises:
            OutputError: The file system refused.
        """
        with self._guarded():
            self._database.execute(_PLACE, (number, start, length))

    def where(self, number: int) -> tuple[int, int]:
        """Start and length of the rows of a file, bytes.

        Raises:
            InputError: The file was removed or changed.
            OutputError: The file system refused.
        """
        with self._guarded():
            found = self._database.execute("SELECT start, length FROM rows WHERE number = ?", (number,)).fetchone()
        if found is None:
            raise InputError(f"{str(self._path)!r} was changed since it was written; give another output folder")
        return int(found[0]), int(found[1])

    def commit(self) -> None:
        """Make everything so far survive a crash of the machine.

        Raises:
            OutputError: The file system refused.
        """
        with self._guarded():
            self._database.commit()

    def close(self) -> None:
        """Close the file; what was not committed is forgotten."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except sqlite3.Error as error:
            raise OutputError(
                f"cannot write {str(self._path)!r}: {error}; make room or mend it, then run the same command with --resume"
            ) from error
