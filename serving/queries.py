"""Options that stand in the query or in a header of a request, read as strictly as those of a form."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import parse_qsl

from starlette.requests import Request

from serving.errors import BodyError, FieldError
from serving.forms import PredictOptions

__all__ = ["idempotency_key", "query_fields", "query_options"]

_MAX_FIELDS = 32
_MAX_NAME = 64  # of a name that is said back


def query_options(request: Request, known: Collection[str], own: Collection[str] = ()) -> PredictOptions:
    """The options in the query of a request.

    Args:
        request: The request.
        known: Those of :class:`serving.forms.PredictOptions` that the route takes.
        own: Further parameters, which the route reads itself.

    Raises:
        BodyError: Too many parameters.
        FieldError: One that is unknown, given twice, or has a value that cannot be used.
    """
    return PredictOptions.from_fields({name: value for name, value in query_fields(request, [*own, *known]).items() if name in known})


def query_fields(request: Request, known: Collection[str]) -> dict[str, str]:
    """What stands in the query of a request, by name.

    Raises:
        BodyError: Too many parameters.
        FieldError: One that is unknown, or given twice.
    """
    try:
        pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise BodyError(f"the query has more than {_MAX_FIELDS} fields") from error
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise FieldError(name[:_MAX_NAME], f"is unknown; known are {', '.join(known)}")
        if name in fields:
            raise FieldError(name, "is given twice")
        fields[name] = value
    return fields


def idempotency_key(request: Request) -> str | None:
    """The client's own name for a request, None without.

    Raises:
        FieldError: More than one, or not one word.
    """
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1 or not all(re.fullmatch(r"[!-~]{1,200}", key) for key in keys):
        raise FieldError("Idempotency-Key", "must be one word of at most 200 printable ASCII characters")
    return keys[0] if keys else None
