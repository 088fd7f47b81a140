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
from tests.heads import heads as heads_of
from tests.heads import most_layers

heads = heads_of(10)
channels = st.tuples(*[st.floats(0.01, 10)] * 3)
preprocessings = st.builds(PreprocessSpec, size=st.integers(8, 4096), mean=channels, std=channels)


@given(heads | preprocessings)
def test_round_trip_through_json(spec: HeadSpec | PreprocessSpec) -> None:
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@given(heads)
def test_head_sizes(spec: HeadSpec) -> None:
    assert spec.weights_shape == (spec.num_layers, spec.num_qubits)
    assert spec.num_weights == spec.num_layers * spec.num_qubits
    assert spec.num_values == (2**spec.num_qubits if spec.embedding == "amplitude" else spec.num_qubits)
    sizes = {"amplitude": 2**spec.num_qubits - 1, "reuploading": spec.num_weights}
    assert spec.num_angles == sizes.get(spec.embedding, spec.num_qubits)


def test_default_head_is_the_papers() -> None:
    assert HeadSpec().to_dict() == {"num_qubits": 4, "embedding": "angle", "entangler": "pairwise", "num_layers": 1}
    assert HeadSpec().cx_pairs == ((0, 1), (2, 3), (1, 2))
    assert HeadSpec(num_qubits=5).cx_pairs == ((0, 1), (2, 3), (1, 2), (3, 4))
    assert HeadSpec(num_qubits=2).cx_pairs == ((0, 1),)


def test_a_head_from_before_there_was_an_ansatz_is_read_and_written_as_it_was() -> None:
    old = {"num_qubits": 4, "embedding": "angle", "entangler": "pairwise", "num_layers": 2}
    assert HeadSpec.from_dict(old) == HeadSpec(num_layers=2)
    assert HeadSpec(num_layers=2).to_dict() == old
    new = HeadSpec(ansatz="commuting").to_dict()
    assert new == {**old, "num_layers": 1, "ansatz": "commuting"}


def test_entanglers() -> None:
    pairs = {name: HeadSpec(entangler=name).cx_pairs for name in ("linear", "circular", "all_to_all")}
    assert pairs["linear"] == ((0, 1), (1, 2), (2, 3))
    assert pairs["circular"] == (*pairs["linear"], (3, 0))
    assert pairs["all_to_all"] == ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    assert all(HeadSpec(2, entangler=name).cx_pairs == ((0, 1),) for name in pairs)
    assert HeadSpec(ansatz="commuting").cx_pairs == ()


@pytest.mark.parametrize(("num_qubits", "layers"), [(2, 1), (3, 1), (4, 2), (5, 2), (6, 4), (8, 8), (10, 16)])
def test_commuting_has_as_many_layers_as_generators(num_qubits: int, layers: int) -> None:
    assert most_layers(num_qubits) == layers
    assert HeadSpec(num_qubits, num_layers=layers, ansatz="commuting").num_layers == layers
    with pytest.raises(ConfigError, match=f"num_layers must be at most {layers} .*; got {layers + 1}"):
        HeadSpec(num_qubits, num_layers=layers + 1, ansatz="commuting")


@pytest.mark.parametrize(
    "values",
    [
        {"num_qubits": 1},
        {"num_qubits": 17},
        {"num_qubits": 4.0},
        {"num_layers": True},
        {"num_layers": 0},
        {"num_layers": "2"},
        {"embedding": "phase"},
        {"entangler": "ring"},
        {"ansatz": "hardware_efficient"},
        {"num_qubits": 11, "embedding": "amplitude"},
        {"embedding": "amplitude", "ansatz": "commuting"},
        {"entangler": "linear", "ansatz": "commuting"},
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
