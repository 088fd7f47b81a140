"""Errors that only this package raises; they join the tree of :mod:`hqtl_common.errors`.

::

    HqtlError
    ├── InputError
    │   ├── BodyError             the body is not the multipart form that its header announces
    │   ├── FieldError            a form field is missing, unknown, repeated or has a value out of range
    │   ├── MediaTypeError        the body is of another type than the route takes
    │   ├── TooLargeError         more bytes, pixels, images or shots than the operator allows
    │   └── RejectedImageError    one image of the request; carries index, filename and the reason
    ├── BackendError
    │   └── ForbiddenBackendError (PermissionError)   it exists, but the operator does not offer it
    ├── OutputError (OSError)     a result could not be written; what was recorded before is intact
    └── ServiceError
        ├── DeadlineError (TimeoutError)              the request was not done in time
        ├── OverloadedError                           too many requests are in work
        └── SlowClientError (TimeoutError)            the body did not arrive in time
"""

from __future__ import annotations

from hqtl_common.errors import BackendError, HqtlError, InputError

__all__ = [
    "BodyError",
    "DeadlineError",
    "FieldError",
    "ForbiddenBackendError",
    "MediaTypeError",
    "OutputError",
    "OverloadedError",
    "RejectedImageError",
    "ServiceError",
    "SlowClientError",
    "TooLargeError",
]


class BodyError(InputError):
    """The body cannot be read as the form that its header announces."""


class FieldError(InputError):
    """A form field is missing, unknown, repeated or has a value that cannot be used.

    Args:
        field: Its name.
        message: What was expected and what was got.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"field {field!r}: {message}")
        self.field = field


class MediaTypeError(InputError):
    """The body is of another type than the route takes."""


class TooLargeError(InputError):
    """More bytes, pixels or images than the operator allows."""


class RejectedImageError(InputError):
    """One image of a request cannot be used, so nothing of the request was run.

    Args:
        index: Position among the images of the request, from 0.
        filename: Name given by the client.
        reason: What is wrong with it.
    """

    def __init__(self, index: int, filename: str, reason: InputError) -> None:
        super().__init__(f"image {index} ({filename!r}): {reason}")
        self.index = index
        self.filename = filename
        self.reason = reason


class ForbiddenBackendError(BackendError, PermissionError):
    """The backend exists, but the operator of the service does not offer it."""


class ServiceError(HqtlError):
    """The service could not do its work in time or at all."""


class DeadlineError(ServiceError, TimeoutError):
    """A request was not done within the time allowed."""


class OverloadedError(ServiceError):
    """Too many requests are in work; the client may try again later."""


class SlowClientError(ServiceError, TimeoutError):
    """The body of a request did not arrive within the time allowed."""


class OutputError(HqtlError, OSError):
    """A result could not be written (disk full, no permission, file too large); what was recorded before is intact."""
