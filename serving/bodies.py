"""The body of a prediction → its parts: a multipart form, or the bytes of one image; options may stand in the query of both."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from starlette.requests import Request

from serving.errors import FieldError, RejectedImageError, TooLargeError
from serving.forms import IMAGE_FIELD, Part, PredictOptions, read_parts
from serving.queries import query_fields
from serving.settings import ServiceSettings

__all__ = ["OCTETS", "read_body"]

OCTETS = "application/octet-stream"


async def read_body(request: Request, body: AsyncIterable[bytes], settings: ServiceSettings) -> AsyncIterator[Part]:
    """The parts of a request, each as soon as it is complete.

    Args:
        request: Its headers and query.
        body: The chunks as they arrive.
        settings: The limits.

    Raises:
        FieldError: An option in the query that is unknown or given twice, in the query or also in the form.
        RejectedImageError: The one image has too many bytes.
        InputError: See :func:`serving.forms.read_parts`.
    """
    given = query_fields(request, PredictOptions.model_fields)
    for name, value in given.items():
        yield Part(name, None, bytearray(value, "utf-8"))
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == OCTETS and _is_plain(request):
        yield await _one_image(body, settings)
        return
    async for part in read_parts(request.headers, body, settings):
        if part.name in given:
            raise FieldError(part.name, "is given twice, in the query and in the form")
        yield part


def _is_plain(request: Request) -> bool:
    return request.headers.get("content-encoding", "identity").lower() == "identity"


async def _one_image(body: AsyncIterable[bytes], settings: ServiceSettings) -> Part:
    part = Part(IMAGE_FIELD, "")
    async for chunk in body:
        if len(part.data) + len(chunk) > settings.max_bytes:
            raise RejectedImageError(
                0, "", TooLargeError(f"the image has more than {settings.max_bytes:,} bytes, the limit of this service")
            )
        part.data += chunk
    return part
