"""A complete bundle of a few kilobytes with a toy backbone, for tests that are not about the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hqtl_common import HeadSpec, ModelBundle, PreprocessSpec
from hqtl_common.calibration import Calibration, Reliability
from hqtl_common.manifest import BackboneInfo, Manifest, SplitInfo

if TYPE_CHECKING:
    from training.familiarity import Reference

FEATURES = 48  # a 4 × 4 grid of mean intensities in three channels


def onnx_bytes(nodes: list, initializers: dict[str, np.ndarray], in_shape: list, out_shape: list, dtype: int) -> bytes:
    """A one-input, one-output model with dynamic batch."""
    graph = helper.make_graph(
        nodes,
        "stage",
        [helper.make_tensor_value_info("x", dtype, ["batch", *in_shape])],
        [helper.make_tensor_value_info("y", dtype, ["batch", *out_shape])],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString(deterministic=True)


def tiny_bundle(
    path: Path,
    seed: int = 0,
    spec: HeadSpec | None = None,
    labels: tuple[str, ...] = ("crack", "no_crack"),
    reference: Reference | None = None,
    **fields: Any,
) -> ModelBundle:
    """Write a bundle with random weights; answers differ between images. ``fields`` are those of the manifest."""
    spec = spec or HeadSpec()
    rng = np.random.default_rng(seed)
    pool = helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[56, 56], strides=[56, 56])
    flat = helper.make_node("Flatten", ["p"], ["y"])
    backbone = onnx_bytes([pool, flat], {}, [3, 224, 224], [FEATURES], TensorProto.FLOAT)
    pre = {
        "w": rng.normal(size=(FEATURES, spec.num_angles), scale=0.3).astype(np.float32),
        "b": np.zeros(spec.num_angles, np.float32),
        "k": np.float32(np.pi / 2),
    }
    pre_nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"]),
        helper.make_node("Tanh", ["g"], ["t"]),
        helper.make_node("Mul", ["t", "k"], ["y"]),
    ]
    pre_net = onnx_bytes(pre_nodes, pre, [FEATURES], [spec.num_angles], TensorProto.FLOAT)
    post = {"w": rng.normal(size=(spec.num_qubits, len(labels)), scale=2.0), "b": rng.normal(size=len(labels), scale=0.1)}
    post_net = onnx_bytes([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], post, [spec.num_qubits], [len(labels)], TensorProto.DOUBLE)
    manifest = Manifest(
        hqtl_version="0.1.0",
        labels=labels,
        positive_label=labels[0],
        preprocess=PreprocessSpec().to_dict(),
        head=spec.to_dict(),
        backbone=BackboneInfo(name="grid4x4", weights="none", weights_sha256="0" * 64, feature_width=FEATURES),
        split=SplitInfo(recipe="70/15/15", seed=0, group_by="none", sha256="0" * 64, counts={}),
        familiarity=None if reference is None else reference.info,
        **fields,
    )
    files = {"backbone.onnx": backbone, "pre_net.onnx": pre_net, "post_net.onnx": post_net, "MODEL_CARD.md": b"# A toy\n"}
    if reference is not None:
        files["familiarity.onnx"] = reference.model
    return ModelBundle.save(path, manifest, rng.uniform(-np.pi, np.pi, size=spec.weights_shape), files)


def calibration(backend: str = "statevector", shots: int | None = None, **fields: Any) -> Calibration:
    """An entry of a manifest; what is not given is of no interest."""
    figures = Reliability(nll=0.5, brier=0.2, ece=0.1, ece_low=0.05, ece_high=0.2, ece_chance=0.04)
    given = {"temperature": 2.0, "threshold": 0.5, "rule": "even odds", "subset": "val", "num_images": 50, **fields}
    return Calibration(backend=backend, shots=shots, before=figures, after=figures, **given)
