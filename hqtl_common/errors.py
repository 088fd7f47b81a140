"""Every error this software raises on purpose, as one tree.

::

    HqtlError
    ├── ConfigError (ValueError)            an option, a file of options or an environment variable is wrong
    ├── InputError (ValueError)             the caller's data cannot be used
    │   ├── ImageDecodeError                bytes that are not a usable image
    │   │   └── UnknownImageFormatError     bytes that begin like no allowed image format
    │   └── ShapeError                      an array of the wrong shape or dtype
    ├── BundleError                         an exported model cannot be used
    │   ├── BundleFormatError (ValueError)  not a bundle, or a file is missing or too many
    │   ├── BundleIntegrityError            a file differs from its recorded SHA-256
    │   └── BundleVersionError              written in a schema this version cannot read
    ├── BackendError                        the head could not be run
    │   ├── UnknownBackendError (LookupError)
    │   ├── CapabilityError (ValueError)    the backend cannot do what was asked
    │   ├── BackendUnavailableError (ConnectionError)
    │   ├── BackendAuthError (PermissionError)
    │   ├── BudgetExceededError             a limit on jobs or QPU seconds was reached; resumable
    │   ├── BackendTimeoutError (TimeoutError)
    │   └── JobFailedError (RuntimeError)   carries ``job_id``
    └── ParityError (AssertionError)        two implementations that must agree do not

A message says what was expected, what was got and what to do next. Messages never hold a token.
The library knows neither HTTP status codes nor exit codes: ``serving.http_errors``, ``serving.cli`` and
``training.cli`` translate this tree, each in one place.
"""

from __future__ import annotations

__all__ = [
    "BackendAuthError",
    "BackendError",
    "BackendTimeoutError",
    "BackendUnavailableError",
    "BudgetExceededError",
    "BundleError",
    "BundleFormatError",
    "BundleIntegrityError",
    "BundleVersionError",
    "CapabilityError",
    "ConfigError",
    "HqtlError",
    "ImageDecodeError",
    "InputError",
    "JobFailedError",
    "ParityError",
    "ShapeError",
    "UnknownBackendError",
    "UnknownImageFormatError",
]


class HqtlError(Exception):
    """Base of every error raised on purpose by this software."""


class ConfigError(HqtlError, ValueError):
    """An option, a configuration file or an environment variable has a value that cannot be used."""


class InputError(HqtlError, ValueError):
    """Data given by the caller cannot be used."""


class ImageDecodeError(InputError):
    """Bytes or a file that cannot be read as an image of an allowed format, size and value range."""


class UnknownImageFormatError(ImageDecodeError):
    """Bytes that begin like none of the allowed image formats."""


class ShapeError(InputError):
    """An array has another shape or dtype than the stage it was given to expects."""


class BundleError(HqtlError):
    """An exported model cannot be used."""


class BundleFormatError(BundleError, ValueError):
    """A folder is not a bundle: a file is missing, unexpected or does not parse."""


class BundleIntegrityError(BundleError):
    """A file of a bundle differs from the SHA-256 recorded in its manifest."""


class BundleVersionError(BundleError):
    """A bundle is written in a schema that this version cannot read."""


class BackendError(HqtlError):
    """The head could not be run on a backend."""


class UnknownBackendError(BackendError, LookupError):
    """No backend has the name that was asked for."""


class CapabilityError(BackendError, ValueError):
    """The backend exists but cannot do what was asked (method, shots, size)."""


class BackendUnavailableError(BackendError, ConnectionError):
    """The backend exists but cannot be reached or used now, or the package behind it is not installed."""


class BackendAuthError(BackendError, PermissionError):
    """The backend refused the account."""


class BudgetExceededError(BackendError):
    """A limit on jobs or QPU seconds was reached before a submit; the work can be resumed."""


class BackendTimeoutError(BackendError, TimeoutError):
    """The backend did not answer within the time allowed."""


class JobFailedError(BackendError, RuntimeError):
    """A submitted job ended without a result.

    Args:
        message: What happened and what to do next.
        job_id: The provider's identifier of the job.
    """

    def __init__(self, message: str, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id

    def __reduce__(self) -> tuple[type[JobFailedError], tuple[str, str]]:
        return type(self), (str(self), self.job_id)  # copies and worker processes rebuild it with both arguments


class ParityError(HqtlError, AssertionError):
    """Two implementations that must give the same numbers do not."""
