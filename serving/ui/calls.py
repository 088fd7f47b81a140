"""A call of the page, checked before Gradio sees it: Gradio answers 500 to what it does not expect, and would fetch addresses."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from serving.errors import FieldError
from serving.settings import ServiceSettings

__all__ = ["NONE", "PageCalls"]

NONE = "none"
_Count = Annotated[int, Field(ge=0, le=10**9)]
_Text = Annotated[str, Field(max_length=200)]


class _Call(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    fn_index: int
    data: list[Any]


def _one_of(*names: str) -> Any:
    return Annotated[str, Field(pattern=f"^({'|'.join(map(re.escape, names))})$")]


def _adapter(kinds: tuple[Any, ...]) -> TypeAdapter[tuple[Any, ...]]:
    made: Any = tuple.__class_getitem__(kinds)
    return TypeAdapter(made)


class PageCalls:
    """What the functions of the page take, in the order in which the page defines them.

    Args:
        settings: The backends on offer.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        backend, other = _one_of(*settings.backends), _one_of(NONE, *settings.backends)
        kinds: list[tuple[Any, ...]] = [
            (str, backend, _Count, other, _Count, _Text),  # classify
            (str, backend, _Count, _Count),  # chart
            *([(_Text,)] * 2 if settings.jobs is not None else []),  # follow, and its repetition
        ]
        self._kinds = [_adapter(kind) for kind in kinds]

    def check(self, raw: bytes | bytearray) -> bytes:
        """The call without whatever else its sender has put into it.

        Raises:
            FieldError: It is none that the page makes.
        """
        try:
            call = _Call.model_validate_json(raw)
            data = self._kinds[call.fn_index].validate_python(call.data) if 0 <= call.fn_index < len(self._kinds) else None
        except ValidationError as error:
            problem: Any = error.errors(include_url=False, include_input=False)[0]
            raise FieldError(".".join(map(str, problem["loc"])) or "data", str(problem["msg"])) from error
        if data is None:
            raise FieldError("fn_index", f"must be below {len(self._kinds)}; got {call.fn_index}")
        return json.dumps({"fn_index": call.fn_index, "data": data, "session_hash": None}).encode()
