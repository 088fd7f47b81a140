"""The pictures that rows are about, opened again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hqtl_common.frame_choice import Every
from hqtl_common.rasters import Raster, open_raster
from serving.scoring.answers import PartKind
from serving.scoring.stacks import Stack, open_stack

__all__ = ["Originals"]


class Originals:
    """Opens images, and parts of files; the file of the last part stays open for the next one. Use it as a context manager.

    Args:
        folder: What paths are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held = ExitStack()
        self._last: tuple[str, Stack] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()

    @contextmanager
    def open(self, row: dict[str, Any]) -> Iterator[Raster]:
        """The picture of a row.

        Args:
            row: With its path, and which part of the file it is about.

        Raises:
            InputError: The file cannot be read.
            ImageDecodeError: It is damaged.
            ConfigError: A package is missing that reads it.
        """
        path, kind = str(row["path"]), row.get("part_kind")
        with open_raster(self._folder / path) if kind is None else self._stack(path, kind).open(row["part"]) as raster:
            yield raster

    def _stack(self, path: str, kind: PartKind) -> Stack:
        if self._last is None or self._last[0] != path:
            self._last = None
            self._held.close()
            self._last = path, self._held.enter_context(open_stack(str(self._folder / path), kind, Every()))
        return self._last[1]
