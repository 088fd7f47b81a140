"""head.qasm read by itself, against the exact head."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtl_common import HeadSpec, get_backend
from hqtl_common.circuit import openqasm3
from hqtl_common.errors import ParityError
from training.qasm import qasm_expvals

RNG = np.random.default_rng(5)
ANGLES = RNG.uniform(-1.5, 1.5, size=(3, 4))
WEIGHTS = RNG.uniform(-3, 3, size=(1, 4))

specs = st.one_of(
    st.builds(
        HeadSpec,
        num_qubits=st.integers(2, 5),
        embedding=st.sampled_from(["angle", "angle_rx", "angle_ry", "angle_rz", "reuploading", "amplitude"]),
        entangler=st.sampled_from(["pairwise", "linear", "circular", "all_to_all"]),
        num_layers=st.integers(1, 3),
    ),
    st.builds(HeadSpec, num_qubits=st.integers(3, 5), ansatz=st.just("commuting")),
)


@settings(max_examples=15)
@given(specs, st.integers(0, 10**6))
def test_text_means_what_the_head_computes(spec: HeadSpec, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, angles = rng.uniform(-3, 3, size=spec.weights_shape), rng.uniform(-1.5, 1.5, size=(2, spec.num_angles))
    expected = get_backend("statevector").run(spec, weights, angles).expvals
    np.testing.assert_allclose(qasm_expvals(openqasm3(spec, weights), angles), expected, atol=1e-9)


def changed(old: str, new: str) -> str:
    text = openqasm3(HeadSpec(), WEIGHTS)
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new"), [("cx q[0], q[1];", "cx q[1], q[0];"), ("ry(_angles_1_)", "ry(_angles_2_)"), ("h q[3];", "h q[2];")]
)
def test_another_circuit_gives_other_values(old: str, new: str) -> None:
    expected = get_backend("statevector").run(HeadSpec(), WEIGHTS, ANGLES).expvals
    assert np.abs(qasm_expvals(changed(old, new), ANGLES) - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("h q[3];", "reset q[3];", "a line that no head has: 'reset q[3];'"),
        ("input float[64] _angles_3_;\n", "", "3 inputs and 4 qubits; the head has 4 angles"),
        ("qubit[4] q;", "", "4 inputs and 0 qubits"),
        ("ry(_angles_1_)", "ry(_angles_9_)", "no number and no input: '_angles_9_'"),
    ],
)
def test_what_is_no_head_is_refused(old: str, new: str, says: str) -> None:
    with pytest.raises(ParityError, match=re.escape(says)):
        qasm_expvals(changed(old, new), ANGLES)
