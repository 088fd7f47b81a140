"""One request of the Open Inference Protocol → what the predictor is asked, and its answer → tensors."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import CapabilityError
from serving.errors import BodyError, FieldError, MediaTypeError, RejectedImageError, TooLargeError
from serving.forms import IMAGE_FIELD, Part, PredictOptions
from serving.intake import PredictRequest
from serving.predictor import Predictor
from serving.tensors import (
    MAX_HEAD_BYTES,
    ByteStream,
    InferenceHead,
    InputHead,
    OutputTensor,
    Scalar,
    parse_head,
    read_images,
    read_numbers,
    render,
)

__all__ = ["HEAD_LENGTH", "OUTPUTS", "PARAMETERS", "PIXELS", "InferenceCall"]

HEAD_LENGTH = "inference-header-content-length"
PIXELS = "pixels"
PARAMETERS = ("backend", "shots", "max_shots", "seed", "threshold", "mitigation", "deadline_s")
OUTPUTS = ("labels", "probabilities", "logits", "expvals", "angles", "expval_stds", "intervals")
_SAMPLED = ("expval_stds", "intervals")  # absent where the head is exact
_ALL_BINARY = "binary_data_output"
_BINARY = "binary_data"
_EXACT = 0.01  # tolerance of the range of normalised pixels


class InferenceCall:
    """Reads one request and, when the predictor has answered it, writes the answer.

    Args:
        predictor: Its bundle, decoders and limits.
        headers: Of the request.
    """

    def __init__(self, predictor: Predictor, headers: Mapping[str, str]) -> None:
        self._predictor = predictor
        self._headers = headers
        self._head: InferenceHead | None = None

    async def read(self, chunks: AsyncIterator[bytes]) -> PredictRequest:
        """The request.

        Raises:
            MediaTypeError: A compressed body, or one of another type.
            BodyError: It is not JSON, or its bytes are not what the JSON announces.
            FieldError: A tensor or a parameter that cannot be used.
            TooLargeError: Too many bytes or images.
            RejectedImageError: The first image that cannot be used.
        """
        stream = ByteStream(chunks, self._predictor.settings.max_body_bytes)
        length = _head_length(self._headers)
        if length is not None and length > MAX_HEAD_BYTES:
            raise TooLargeError(f"the JSON has more than {MAX_HEAD_BYTES:,} bytes, the limit of this service")
        self._head = parse_head(await (stream.rest(MAX_HEAD_BYTES) if length is None else stream.take(length)))
        self._check_outputs(self._head)
        fields = _fields(self._head.parameters)
        tensor = self._tensor(self._head)
        if tensor.name == PIXELS:
            return await self._read_pixels(tensor, fields, stream)
        return await self._predictor.intake.read(self._image_parts(tensor, fields, stream))

    def write(self, answer: dict[str, Any], name: str, version: str) -> tuple[bytes, int | None]:
        """The body of the answer, and how much of it is JSON where bytes follow.

        Args:
            answer: Of the predictor.
            name: Of the model.
            version: Of the model.

        Raises:
            CapabilityError: An output was asked for that an exact answer does not have.
        """
        assert self._head is not None
        found = {tensor.name: tensor for tensor in _tensors(answer, self._predictor.bundle.labels)}
        by_default = self._head.parameters.get(_ALL_BINARY) is True
        wanted = self._head.outputs or ()
        forms = {output.name: output.parameters.get(_BINARY, by_default) is True for output in wanted}
        if missing := set(forms) - set(found):
            raise CapabilityError(f"the answer has no {sorted(missing)[0]}: it is exact; ask for shots")
        head: dict[str, Any] = {"model_name": name, "model_version": version}
        if self._head.id is not None:
            head["id"] = self._head.id
        head["parameters"] = _about(answer["execution"], self._predictor.bundle.labels)
        return render(head, [(found[key], forms[key]) for key in forms] or [(tensor, by_default) for tensor in found.values()])

    def _check_outputs(self, head: InferenceHead) -> None:
        names = [output.name for output in head.outputs or ()]
        for output in head.outputs or ():
            if output.name not in OUTPUTS or names.count(output.name) > 1:
                raise FieldError("outputs", f"must be different ones of {', '.join(OUTPUTS)}; got {output.name!r}")
            if unknown := set(output.parameters) - {_BINARY}:
                raise FieldError(f"outputs.{output.name}", f"has the unknown parameter {sorted(unknown)[0]!r}; known is {_BINARY}")

    def _tensor(self, head: InferenceHead) -> InputHead:
        if len(head.inputs) != 1:
            raise FieldError("inputs", f"must be one tensor, {IMAGE_FIELD} or {PIXELS}; got {len(head.inputs)}")
        tensor, size = head.inputs[0], self._predictor.bundle.preprocess.size
        kinds = {IMAGE_FIELD: ("BYTES", []), PIXELS: ("FP32", [3, size, size])}
        if tensor.name not in kinds:
            raise FieldError("inputs", f"must be {IMAGE_FIELD} or {PIXELS}; got {tensor.name!r}")
        datatype, shape = kinds[tensor.name]
        if (tensor.datatype, tensor.shape[1:]) != (datatype, shape) or tensor.shape[0] < 1:
            raise FieldError(
                tensor.name, f"must be {datatype} of the shape {['B', *shape]}, B ≥ 1; got {tensor.datatype} of {tensor.shape}"
            )
        if tensor.shape[0] > self._predictor.settings.max_images:
            raise TooLargeError(f"the request holds more than {self._predictor.settings.max_images} images, the limit of this service")
        return tensor

    async def _read_pixels(self, tensor: InputHead, fields: dict[str, str], stream: ByteStream) -> PredictRequest:
        size = tensor.num_binary
        if size is not None and size != 4 * int(np.prod(tensor.shape)):
            raise FieldError(tensor.name, f"must have {4 * int(np.prod(tensor.shape)):,} bytes for the shape {tensor.shape}; got {size:,}")
        pixels = read_numbers(tensor, None if size is None else await stream.take(size))
        await stream.end()
        self._check_range(pixels)
        return PredictRequest(("",) * len(pixels), pixels, PredictOptions.from_fields(fields))

    def _check_range(self, pixels: NDArray[np.float32]) -> None:
        spec = self._predictor.bundle.preprocess
        low, high = (np.array([(level - m) / s for m, s in zip(spec.mean, spec.std, strict=True)]) for level in (0, 1))
        if not ((pixels.min(axis=(0, 2, 3)) >= low - _EXACT) & (pixels.max(axis=(0, 2, 3)) <= high + _EXACT)).all():
            raise FieldError(
                PIXELS, f"must be normalised, (value/255 − mean)/std: from {low.round(2).tolist()} to {high.round(2).tolist()} by channel"
            )

    async def _image_parts(self, tensor: InputHead, fields: dict[str, str], stream: ByteStream) -> AsyncIterator[Part]:
        """The images one by one, then the options, as a form would give them."""
        for name, text in fields.items():
            yield Part(name, None, bytearray(text, "utf-8"))
        size = tensor.num_binary
        if size is None:
            for index, image in enumerate(read_images(tensor)):
                self._check_length(index, len(image))
                yield Part(IMAGE_FIELD, "", bytearray(image))
        else:
            async for part in self._binary_parts(tensor.shape[0], size, stream):
                yield part
        await stream.end()

    async def _binary_parts(self, count: int, size: int, stream: ByteStream) -> AsyncIterator[Part]:
        wrong = BodyError(f"the {count} images with their lengths do not fill the {size:,} bytes that the JSON announces")
        for index in range(count):
            length = int.from_bytes(await stream.take(4), "little")
            size -= 4 + length
            if size < 0:
                raise wrong
            self._check_length(index, length)
            yield Part(IMAGE_FIELD, "", await stream.take(length))
        if size:
            raise wrong

    def _check_length(self, index: int, length: int) -> None:
        if length > (limit := self._predictor.settings.max_bytes):
            raise RejectedImageError(index, "", TooLargeError(f"the image has more than {limit:,} bytes, the limit of this service"))


def _head_length(headers: Mapping[str, str]) -> int | None:
    encoding, declared = headers.get("content-encoding", "identity"), headers.get(HEAD_LENGTH)
    if encoding.lower() != "identity":
        raise MediaTypeError(f"the body must not be compressed; got the content encoding {encoding!r}")
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/octet-stream"):
        raise MediaTypeError(f"the body must be application/json, or application/octet-stream with {HEAD_LENGTH}; got {kind!r}")
    if declared is not None and not re.fullmatch(r"[0-9]{1,12}", declared):
        raise BodyError(f"the header {HEAD_LENGTH} must be a number of bytes; got {declared!r}")
    if declared is None and kind != "application/json":
        raise BodyError(f"an {kind} needs the header {HEAD_LENGTH}, the number of bytes of its JSON")
    return None if declared is None else int(declared)


def _fields(parameters: Mapping[str, Scalar]) -> dict[str, str]:
    """The options of a request, as texts of a form."""
    given = {name: value for name, value in parameters.items() if name != _ALL_BINARY}
    for name in given:
        if name not in PARAMETERS:
            raise FieldError(f"parameters.{name}", f"is unknown; known are {', '.join((*PARAMETERS, _ALL_BINARY))}")
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


def _tensors(answer: Mapping[str, Any], labels: tuple[str, ...]) -> list[OutputTensor]:
    rows: list[dict[str, Any]] = answer["predictions"]
    numbers = {name: np.array([row[name] for row in rows], np.float64) for name in ("logits", "expvals")}
    tensors = [
        OutputTensor("labels", "BYTES", [row["label"] for row in rows]),
        OutputTensor("probabilities", "FP64", np.array([[row["probabilities"][label] for label in labels] for row in rows])),
        *(OutputTensor(name, "FP64", values) for name, values in numbers.items()),
        OutputTensor("angles", "FP32", np.array([row["angles"] for row in rows], np.float32)),
    ]
    if rows[0]["interval"] is None:
        return tensors
    sampled = {name: np.array([row[key] for row in rows]) for name, key in zip(_SAMPLED, ("expval_stds", "interval"), strict=True)}
    return [*tensors, *(OutputTensor(name, "FP64", values) for name, values in sampled.items())]


def _about(execution: Mapping[str, Any], labels: tuple[str, ...]) -> dict[str, Scalar]:
    """What produced the answer, as far as a parameter can say it."""
    kept = ("backend_requested", "backend_used", "reason", "shots", "seed", "calibration")
    return {"classes": json.dumps(labels, ensure_ascii=False), **{key: execution[key] for key in kept if execution[key] is not None}}
