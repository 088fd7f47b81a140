"""Which frames of a video are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from hqtl_common.errors import ConfigError

__all__ = ["Every"]


@dataclass(frozen=True, slots=True)
class Every:
    """Which frames are chosen: every n-th one, or the first one of each span of time.

    Args:
        frames: n; None where ``seconds`` counts.
        seconds: Length of a span.
    """

    frames: int | None = None
    seconds: Fraction = Fraction(1)

    @classmethod
    def parse(cls, text: str | None) -> Every:
        """``"10"`` for every tenth frame, ``"2s"`` or ``"0.5s"`` for a span of time, None for one second.

        Raises:
            ConfigError: Anything else.
        """
        try:
            if text is None:
                return cls()
            if text.endswith("s"):
                seconds = Fraction(text[:-1])
                if 0 < seconds <= 10**6:
                    return cls(seconds=seconds)
            elif (frames := int(text)) >= 1:
                return cls(frames)
        except (ValueError, ZeroDivisionError):
            pass
        raise ConfigError(f"frames are chosen by number, for example 10, or by seconds, for example 2s or 0.5s; got {text!r}")

    def of(self, times: Sequence[int], clock: Fraction) -> list[int]:
        """Positions of the frames wanted, ascending.

        Args:
            times: Of all frames, ascending, in units of ``clock``.
            clock: Its unit in seconds.
        """
        if self.frames is not None:
            return list(range(0, len(times), self.frames))
        span = self.seconds / clock
        found: list[int] = []
        last = -1
        for index, time in enumerate(times):
            number = (time - times[0]) * span.denominator // span.numerator
            if number > last:
                found.append(index)
                last = number
        return found
