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
        ├── ConflictError                             it contradicts what was asked or has happened before
        ├── DeadlineError (TimeoutError)              the request was not done in time
        ├── ForbiddenError (PermissionError)          the key is good, but may not do this
        ├── KeysUnavailableError                      the file of the keys cannot be used, so nobody is let in
        ├── NotFoundError (LookupError)               there is no such thing, or it belongs to another key
        ├── NotReadyError                             the service has not started, or is about to end
        ├── OverloadedError                           too many requests are in work
        ├── QuotaError                                the key has used up what it may spend in a day
        ├── RateLimitError                            the key sends requests faster than it may
        ├── SlowClientError (TimeoutError)            the body did not arrive in time
        └── UnauthorizedError (PermissionError)       no key, or none that is good
"""

from __future__ import annotations

from hqtl_common.errors import BackendError, HqtlError, InputError

__all__ = [
    "BodyError",
    "ConflictError",
    "DeadlineError",
    "FieldError",
    "ForbiddenBackendError",
    "ForbiddenError",
    "KeysUnavailableError",
    "MediaTypeError",
    "NotFoundError",
    "NotReadyError",
    "OutputError",
    "OverloadedError",
    "QuotaError",
    "RateLimitError",
    "RejectedImageError",
    "ServiceError",
    "SlowClientError",
    "TooLargeError",
    "UnauthorizedError",
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


class ConflictError(ServiceError):
    """The request contradicts an earlier one, or what has happened meanwhile."""


class DeadlineError(ServiceError, TimeoutError):
    """A request was not done within the time allowed."""


class ForbiddenError(ServiceError, PermissionError):
    """The key is good, but what it was granted does not cover the request."""


class KeysUnavailableError(ServiceError):
    """The file of the keys is missing, damaged or open to others, so that nobody is let in."""


class NotFoundError(ServiceError, LookupError):
    """What was asked for is not there, or belongs to another key."""


class NotReadyError(ServiceError):
    """The service has not started yet, or is about to end."""


class OverloadedError(ServiceError):
    """Too many requests are in work; the client may try again later."""


class QuotaError(ServiceError):
    """A key has used up what it may spend in a day.

    Args:
        message: What was granted and what was asked.
        retry_after_s: Seconds until the next day begins (UTC).
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimitError(ServiceError):
    """A key sends requests faster than it was granted.

    Args:
        message: What was granted.
        retry_after_s: Seconds until the next request is taken.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SlowClientError(ServiceError, TimeoutError):
    """The body of a request did not arrive within the time allowed."""


class UnauthorizedError(ServiceError, PermissionError):
    """A request without a key, or with one that is unknown, expired or revoked."""


class OutputError(HqtlError, OSError):
    """A result could not be written (disk full, no permission, file too large); what was recorded before is intact."""
