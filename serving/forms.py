"""A multipart body → its parts, one by one while it arrives, within limits; and form fields → options.

Nothing is written to disk and no more than one part is held here at a time.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.errors import BodyError, FieldError, MediaTypeError, RejectedImageError, TooLargeError
from serving.settings import ServiceSettings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

__all__ = ["IMAGE_FIELD", "FormReader", "Part", "PredictOptions", "read_parts"]

IMAGE_FIELD = "image"
_MAX_FIELD_BYTES = 1024
_ZNE_FACTORS = (1, 3)
_EXTENDED_FILENAME = re.compile(r"filename\*=(?:utf-8|UTF-8)''([^;\s]+)")


def _whole(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,19}", value):
        raise ValueError("not a whole number")
    return value


class PredictOptions(BaseModel):
    """What a request chooses; None = the service's default.

    Args:
        backend: Name of a backend.
        shots: Repetitions per image; None = exact, where the backend can.
        max_shots: Sample images whose label is in doubt up to so often; the others stop at ``shots``.
        seed: Seed of the sampling; the same seed repeats the answer.
        threshold: Probability from which the positive label is given; two classes only.
        mitigation: What is done about errors of a noisy backend: readout, zne, or both as readout+zne.
        deadline_s: Seconds from the arrival of the request, below the service's own limit.
        explain: Add the features of each image, and the circuit with what decides.
        fallback: What answers at once where the backend's own answer comes later.
        webhook: Address that is told when a job is finished.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backend: Annotated[str | None, Field(min_length=1, max_length=200, description="the name of a backend")] = None
    shots: Annotated[int | None, BeforeValidator(_whole), Field(ge=1, description="a whole number of at least 1")] = None
    max_shots: Annotated[int | None, BeforeValidator(_whole), Field(ge=1, description="a whole number of at least 1")] = None
    seed: Annotated[int | None, BeforeValidator(_whole), Field(ge=0, lt=2**63, description="a whole number from 0 to 2^63 − 1")] = None
    threshold: Annotated[float | None, Field(gt=0, lt=1, description="a number between 0 and 1")] = None
    mitigation: Annotated[
        Literal["none", "readout", "zne", "readout+zne"] | None, Field(description="one of none, readout, zne and readout+zne")
    ] = None
    deadline_s: Annotated[float | None, Field(gt=0, description="a number of seconds above 0")] = None
    explain: Annotated[bool, Field(description="true or false")] = False
    fallback: Annotated[Literal["statevector"] | None, Field(description="statevector")] = None
    webhook: Annotated[str | None, Field(min_length=1, max_length=500, description="an address https://…, at most 500 characters")] = None

    @property
    def backend_options(self) -> dict[str, Any]:
        """What goes to the backend by its own names, besides shots and seed."""
        chosen = (self.mitigation or "none").split("+")
        return ({"mitigation": "readout"} if "readout" in chosen else {}) | ({"zne": _ZNE_FACTORS} if "zne" in chosen else {})

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> PredictOptions:
        """Parse form fields.

        Raises:
            FieldError: The first field whose value cannot be used.
        """
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            problem: Any = error.errors()[0]
            name = str(problem["loc"][0])
            raise FieldError(name, f"must be {cls.model_fields[name].description}; got {problem['input']!r}") from error


@dataclass(slots=True)
class Part:
    """One part of a form.

    Args:
        name: Name of the field.
        filename: As the client gave it; None for a plain field.
        data: The bytes received so far.
    """

    name: str
    filename: str | None
    data: bytearray = field(default_factory=bytearray)


