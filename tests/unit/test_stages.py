"""ONNX Runtime sessions over bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from hqtl_common.errors import BundleFormatError, ConfigError, ShapeError
from hqtl_common.providers import PROVIDERS
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


class TestProviders:
    @pytest.mark.parametrize("names", [("NoProvider", "cpu"), (), ("cpu", "cpu"), ("CPUExecutionProvider",)])
    def test_what_is_no_list_of_providers_is_refused_and_the_known_ones_listed(self, names: tuple[str, ...]) -> None:
        with pytest.raises(ConfigError, match="cpu, cuda, tensorrt"):
            Stage(linear(), "linear", providers=names)

    @pytest.mark.parametrize("name", ["cuda", "tensorrt"])
    def test_what_is_not_installed_is_refused_with_what_to_install(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(ConfigError, match=rf"{PROVIDERS[name]} \(it has CPUExecutionProvider\): install onnxruntime-gpu"):
            Stage(linear(), "linear", providers=(name, "cpu"))

    def test_the_one_in_effect_is_told(self) -> None:
        stage = Stage(linear(), "linear", providers=["cpu"])
        assert stage.providers == ("cpu",)

    @pytest.mark.parametrize("name", ["cuda", "tensorrt"])
    def test_the_processor_never_steps_in_silently(self, name: str, runtime: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """ONNX Runtime itself goes on with the processor where the libraries of a provider are missing."""
        with pytest.raises(ConfigError, match=f"could not start {name}: .*onnxruntime-gpu"):
            Stage(linear(), "linear", providers=(name,))

        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("libcudnn is missing")

        monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **o: broken() if len(o["providers"][0]) == 2 else None)
        with pytest.raises(ConfigError, match="libcudnn is missing"):
            Stage(linear(), "linear", providers=(name,))

    def test_they_are_asked_in_order_with_options_that_fit_any_batch(self, runtime: list[Any]) -> None:
        with pytest.raises(ConfigError):
            Stage(linear(), "linear", providers=("tensorrt", "cuda", "cpu"), max_batch=8)
        asked = dict(runtime[0])
        assert list(asked) == [PROVIDERS[name] for name in ("tensorrt", "cuda", "cpu")]
        assert asked["TensorrtExecutionProvider"]["trt_profile_min_shapes"] == "x:1x3"
        assert asked["TensorrtExecutionProvider"]["trt_profile_max_shapes"] == "x:8x3"
        assert asked["CUDAExecutionProvider"]["use_tf32"] == "0"
        assert asked["CPUExecutionProvider"] == {}

    def test_a_bad_model_is_not_blamed_on_the_provider(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
        with pytest.raises(BundleFormatError, match="linear"):
            Stage(b"nonsense", "linear", providers=("cuda", "cpu"))
        with pytest.raises(BundleFormatError, match="linear"):
            Stage(b"nonsense", "linear", providers=("tensorrt",))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An ONNX Runtime that knows every provider and starts none of them but the processor; what it was asked for."""
    asked: list[Any] = []
    session = onnxruntime.InferenceSession

    def open_session(model: bytes, options: Any, providers: list[Any], enable_fallback: int) -> Any:
        assert not enable_fallback
        asked.append(providers)
        return session(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    return asked


def test_one_stage_serves_several_threads() -> None:
    stage = Stage(linear(), "linear", threads=1)
    batches = [np.random.default_rng(k).normal(size=(k + 1, 3)).astype(np.float32) for k in range(64)]
    with ThreadPoolExecutor(4) as pool:
        for batch, answer in zip(batches, pool.map(stage, batches), strict=True):
            np.testing.assert_allclose(answer, batch @ WEIGHTS, rtol=1e-4, atol=1e-5)


def test_available_cores_respects_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 7})
    assert available_cores() == 3
