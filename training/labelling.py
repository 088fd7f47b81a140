"""From the crack pixels of a mask to the class of a patch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hqtl_common.errors import ConfigError
from hqtl_common.rasters import Window

__all__ = ["LabelRule", "as_mask"]


@dataclass(frozen=True, slots=True)
class LabelRule:
    """When a patch counts as cracked, when as sound, and when as neither.

    Args:
        crack_pixels: A patch with at least so many crack pixels shows a crack.
        clear_pixels: A patch with at most so many pixels that are crack or to be ignored shows none; what lies between is ambiguous.
        threshold: Mask values (0 to 255) from here up are crack pixels.
        ignore_value: Mask value of pixels that are neither, for example of a faint trace; None without one.

    Raises:
        ConfigError: Numbers that leave no room for both classes, or no values of a mask.
    """

    crack_pixels: int = 80
    clear_pixels: int = 0
    threshold: int = 128
    ignore_value: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.clear_pixels < self.crack_pixels:
            raise ConfigError(
                f"expected 0 ≤ clear pixels < crack pixels, so that no patch is both; got {self.clear_pixels} and {self.crack_pixels}"
            )
        if not 1 <= self.threshold <= 255 or not 0 <= (self.ignore_value or 0) <= 255:
            raise ConfigError(
                f"a mask's threshold is 1 to 255 and its value to ignore 0 to 255; got {self.threshold} and {self.ignore_value}"
            )

    def count(self, mask: NDArray[np.uint8]) -> tuple[int, int]:
        """Crack pixels and ignored pixels of a mask (height, width)."""
        ignored = mask == self.ignore_value if self.ignore_value is not None else np.zeros(mask.shape, dtype=bool)
        return int(((mask >= self.threshold) & ~ignored).sum()), int(ignored.sum())

    def cracked(self, crack: float, ignored: float) -> bool | None:
        """Whether so many pixels make a crack; None where they decide nothing."""
        if crack >= self.crack_pixels:
            return True
        return False if crack + ignored <= self.clear_pixels else None


def as_mask(window: Window) -> NDArray[np.uint8]:
    """Grey values 0 to 255 (height, width) of a window of a mask of any depth or colour."""
    if window.dtype == np.float32:
        return np.rint(window * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(window).convert("L"))
