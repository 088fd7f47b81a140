"""Deep grey values → [0, 1] by a range that the file declares; a range is never guessed from the values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import ImageDecodeError

__all__ = ["to_unit_values", "usable_range"]

_SMIN_SMAX, _MIN_MAX = (340, 341), (280, 281)  # TIFF tags SMin/SMaxSampleValue, Min/MaxSampleValue
# At 16 bits only a whole bit depth is a declaration: some writers put this picture's own extremes into these tags.
_BIT_DEPTHS = frozenset((0.0, 2.0**bits - 1) for bits in range(8, 17))
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def to_unit_values(values: NDArray[np.float32], tags: Mapping[int, Any], kind: str) -> NDArray[np.float32]:
    """Grey values of any shape, scaled in place to [0, 1] by their declared range.

    Args:
        values: What the file holds.
        tags: TIFF tags by number; empty for other formats.
        kind: ``"16-bit"`` (unsigned), ``"32-bit"`` or ``"float"``.

    Raises:
        ImageDecodeError: A value is not a finite number, or the range of 32-bit or float values is undeclared.
    """
    low, high = _declared_range(tags, kind)
    if not np.isfinite(values).all():
        raise ImageDecodeError("the image holds values that are not finite numbers")
    values -= np.float32(low)
    values /= np.float32(high - low)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts these only at 8 bits
        np.subtract(1, values, out=values)
    return np.clip(values, 0, 1, out=values)


def usable_range(low: float, high: float) -> tuple[float, float] | None:
    """The range, or None where float32 values cannot be scaled by it: empty, upside down, infinite, or too narrow or wide."""
    with np.errstate(over="ignore", invalid="ignore"):
        width = np.float32(high - low)
    return (low, high) if math.isfinite(low) and math.isfinite(high) and np.finfo(np.float32).tiny <= width < math.inf else None


def _declared_range(tags: Mapping[int, Any], kind: str) -> tuple[float, float]:
    if kind == "16-bit":
        full = 2.0 ** int(np.ravel(tags.get(_BITS_PER_SAMPLE, 16))[0]) - 1
        declared = (_tagged_range(tags, *pair) for pair in (_SMIN_SMAX, _MIN_MAX))
        return next((found for found in declared if found in _BIT_DEPTHS), (0.0, full))
    if found := _tagged_range(tags, *_SMIN_SMAX):
        return found
    raise ImageDecodeError(
        f"the value range of a {kind} image is unknown: declare it in the TIFF tags "
        "SMinSampleValue and SMaxSampleValue, or save the image as 8- or 16-bit grey"
    )


def _tagged_range(tags: Mapping[int, Any], low_tag: int, high_tag: int) -> tuple[float, float] | None:
    if high_tag not in tags:
        return None
    low, high = float(np.ravel(tags.get(low_tag, 0))[0]), float(np.ravel(tags[high_tag])[0])
    return usable_range(low, high)
