"""From features to gate angles: ranges, amplitudes, gradients, ONNX."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtl_common import HeadSpec
from hqtl_common.backends import statevector
from tests.heads import EMBEDDINGS
from training.onnx_export import load_initializers, to_onnx
from training.pre_net import PreNet

SEEDS = st.integers(0, 2**32 - 1)


def amplitudes(spec: HeadSpec, angles: torch.Tensor) -> np.ndarray:
    """What the gates of the embedding prepare, (R, 2^n)."""
    return statevector._embedded(spec, angles.detach().double().numpy())


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_shapes_ranges_and_leading_axes(embedding: str) -> None:
    spec = HeadSpec(3, embedding, num_layers=2)
    pre_net, features = PreNet(5, spec), 30 * torch.randn(2, 4, 5)
    angles = pre_net(features)
    assert angles.shape == (2, 4, spec.num_angles)
    assert angles.dtype == torch.float32
    torch.testing.assert_close(pre_net(features[1]), angles[1])
    if embedding != "amplitude":
        assert angles.abs().max() <= torch.pi / 2
        torch.testing.assert_close(angles[..., :3], torch.tanh(pre_net.linear(features)) * torch.pi / 2)
    if embedding == "reuploading":
        assert torch.equal(angles[..., 3:], angles[..., :3])


@given(num_qubits=st.integers(2, 7), seed=SEEDS, scale=st.floats(1e-3, 1e6))
def test_amplitudes_are_the_values_normalised(num_qubits: int, seed: int, scale: float) -> None:
    spec = HeadSpec(num_qubits, "amplitude")
    values = np.random.default_rng(seed).normal(size=(3, 2**num_qubits))
    angles = PreNet(1, spec).to_angles(torch.from_numpy(scale * values).float())
    np.testing.assert_allclose(amplitudes(spec, angles), values / np.linalg.norm(values, axis=1, keepdims=True), atol=2e-6)


@pytest.mark.parametrize(
    "values", [[0.0] * 8, [0, 0, 0, 0, 0, 0, 0, -1], [1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 3, 0, 0, -4, 0, 1e-9], [1e-30] * 8]
)
def test_parts_that_are_empty_have_an_angle_and_a_slope(values: list[float]) -> None:
    spec = HeadSpec(3, "amplitude")
    given_ = torch.tensor([values], dtype=torch.float32, requires_grad=True)
    angles = PreNet(1, spec).to_angles(given_)
    angles.square().sum().backward()
    assert given_.grad is not None
    assert torch.isfinite(given_.grad).all()
    norm = np.linalg.norm(values)
    expected = np.array(values) / norm if norm > 1e-6 else np.eye(8)[0]
    np.testing.assert_allclose(amplitudes(spec, angles)[0], expected, atol=1e-6)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_the_tree_is_differentiated_rightly(seed: int) -> None:
    tree = PreNet(1, HeadSpec(3, "amplitude")).double().to_angles
    values = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.autograd.gradcheck(tree, (values.requires_grad_(),), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("embedding", ["angle", "reuploading", "amplitude"])
def test_onnx_gives_the_same_angles(embedding: str) -> None:
    spec = HeadSpec(4, embedding, num_layers=3)
    pre_net, features = PreNet(6, spec), torch.randn(50, 6)
    features[0] = 0
    data = to_onnx(pre_net, torch.zeros(2, 6), "features", "angles")
    (found,) = onnxruntime.InferenceSession(data).run(None, {"features": features.numpy()})
    np.testing.assert_allclose(found, pre_net(features).detach().numpy(), atol=5e-6)
    twin = load_initializers(PreNet(6, spec), data)
    assert torch.equal(twin(features), pre_net(features))
