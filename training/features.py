"""Features of a data set: computed once by the frozen backbone, then read from a cache."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hqtl_common.errors import ConfigError
from hqtl_common.specs import PreprocessSpec, spec_digest
from training.augment import Variant
from training.backbones import Backbone
from training.data import Sample
from training.decode import decode_batches

__all__ = ["BATCH_SIZE", "FeatureCache", "FeatureTable", "default_cache_folder", "extract_features"]

F32 = NDArray[np.float32]
Progress = Callable[[int], None]
T = TypeVar("T")

# Always full: a shorter last batch is padded, so that a feature does not depend on what else was in its batch.
BATCH_SIZE = 32

_TIMEOUT_S = 60.0  # waits for another process that writes
_DAMAGED = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features of N samples.

    Args:
        features: (N, F) float32; rows of unusable images are zero.
        errors: Position → why the image cannot be used.
        num_cached: How many rows came from the cache.
    """

    features: F32
    errors: dict[int, str]
    num_cached: int


class FeatureCache:
    """One SQLite file per (backbone weights, preprocessing): content hash of an image → its features.

    Every row carries a hash of its own; a row that does not match counts as absent, and a file that is no database
    any more is set aside and begun anew. Two processes may use one cache.

    Args:
        folder: Where caches lie.
        backbone: Its name and weights are part of the key.
        spec: Preprocessing, part of the key.

    Raises:
        ConfigError: The folder or the file cannot be used.
    """

    def __init__(self, folder: Path, backbone: Backbone, spec: PreprocessSpec) -> None:
        self.path = folder / f"features-{backbone.name.replace(':', '-')}-{spec_digest(spec, backbone.name, backbone.digest)[:16]}.sqlite"
        self._width = backbone.feature_width
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error
        self._transact(lambda connection: None)

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def get(self, keys: Sequence[str]) -> dict[str, F32]:
        """The features (F,) of the keys that are there and undamaged.

        Raises:
            ConfigError: The file cannot be read now.
        """
        rows = self._transact(lambda connection: _select(connection, keys))
        return {key: np.frombuffer(value, dtype="<f4") for key, value, check in rows if self._is_whole(key, value, check)}

    def put(self, items: Sequence[tuple[str, F32]]) -> None:
        """Store features (F,) by key.

        Raises:
            ConfigError: The file cannot be written now.
        """
        values = [(key, value.astype("<f4").tobytes()) for key, value in items]
        rows = [(key, value, _digest(key, value)) for key, value in values]
        self._transact(lambda connection: connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows))

    def _is_whole(self, key: str, value: object, check: object) -> bool:
        return isinstance(value, bytes) and len(value) == 4 * self._width and _digest(key, value) == check

    def _transact(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Run an action on the database; a damaged one is set aside and the action run on a new one."""
        try:
            try:
                return self._attempt(action)
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:  # busy, full, not writable: nothing wrong with it
                    raise
            self._set_aside()
            return self._attempt(action)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _attempt(self, action: Callable[[sqlite3.Connection], T]) -> T:
        # Not in WAL mode: switching to it fails at once, without waiting, where two processes make the file together.
        with closing(sqlite3.connect(self.path, timeout=_TIMEOUT_S, isolation_level="IMMEDIATE")) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL)")
            return action(connection)

    def _set_aside(self) -> None:
        self.path.with_name(self.path.name + "-journal").unlink(missing_ok=True)  # it would be played back into the new file
        self.path.replace(self.path.with_suffix(".corrupt"))

    def _unusable(self, error: Exception) -> ConfigError:
        return ConfigError(f"the feature cache {str(self.path)!r} cannot be used ({error}); mend it, or give another with --cache-dir")


def default_cache_folder() -> Path:
    """``$HQTL_CACHE``, else ``$XDG_CACHE_HOME/hqtl``, else ``~/.cache/hqtl``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HQTL_CACHE") or Path(base) / "hqtl")


def extract_features(
    samples: Sequence[Sample],
    hashes: Sequence[str],
    backbone: Backbone,
    spec: PreprocessSpec,
    *,
    cache: FeatureCache | None = None,
    variant: Variant | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> FeatureTable:
    """Features of all samples, each distinct image computed at most once.

    Args:
        samples: N samples.
        hashes: N content hashes.
        backbone: The frozen network.
        spec: Preprocessing.
        cache: Where known features are read and new ones kept.
        variant: Compute the features of altered copies instead.
        device: torch's device for the backbone.
        progress: Called with the number of images done since the last call.
    """
    keys = list(hashes) if variant is None else [variant.key(content) for content in hashes]
    known = cache.get(keys) if cache else {}
    times = Counter(keys)
    num_cached = sum(key in known for key in keys)
    if progress:
        progress(num_cached)
    failed: dict[str, str] = {}
    todo = {key: position for position, key in enumerate(keys) if key not in known}
    positions = list(todo.values())
    alter = None if variant is None else _alteration(variant, [hashes[position] for position in positions])
    backbone.network.to(device)
    for batch in decode_batches([samples[position].path for position in positions], spec, BATCH_SIZE, alter):
        features = _forward(backbone, batch.pixels, device)
        fresh = list(zip((keys[positions[index]] for index in batch.positions), features, strict=True))
        known.update(fresh)
        failed.update({keys[positions[index]]: message for index, message in batch.errors.items()})
        if cache:
            cache.put(fresh)
        if progress:
            progress(sum(times[keys[positions[index]]] for index in (*batch.positions, *batch.errors)))
    blank = np.zeros(backbone.feature_width, dtype=np.float32)
    table = np.stack([known.get(key, blank) for key in keys]) if keys else np.zeros((0, backbone.feature_width), np.float32)
    return FeatureTable(table, {i: failed[key] for i, key in enumerate(keys) if key in failed}, num_cached)


def _alteration(variant: Variant, contents: Sequence[str]) -> Callable[[int, F32], F32]:
    return lambda index, pixels: variant.apply(pixels, contents[index])


def _forward(backbone: Backbone, pixels: F32, device: str) -> F32:
    """Pixels (k, 3, …), k ≤ BATCH_SIZE → features (k, F)."""
    padded = np.zeros((BATCH_SIZE, *pixels.shape[1:]), dtype=np.float32)
    padded[: len(pixels)] = pixels
    with torch.inference_mode():
        features = backbone.network(torch.from_numpy(padded).to(device)).cpu().numpy()
    result: F32 = np.ascontiguousarray(features[: len(pixels)], dtype=np.float32)
    return result


def _select(connection: sqlite3.Connection, keys: Sequence[str]) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for start in range(0, len(keys), 500):
        part = list(keys[start : start + 500])
        found += connection.execute(f"SELECT key, value, digest FROM features WHERE key IN ({','.join('?' * len(part))})", part)
    return found


def _digest(key: str, value: bytes) -> bytes:
    return hashlib.blake2b(key.encode() + value, digest_size=16).digest()
