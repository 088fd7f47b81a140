"""The body of a prediction → its parts: a multipart form, or the bytes of one image with the options in the query."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from urllib.parse import parse_qsl

from starlette.requests import Request

from serving.errors import BodyError, FieldError, RejectedImageError, TooLargeError
from serving.forms import IMAGE_FIELD, Part, PredictOptions, read_parts
from serving.settings import ServiceSettings

__all__ = ["OCTETS", "read_body"]

OCTETS = "application/octet-stream"
_MAX_FIELDS = 32


async def read_body(request: Request, body: AsyncIterable[bytes], settings: ServiceSettings) -> AsyncIterator[Part]:
    """The parts of a request, each as soon as it is complete.

    Args:
        request: Its headers and query.
        body: The chunks as they arrive.
        settings: The limits.

    Raises:
        FieldError: An option in the query that is unknown or given twice, or any with a form.
        RejectedImageError: The one image has too many bytes.
        InputError: See :func:`serving.forms.read_parts`.
    """
    options = _query(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == OCTETS and _is_plain(request):
        for part in options:
            yield part
        yield await _one_image(body, settings)
        return
    if options:
        raise FieldError(options[0].name, f"stands in the query, which only {OCTETS} may have: send it as a field of the form")
    async for part in read_parts(request.headers, body, settings):
        yield part


def _is_plain(request: Request) -> bool:
    return request.headers.get("content-encoding", "identity").lower() == "identity"


def _query(request: Request) -> list[Part]:
    try:
        pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise BodyError(f"the query has more than {_MAX_FIELDS} fields") from error
    names = [name for name, _ in pairs]
    for name in names:
        if name not in PredictOptions.model_fields:
            raise FieldError(name, f"is unknown; known are {', '.join(PredictOptions.model_fields)}")
        if names.count(name) > 1:
            raise FieldError(name, "is given twice")
    return [Part(name, None, bytearray(value, "utf-8")) for name, value in pairs]


async def _one_image(body: AsyncIterable[bytes], settings: ServiceSettings) -> Part:
    part = Part(IMAGE_FIELD, "")
    async for chunk in body:
        if len(part.data) + len(chunk) > settings.max_bytes:
            raise RejectedImageError(
                0, "", TooLargeError(f"the image has more than {settings.max_bytes:,} bytes, the limit of this service")
            )
        part.data += chunk
    return part
