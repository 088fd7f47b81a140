"""What is known of a file before it is scored: which bytes it holds, and what they say about themselves."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import BinaryIO

from serving.photo_header import PhotoHeader, header_of
from serving.scoring.answers import Facts

__all__ = ["facts_of", "hash_of", "with_header"]

_BLOCK = 1 << 20


def facts_of(source: bytes | BinaryIO) -> Facts:
    """Everything; what cannot be read is None, never an error.

    Args:
        source: An encoded image, or a file that holds one; the file is read from its start and left anywhere.
    """
    return with_header(Facts(hash_of(source)), header_of(source))


def hash_of(source: bytes | BinaryIO) -> str:
    """SHA-256, hexadecimal; of a file a block at a time, and it is left at its start."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    source.seek(0)
    while block := source.read(_BLOCK):
        digest.update(block)
    source.seek(0)
    return digest.hexdigest()


def with_header(facts: Facts, header: PhotoHeader) -> Facts:
    """The facts with what the file says about itself."""
    return dataclasses.replace(facts, **dataclasses.asdict(header))
