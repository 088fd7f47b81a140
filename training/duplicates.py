"""Images that show the same: equal bytes, or the same picture saved, scaled or exposed anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Fingerprint", "fingerprint", "joined", "near_pairs"]

_SIDE = 16  # the difference hash has 16 × 16 bits
_THUMBNAIL = 32
_MAX_DISTANCE = _SIDE - 1  # with 16 chunks of 16 bits, two hashes this close agree in at least one whole chunk
_MIN_CORRELATION = 0.97
_MIN_CONTRAST = 1.5  # standard deviation of grey levels below which a thumbnail shows nothing to compare
_BITS = np.array([number.bit_count() for number in range(256)], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is kept of an image to find it again.

    Args:
        bits: (32,) uint8, 256 bits: whether the mean of each of 16 × 16 fields is below that of its right neighbour.
        thumbnail: (1024,) uint8, means of 32 × 32 fields.
    """

    bits: NDArray[np.uint8]
    thumbnail: NDArray[np.uint8]


def fingerprint(image: Image.Image) -> Fingerprint:
    """The difference hash and thumbnail of an image in mode ``RGB``, or ``F`` with values in [0, 1]."""
    grey = image.convert("L") if image.mode != "F" else Image.fromarray((np.asarray(image) * 255).astype(np.uint8))
    means = np.asarray(grey.resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), dtype=np.int16)
    small = np.asarray(grey.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX))
    return Fingerprint(np.packbits(np.diff(means, axis=1) > 0), small.ravel())


def near_pairs(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """Positions (i < j) of images that look the same, ascending.

    Two images are a pair if at most 15 of their 256 bits differ and their thumbnails correlate by 0.97 or more. Candidates
    come from tables of equal 16-bit chunks (by the pigeonhole principle no pair is missed), so the work grows with the number
    of similar images and not with the square of all.

    Args:
        fingerprints: N fingerprints.
    """
    if len(fingerprints) < 2:
        return []
    bits = np.stack([item.bits for item in fingerprints])
    thumbnails = np.stack([item.thumbnail for item in fingerprints]).astype(np.float32)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    contrast = thumbnails.std(axis=1)
    shown = contrast >= _MIN_CONTRAST
    thumbnails /= np.where(shown, contrast, 1)[:, None]
    found: set[tuple[int, int]] = set()
    for chunk in np.ascontiguousarray(bits).view(np.uint16).T:
        for members in _equal(chunk, np.flatnonzero(shown)):
            found.update(_close(members, bits))
    return sorted((i, j) for i, j in found if thumbnails[i] @ thumbnails[j] >= _MIN_CORRELATION * thumbnails.shape[1])


def joined(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The sets of two or more among ``count`` things that pairs connect, each ascending, in the order of their first members."""
    parent = list(range(count))

    def root_of(item: int) -> int:
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    for one, other in pairs:
        low, high = sorted((root_of(one), root_of(other)))
        parent[high] = low
    members: dict[int, list[int]] = {}
    for item in range(count):
        members.setdefault(root_of(item), []).append(item)
    return [group for group in members.values() if len(group) > 1]


def _equal(chunk: NDArray[np.uint16], positions: NDArray[np.intp]) -> Iterable[NDArray[np.intp]]:
    """Groups of two or more positions whose chunks are equal."""
    order = positions[np.argsort(chunk[positions], kind="stable")]
    starts = np.flatnonzero(np.diff(chunk[order].astype(np.int32), prepend=-1))
    return (order[start:end] for start, end in pairwise([*starts.tolist(), len(order)]) if end - start > 1)


def _close(members: NDArray[np.intp], bits: NDArray[np.uint8]) -> Iterable[tuple[int, int]]:
    for number, one in enumerate(members[:-1]):
        others = members[number + 1 :]
        distance = _BITS[bits[others] ^ bits[one]].sum(axis=1)
        yield from ((min(one, other), max(one, other)) for other in others[distance <= _MAX_DISTANCE].tolist())
