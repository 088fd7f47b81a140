"""What a bundle knows of its training images, so that it can say how unlike them another image is.

The distance of an image is that to the nearest training image, between features of unit length (Sun et al. 2022,
arXiv:2204.06507) projected to the principal components of the training set; of the methods that ``benchmarks/familiarity.py``
compares it told other data sets best from the own one. The familiarity is the share of held-out images, the image itself among
them, whose distance is at least as large: a conformal p-value. An image drawn as the held-out ones were is called unfamiliar at
level α with a probability of at most α, whatever the distances look like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from hqtl_common.errors import InputError
from hqtl_common.manifest import FamiliarityInfo
from hqtl_common.stages import Stage

__all__ = ["LEVEL", "METHOD", "Reference", "build_reference"]

F32 = NDArray[np.float32]

LEVEL = 0.02
METHOD = "distance to the nearest training image, features of unit length"
_RANK, _MAX_REFERENCE, _MAX_HELD_OUT = 64, 4096, 4096
_OPSET, _IR_VERSION = 20, 10
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Reference:
    """``familiarity.onnx`` and what the manifest says of it.

    Args:
        model: Features (B, F) float32 → familiarity (B,) float32.
        info: Its description.
    """

    model: bytes
    info: FamiliarityInfo

    def familiarity(self, features: F32) -> F32:
        """(B, F) → (B,)."""
        answer: F32 = Stage(self.model, "familiarity", threads=1)(features)
        return answer

    def flagged(self, features: F32) -> float:
        """Share of the images (B, F) that are called unfamiliar."""
        return float((self.familiarity(features) <= np.float32(self.info.level)).mean())


def build_reference(train: F32, held_out: F32, level: float = LEVEL) -> Reference:
    """A reference from features of the training split and of images it was not trained on; the same input gives the same bytes.

    Args:
        train: (N, F).
        held_out: (M, F), drawn as the images to come will be.
        level: An image is called unfamiliar up to this familiarity; below 1/(M+1) none ever is.

    Raises:
        InputError: No image in a split, or features that are not finite numbers.
    """
    if not len(train) or not len(held_out) or not (np.isfinite(train).all() and np.isfinite(held_out).all()):
        raise InputError("familiarity needs finite features of training and of held-out images")
    unit = _unit(train)
    mean = unit.mean(axis=0)
    components = _principal(unit - mean)
    references = ((unit - mean) @ components)[_spread(len(train), _MAX_REFERENCE)]
    parts = {"mean": mean, "components": components, "references": references.T}
    weights = {name: value.astype(np.float32) for name, value in parts.items()}
    distances = Stage(_graph(weights, None), "distance", threads=1)(held_out)
    kept = np.sort(distances)[_spread(len(distances), _MAX_HELD_OUT)]
    info = FamiliarityInfo(method=METHOD, level=level, num_reference=references.shape[0], rank=references.shape[1], num_held_out=len(kept))
    return Reference(_graph(weights, kept), info)


def _unit(features: F32) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), _TINY)
    return unit


def _principal(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """Directions (F, r) of the largest spread, each with its largest entry positive: a sign is no property of a direction."""
    rows = np.linalg.svd(centred, full_matrices=False)[2][:_RANK]
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])
    directions: NDArray[np.float64] = (rows * signs[:, None]).T
    return directions


def _spread(count: int, most: int) -> NDArray[np.intp]:
    """Positions of at most ``most`` of ``count`` items, evenly."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.intp)


def _graph(weights: dict[str, F32], held_out: F32 | None) -> bytes:
    """Features (B, F) → distances (B,), or with the distances of held-out images → familiarity (B,).

    The squared distance to reference y is |x|² − (2·x·y − |y|²): one product with all references, and the largest of its rows.
    """
    constants = {
        **weights,
        "tiny": np.float32(_TINY),
        "squares": -(weights["references"].astype(np.float64) ** 2).sum(axis=0, keepdims=True).astype(np.float32),
        "axis": np.array([1], dtype=np.int64),
        "zero": np.float32(0),
    }
    nodes = [
        helper.make_node("ReduceL2", ["features", "axis"], ["length"], keepdims=1),
        helper.make_node("Max", ["length", "tiny"], ["safe"]),
        helper.make_node("Div", ["features", "safe"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centred"]),
        helper.make_node("MatMul", ["centred", "components"], ["x"]),
        helper.make_node("ReduceSumSquare", ["x", "axis"], ["own"], keepdims=1),
        helper.make_node("Gemm", ["x", "references", "squares"], ["products"], alpha=2.0),
        helper.make_node("ReduceMax", ["products", "axis"], ["nearest"], keepdims=1),
        helper.make_node("Sub", ["own", "nearest"], ["difference"]),
        helper.make_node("Max", ["difference", "zero"], ["distance"]),
    ]
    if held_out is None:
        nodes.append(helper.make_node("Squeeze", ["distance", "axis"], ["answer"]))
    else:
        constants |= {"held_out": held_out[None, :], "one": np.float32(1), "all": np.float32(len(held_out) + 1)}
        nodes += [
            helper.make_node("GreaterOrEqual", ["held_out", "distance"], ["farther"]),
            helper.make_node("Cast", ["farther"], ["ones"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["ones", "axis"], ["count"], keepdims=0),
            helper.make_node("Add", ["count", "one"], ["with_itself"]),
            helper.make_node("Div", ["with_itself", "all"], ["answer"]),
        ]
    graph = helper.make_graph(
        nodes,
        "familiarity",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(weights["mean"])])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
