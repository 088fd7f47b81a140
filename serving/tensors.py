"""Tensors of the Open Inference Protocol as they travel: JSON first, and behind it the bytes of those that are sent in binary form.

The protocol and its binary extension: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.errors import BodyError, FieldError, TooLargeError

__all__ = [
    "MAX_HEAD_BYTES",
    "ByteStream",
    "InferenceHead",
    "InputHead",
    "OutputTensor",
    "Scalar",
    "WantedOutput",
    "parse_head",
    "read_images",
    "read_numbers",
    "render",
]

MAX_HEAD_BYTES = 8 * 2**20
_SIZE = "binary_data_size"
_KINDS = {"FP32": "<f4", "FP64": "<f8"}

Scalar = bool | int | float | str
Parameters = Annotated[dict[str, Scalar], Field(max_length=32)]


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class InputHead(_Exact):
    """One input: its bytes follow the JSON (``binary_data_size``), or ``data`` holds its values, nested or flat."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=8)]
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None

    @property
    def num_binary(self) -> int | None:
        """Bytes that follow the JSON; None where ``data`` holds the values.

        Raises:
            FieldError: Neither or both, or no number of bytes.
        """
        size = self.parameters.get(_SIZE)
        if (size is None) == (self.data is None):
            raise FieldError(self.name, f"must have either data or the parameter {_SIZE}")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
            raise FieldError(f"{self.name}.{_SIZE}", f"must be a whole number of bytes; got {size!r}")
        return size


class WantedOutput(_Exact):
    """One output that the client asks for; ``binary_data`` chooses its form."""

    name: str
    parameters: Parameters = {}


class InferenceHead(_Exact):
    """The JSON of a request."""

    id: Annotated[str | None, Field(max_length=200)] = None
    parameters: Parameters = {}
    inputs: Annotated[list[InputHead], Field(min_length=1, max_length=16)]
    outputs: Annotated[list[WantedOutput] | None, Field(max_length=64)] = None


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output.

    Args:
        name: Of the tensor.
        datatype: FP32, FP64 or BYTES.
        values: An array, or texts (B,).
    """

    name: str
    datatype: Literal["FP32", "FP64", "BYTES"]
    values: NDArray[Any] | Sequence[str]

    @property
    def shape(self) -> list[int]:
        """Its lengths."""
        return list(self.values.shape) if isinstance(self.values, np.ndarray) else [len(self.values)]

    def to_list(self) -> list[Any]:
        """The values in row-major order."""
        return self.values.ravel().tolist() if isinstance(self.values, np.ndarray) else list(self.values)

    def to_bytes(self) -> bytes:
        """The values in row-major order, little-endian; a text is preceded by its length in four bytes."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype(_KINDS[self.datatype]).tobytes()
        texts = [text.encode() for text in self.values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


class ByteStream:
    """A body from which exact numbers of bytes are taken.

    Args:
        chunks: As they arrive.
        max_bytes: Of the whole body.
    """

    def __init__(self, chunks: AsyncIterator[bytes], max_bytes: int) -> None:
        self._chunks = chunks
        self._left = max_bytes
        self._held = bytearray()

    async def take(self, count: int) -> bytearray:
        """The next ``count`` bytes.

        Raises:
            BodyError: The body ends before.
            TooLargeError: The body is longer than allowed.
        """
        while len(self._held) < count:
            if not await self._more():
                raise BodyError(f"the body ends {count - len(self._held):,} bytes before the end that its JSON announces; send it whole")
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    async def rest(self, max_bytes: int) -> bytearray:
        """What has not been taken.

        Raises:
            TooLargeError: It has more than ``max_bytes``.
        """
        while await self._more():
            if len(self._held) > max_bytes:
                raise TooLargeError(f"the JSON has more than {max_bytes:,} bytes, the limit of this service: send tensors in binary form")
        taken, self._held = self._held, bytearray()
        return taken

    async def end(self) -> None:
        """Say that nothing more is expected.

        Raises:
            BodyError: There is more.
        """
        while not self._held and await self._more():
            pass
        if self._held:
            raise BodyError("the body goes on after the tensors that its JSON announces")

    async def _more(self) -> bool:
        chunk = await anext(self._chunks, None)
        if chunk is None:
            return False
        self._left -= len(chunk)
        if self._left < 0:
            raise TooLargeError("the body has more bytes than this service takes: send fewer images")
        self._held += chunk
        return True


def parse_head(raw: bytes | bytearray) -> InferenceHead:
    """The JSON of a request.

    Raises:
        BodyError: Not JSON.
        FieldError: Not what the protocol asks for.
    """
    try:
        return InferenceHead.model_validate_json(raw)
    except ValidationError as error:
        problem: Any = error.errors(include_url=False, include_input=False)[0]
        if problem["type"] == "json_invalid":
            raise BodyError(f"the body is not JSON: {problem['ctx']['error']}") from error
        raise FieldError(".".join(map(str, problem["loc"])) or "body", problem["msg"]) from error


def read_images(tensor: InputHead) -> list[bytes]:
    """Encoded images of a tensor whose ``data`` are texts in base64.

    Raises:
        FieldError: They are not.
    """
    data = tensor.data or []
    if len(data) != tensor.shape[0] or not all(isinstance(text, str) for text in data):
        raise FieldError(tensor.name, f"must be a list of {tensor.shape[0]} texts, each an encoded image in base64")
    try:
        return [base64.b64decode(text, validate=True) for text in data]
    except (binascii.Error, ValueError) as error:
        raise FieldError(tensor.name, f"must hold images in base64, or in binary form: {error}") from error


def read_numbers(tensor: InputHead, binary: bytes | bytearray | None) -> NDArray[np.float32]:
    """Float32 values of a tensor, from its bytes or its ``data``, in its shape.

    Raises:
        FieldError: They do not fill it, or are no numbers.
    """
    expected = math.prod(tensor.shape)
    if binary is not None:
        if len(binary) != 4 * expected:
            raise FieldError(tensor.name, f"must have {4 * expected:,} bytes for the shape {tensor.shape}; got {len(binary):,}")
        return np.frombuffer(binary, "<f4").reshape(tensor.shape)
    try:
        values = np.asarray(tensor.data)
    except ValueError as error:
        raise FieldError(tensor.name, "must be numbers, flat or nested like its shape") from error
    if values.dtype.kind not in "if" or values.shape not in ((expected,), tuple(tensor.shape)):
        raise FieldError(tensor.name, f"must be {expected:,} numbers, flat or nested like the shape {tensor.shape}")
    return values.astype(np.float32).reshape(tensor.shape)


def render(head: dict[str, Any], outputs: Sequence[tuple[OutputTensor, bool]]) -> tuple[bytes, int | None]:
    """The body of an answer.

    Args:
        head: All of its JSON but ``outputs``.
        outputs: Each tensor, and whether it goes out in binary form.

    Returns:
        The body, and how much of it is JSON where bytes follow; else None.
    """
    entries, bodies = [], []
    for tensor, binary in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary:
            bodies.append(tensor.to_bytes())
            entries.append({**entry, "parameters": {_SIZE: len(bodies[-1])}})
        else:
            entries.append({**entry, "data": tensor.to_list()})
    text = json.dumps({**head, "outputs": entries}).encode()
    return b"".join([text, *bodies]), len(text) if bodies else None