class FormReader:
    """Incremental reader of a form with images in the field ``image`` and the options of :class:`PredictOptions`.

    Args:
        boundary: From the Content-Type header.
        settings: The limits.

    Raises:
        BodyError: A boundary that no form can have.
    """

    def __init__(self, boundary: bytes, settings: ServiceSettings) -> None:
        self._settings = settings
        self._disposition = bytearray()
        self._header = bytearray()
        self._part: Part | None = None
        self._complete: list[Part] = []
        self._names: set[str] = set()
        self._num_images = 0
        self._ended = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._disposition.clear,
            "on_header_begin": self._header.clear,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise BodyError(f"the multipart boundary cannot be used: {error}") from error

    def feed(self, chunk: bytes) -> Iterator[Part]:
        """Take the next bytes of the body and give the parts that they complete.

        Raises:
            BodyError: Not a multipart form.
            FieldError: An unknown or repeated field, or text where an image belongs.
            TooLargeError: Too many images, or a field too long.
            RejectedImageError: An image with too many bytes.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BodyError(f"the body is not a multipart form: {error}") from error
        complete, self._complete = self._complete, []
        yield from complete

    def finish(self) -> None:
        """Say that the body has ended.

        Raises:
            BodyError: The closing boundary has not come.
        """
        if not self._ended:
            raise BodyError("the body ends before the closing boundary of the multipart form; send it whole")

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end].lower()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        if self._header == b"content-disposition":
            self._disposition += data[start:end]

    def _on_headers_finished(self) -> None:
        raw = bytes(self._disposition)
        _, options = parse_options_header(raw)
        if b"name" not in options:
            raise BodyError("a part of the form has no name in its Content-Disposition header")
        extended = _EXTENDED_FILENAME.search(raw.decode("latin-1"))
        filename = _text(options[b"filename"]) if b"filename" in options else unquote(extended[1]) if extended else None
        self._part = Part(_text(options[b"name"]), filename)
        self._check(self._part)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        part, size = self._part, len(self._part.data) + end - start
        if part.filename is None and size > _MAX_FIELD_BYTES:
            raise FieldError(part.name, f"must have at most {_MAX_FIELD_BYTES:,} bytes")
        if part.filename is not None and size > self._settings.max_bytes:
            reason = TooLargeError(f"the image has more than {self._settings.max_bytes:,} bytes, the limit of this service")
            raise RejectedImageError(self._num_images - 1, part.filename, reason)
        part.data += data[start:end]

    def _on_part_end(self) -> None:
        assert self._part is not None
        self._complete.append(self._part)
        self._part = None

    def _on_end(self) -> None:
        self._ended = True

    def _check(self, part: Part) -> None:
        if part.name == IMAGE_FIELD:
            if part.filename is None:
                raise FieldError(IMAGE_FIELD, "must be a file, sent with a file name (curl -F image=@photo.jpg); got text")
            self._num_images += 1
            if self._num_images > self._settings.max_images:
                raise TooLargeError(
                    f"the request holds more than {self._settings.max_images} images, the limit of this service: send several"
                )
            return
        if part.name not in PredictOptions.model_fields:
            raise FieldError(part.name, f"is unknown; known are {IMAGE_FIELD}, {', '.join(PredictOptions.model_fields)}")
        if part.filename is not None:
            raise FieldError(part.name, "must be text; got a file")
        if part.name in self._names:
            raise FieldError(part.name, "is given twice")
        self._names.add(part.name)


async def read_parts(headers: Mapping[str, str], body: AsyncIterable[bytes], settings: ServiceSettings) -> AsyncIterator[Part]:
    """The parts of a request's body, each as soon as it is complete.

    Args:
        headers: Of the request, names in lower case.
        body: Its chunks as they arrive.
        settings: The limits.

    Raises:
        MediaTypeError: Not ``multipart/form-data``, or compressed.
        TooLargeError: The body is longer than allowed, whether it says so or not; and see :meth:`FormReader.feed`.
        BodyError: Not a form; see :class:`FormReader`.
        FieldError: See :meth:`FormReader.feed`.
    """
    reader = FormReader(_boundary(headers), settings)
    too_large = TooLargeError(f"the body has more than {settings.max_body_bytes:,} bytes, the limit of this service: send fewer images")
    if _declared_length(headers) > settings.max_body_bytes:
        raise too_large
    received = 0
    async for chunk in body:
        received += len(chunk)
        if received > settings.max_body_bytes:
            raise too_large
        for part in reader.feed(chunk):
            yield part
    reader.finish()


def _declared_length(headers: Mapping[str, str]) -> float:
    declared = headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]+", declared):
        return 0
    return int(declared) if len(declared) < 20 else float("inf")


def _boundary(headers: Mapping[str, str]) -> bytes:
    declared, encoding = headers.get("content-type", ""), headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise MediaTypeError(f"the body must not be compressed; got the content encoding {encoding!r}")
    kind, parameters = parse_options_header(declared.encode("latin-1", "replace"))
    if kind != b"multipart/form-data":
        raise MediaTypeError(
            f"the body must be multipart/form-data with the field {IMAGE_FIELD!r}, or one image as application/octet-stream; "
            f"got {declared or 'no content type'!r}"
        )
    if not parameters.get(b"boundary"):
        raise BodyError("the content type multipart/form-data names no boundary")
    return parameters[b"boundary"]


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
