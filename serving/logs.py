"""One JSON object per line: when, how severe, from where, what; and for every request its id, route, status and duration.

No key, no header, no query and nothing of a body is ever logged: a request is described by figures, names of routes and backends,
and the public identifier of its key.
"""

from __future__ import annotations

import json
import logging
import logging.config
from datetime import UTC, datetime
from typing import Any

__all__ = ["FIELDS", "JsonFormatter", "configure", "log_request"]

logger = logging.getLogger("hqtl.request")

# What a record may carry besides its message, in the order of the line.
FIELDS = (
    *("request_id", "method", "route", "path", "status", "code", "duration_ms", "key"),
    *("backend", "images", "shots", "qpu_seconds", "bytes_in", "client"),
)
_MAX_TEXT = 500


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; what is not in :data:`FIELDS` stays out."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        line |= {name: _short(value) for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: int = logging.INFO) -> None:
    """Let everything in this process log JSON lines on standard output, in place of what was configured before."""
    quiet = {"level": "WARNING", "handlers": [], "propagate": True}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonFormatter}},
            "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}},
            "loggers": {
                "hqtl": {"level": level},
                "python_multipart": {"level": "ERROR"},  # it tells of every bad body, without the id of the request
                **dict.fromkeys(("bentoml", "uvicorn", "uvicorn.error", "circus"), quiet),
            },
            "root": {"level": "WARNING", "handlers": ["out"]},
        }
    )


def log_request(**fields: Any) -> None:
    """The line of one request, by the names of :data:`FIELDS`."""
    logger.info("request", extra={name: value for name, value in fields.items() if value is not None})


def _short(value: Any) -> Any:
    return value[:_MAX_TEXT] if isinstance(value, str) else value
