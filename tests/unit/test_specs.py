"""HeadSpec, PreprocessSpec and their digest."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqtl_common.errors import ConfigError
from hqtl_common.specs import HeadSpec, PreprocessSpec, spec_digest

heads = st.builds(HeadSpec, num_qubits=st.integers(2, 16), num_layers=st.integers(1, 50))
channels = st.tuples(*[st.floats(0.01, 10)] * 3)
preprocessings = st.builds(PreprocessSpec, size=st.integers(8, 4096), mean=channels, std=channels)


@given(heads | preprocessings)
def test_round_trip_through_json(spec: HeadSpec | PreprocessSpec) -> None:
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@given(heads)
def test_head_sizes(spec: HeadSpec) -> None:
    assert spec.weights_shape == (spec.num_layers, spec.num_qubits)
    assert spec.num_weights == spec.num_layers * spec.num_qubits
    assert spec.num_angles == spec.num_qubits


def test_default_head_is_the_papers() -> None:
    assert HeadSpec().to_dict() == {"num_qubits": 4, "embedding": "angle", "entangler": "pairwise", "num_layers": 1}
    assert HeadSpec().cx_pairs == ((0, 1), (2, 3), (1, 2))
    assert HeadSpec(num_qubits=5).cx_pairs == ((0, 1), (2, 3), (1, 2), (3, 4))
    assert HeadSpec(num_qubits=2).cx_pairs == ((0, 1),)


@pytest.mark.parametrize(
    "values",
    [
        {"num_qubits": 1},
        {"num_qubits": 17},
        {"num_qubits": 4.0},
        {"num_layers": True},
        {"num_layers": 0},
        {"num_layers": "2"},
        {"embedding": "amplitude"},
        {"entangler": "ring"},
        {"entangler": ["pairwise"]},
        {"num_wires": 4},
    ],
)
def test_illegal_head(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        HeadSpec.from_dict(values)


@pytest.mark.parametrize(
    "values",
    [
        {"size": 0},
        {"size": 224.0},
        {"mean": [0.5, 0.5]},
        {"mean": ["a", "b", "c"]},
        {"mean": [float("nan"), 0, 0]},
        {"mean": None},
        {"std": [1, 1, 0]},
        {"std": [1, float("nan"), 1]},
        {"std": [1, 1, float("inf")]},
        {"std": "abc"},
        {"crop": 224},
    ],
)
def test_illegal_preprocessing(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        PreprocessSpec.from_dict(values)


def test_specs_are_frozen_and_hashable() -> None:
    assert len({HeadSpec(), HeadSpec(), HeadSpec(num_layers=2)}) == 2
    with pytest.raises(AttributeError):
        HeadSpec().num_layers = 2  # type: ignore[misc]


@given(heads, heads)
def test_digest_differs_where_specs_differ(one: HeadSpec, other: HeadSpec) -> None:
    assert (spec_digest(one) == spec_digest(other)) == (one == other)


def test_digest_tells_parts_apart() -> None:
    digests = {
        spec_digest("a", "b"),
        spec_digest("ab"),
        spec_digest("b", "a"),
        spec_digest("a", HeadSpec()),
        spec_digest("a", PreprocessSpec()),
    }
    assert len(digests) == 5


def test_digest_is_stable_across_processes() -> None:
    code = "from hqtl_common.specs import *; print(spec_digest(HeadSpec(num_layers=3), 'x'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == spec_digest(HeadSpec(num_layers=3), "x")
