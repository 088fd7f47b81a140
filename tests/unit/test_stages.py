"""ONNX Runtime sessions over bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto, helper

from hqtl_common.errors import BundleFormatError, ConfigError, ShapeError
from hqtl_common.stages import Stage, available_cores
from tests.tiny import onnx_bytes

WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)


def linear(dtype: int = TensorProto.FLOAT) -> bytes:
    weights = WEIGHTS.astype(helper.tensor_dtype_to_np_dtype(dtype))
    return onnx_bytes([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weights}, [3], [2], dtype)


@pytest.mark.parametrize(("dtype", "expected"), [(TensorProto.FLOAT, np.float32), (TensorProto.DOUBLE, np.float64)])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_runs_any_number_of_rows(dtype: int, expected: type, rows: int) -> None:
    batch = np.random.default_rng(0).normal(size=(rows, 3)).astype(expected)
    answer = Stage(linear(dtype), "linear")(batch)
    assert (answer.shape, answer.dtype) == ((rows, 2), expected)
    np.testing.assert_allclose(answer, batch @ WEIGHTS, rtol=1e-6)


def test_strided_and_wider_input_is_converted() -> None:
    batch = np.random.default_rng(0).normal(size=(3, 10))[:, ::2].T
    np.testing.assert_allclose(Stage(linear(), "linear")(batch), batch @ WEIGHTS, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 1), ()])
def test_other_shapes_are_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"^linear expects the shape \(B, 3\)"):
        Stage(linear(), "linear")(np.zeros(shape))


def two_inputs() -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("a", "b", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "two", values[:2], values[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.mark.parametrize(
    "model",
    [
        b"",
        b"not onnx at all",
        linear()[:-20],
        two_inputs(),
        onnx_bytes([helper.make_node("Neg", ["x"], ["y"])], {}, [3], [3], TensorProto.INT64),
        onnx_bytes([helper.make_node("NoSuchOperator", ["x"], ["y"])], {}, [3], [3], TensorProto.FLOAT),
    ],
    ids=["empty", "text", "cut", "two inputs", "integers", "unknown operator"],
)
def test_unusable_models_are_refused_by_name(model: bytes) -> None:
    with pytest.raises(BundleFormatError, match="pre_net"):
        Stage(model, "pre_net")


def test_unknown_provider_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(ConfigError, match=r"NoProvider.*CPUExecutionProvider"):
        Stage(linear(), "linear", providers=("NoProvider", "CPUExecutionProvider"))


def test_one_stage_serves_several_threads() -> None:
    stage = Stage(linear(), "linear", threads=1)
    batches = [np.random.default_rng(k).normal(size=(k + 1, 3)).astype(np.float32) for k in range(64)]
    with ThreadPoolExecutor(4) as pool:
        for batch, answer in zip(batches, pool.map(stage, batches), strict=True):
            np.testing.assert_allclose(answer, batch @ WEIGHTS, rtol=1e-4, atol=1e-5)


def test_available_cores_respects_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 7})
    assert available_cores() == 3
