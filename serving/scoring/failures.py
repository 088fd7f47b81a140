"""What an error while reading a file becomes in its row: the same in every run."""

from __future__ import annotations

import os
import re

from hqtl_common.errors import HqtlError, ImageDecodeError
from serving.scoring.answers import Failure

__all__ = ["failure_of"]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of an object, in a message: differs from run to run


def failure_of(error: Exception, full: str, path: bytes) -> Failure:
    """The failure that an error while reading a file becomes; the same in every run.

    Args:
        error: What was raised.
        full: The file's path as it was opened; the message names it by ``path``.
        path: Relative path.
    """
    if isinstance(error, HqtlError):
        return Failure(type(error).__name__, _ADDRESS.sub("", str(error).replace(repr(full), repr(os.fsdecode(path)))))
    return Failure(ImageDecodeError.__name__, _ADDRESS.sub("", f"the image cannot be decoded: {type(error).__name__}: {error}"))
