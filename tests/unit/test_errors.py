"""The tree of errors is the one that the module's docstring draws."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import re

import pytest

from hqtl_common import errors


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """Name → (parent, builtin base) read from the drawing."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^(?P<indent>[\s│├└─]*)(?P<name>[A-Z]\w+Error)(?: \((?P<base>\w+)\))?", line)
        if not found or "Error" not in line or not line.startswith("    "):
            continue
        while path and path[-1][0] >= len(found["indent"]):
            path.pop()
        tree[found["name"]] = (path[-1][1] if path else None, found["base"])
        path.append((len(found["indent"]), found["name"]))
    return tree


CLASSES = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls) and cls.__module__ == errors.__name__}


def test_every_class_is_drawn_and_exported() -> None:
    assert set(drawn_tree()) == set(CLASSES) == set(errors.__all__)


@pytest.mark.parametrize(("name", "parent", "base"), [(name, *bases) for name, bases in drawn_tree().items()])
def test_bases_are_as_drawn(name: str, parent: str | None, base: str | None) -> None:
    expected = (CLASSES[parent] if parent else Exception, *([getattr(builtins, base)] if base else []))
    assert CLASSES[name].__bases__ == expected
    assert CLASSES[name].__doc__


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"JobFailedError"}))
def test_message_is_kept(name: str) -> None:
    error = CLASSES[name]("expected a, got b")
    assert str(error) == "expected a, got b"
    assert str(pickle.loads(pickle.dumps(error))) == "expected a, got b"


def test_failed_job_keeps_its_identifier_through_copies() -> None:
    error = errors.JobFailedError("the job ended as ERROR", job_id="d1k2")
    for same in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (str(same), same.job_id) == ("the job ended as ERROR", "d1k2")
