"""Does a bundle compute what it says? Its files, then every implementation of each stage against an independent one."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from hqtl_common.backends.registry import get_backend
from hqtl_common.bundle import ModelBundle
from hqtl_common.circuit import qiskit_circuit
from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import InputError, ParityError
from hqtl_common.manifest import FAMILIARITY, FP32
from hqtl_common.preprocess import preprocess_batch, suffixes_of
from hqtl_common.records import InferenceBatch
from hqtl_common.specs import PreprocessSpec
from hqtl_common.stages import Stage
from training.export import LOGIT_TOLERANCE, Fused
from training.qasm import qasm_expvals
from training.rebuild import rebuild_model
from training.synth import SynthSpec, synth_patch
from training.synth_volumes import SynthVolumeSpec, synth_volume

__all__ = ["Check", "verify_bundle"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
_Interface = tuple[tuple[str | int, ...], tuple[str | int, ...]]  # of input and output: name, and shape without the rows

_FUSED_TOLERANCE = 1e-5
_EXPVAL_TOLERANCE = 1e-6
_FEATURE_TOLERANCE = {"fp16": 0.02, "int8": 0.4}  # of their length; another network's are as long and point elsewhere
_TIES = 1.5  # held-out images that rounding may put on the other side of a distance
_NUM_IMAGES = 4
_NUM_ANGLES = 32


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison.

    Args:
        name: What was compared.
        difference: Largest absolute difference.
        tolerance: The largest that is accepted.
    """

    name: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """The difference is within the tolerance (an undefined one is not)."""
        return self.difference <= self.tolerance


def verify_bundle(path: Path, images: Path | None = None) -> list[Check]:
    """Check the files of a bundle and every parity that must hold.

    Args:
        path: The bundle.
        images: A folder with photographs or volumes to compare on (default: synthetic ones).

    Raises:
        BundleError: A file is missing, too many, changed or not legal; nothing was run.
        ParityError: The bundle's backbone is not the architecture that it names, or a stage has other names or shapes than it should.
        InputError: ``images`` holds no image.
    """
    bundle = ModelBundle.load(path)
    _check_interfaces(bundle)
    spec = bundle.preprocess
    random = np.random.default_rng(1).normal(size=(_NUM_IMAGES, *spec.pixels_shape)).astype(np.float32)
    real = preprocess_batch(_given(images, spec) if images else _synthetic(spec), spec)
    what = f"{'given' if images else 'synthetic'} {'photographs' if spec.depth is None else 'volumes'}"
    reference = Fused(*rebuild_model(bundle)).eval()
    checks: list[Check] = []
    fp32 = Stage(bundle.backbone_fp32, "the backbone in float32")
    with HybridClassifier(bundle) as classifier:
        for name, pixels in (("random images", random), (what, real)):
            staged = classifier.run(InferenceBatch(features=fp32(pixels))).logits
            assert staged is not None
            with torch.no_grad():
                expected = reference(torch.from_numpy(pixels)).numpy()
            checks.append(Check(f"ONNX Runtime against torch, logits of {name}", _distance(staged, expected), LOGIT_TOLERANCE))
            if "model.onnx" in bundle.manifest.files:
                fused = Stage(bundle.read("model.onnx"), "model.onnx")(pixels)
                checks.append(Check(f"model.onnx against the stages, logits of {name}", _distance(fused, staged), _FUSED_TOLERANCE))
        checks += _precision_checks(bundle, classifier, fp32(real), real, what)
    return checks + _head_checks(bundle) + _familiarity_checks(bundle)


def _check_interfaces(bundle: ModelBundle) -> None:
    """Every stage takes and gives one tensor of the documented name, and any number of rows."""
    head, features = bundle.head, bundle.manifest.backbone.feature_width
    pixels, classes = bundle.preprocess.pixels_shape, len(bundle.labels)
    backbone: _Interface = (("pixels", *pixels), ("features", features))
    expected: dict[str, _Interface] = {
        "backbone.onnx": backbone,
        FP32: backbone,
        "pre_net.onnx": (("features", features), ("angles", head.num_angles)),
        "post_net.onnx": (("expvals", head.num_qubits), ("logits", classes)),
        "model.onnx": (("pixels", *pixels), ("logits", classes)),
    }
    for name in sorted(expected.keys() & bundle.manifest.files.keys()):
        graph = onnx.load_model_from_string(bundle.read(name)).graph
        for values, (wanted, *shape) in zip((graph.input, graph.output), expected[name], strict=True):
            found = [(value.name, [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]) for value in values]
            if len(found) != 1 or found[0][0] != wanted or found[0][1][1:] != shape or not isinstance(found[0][1][0], str):
                raise ParityError(
                    f"{name} should have {wanted} (batch, {', '.join(map(str, shape))}); it has {found}: export the bundle again"
                )


def _precision_checks(bundle: ModelBundle, classifier: HybridClassifier, fp32: F32, pixels: F32, what: str) -> list[Check]:
    """Less precision: the same network all the same. How much its answers change, :mod:`training.precision_check` tells."""
    info = bundle.manifest.precision
    if info is None:
        return []
    distance = float(np.linalg.norm(classifier.extract(pixels) - fp32) / np.linalg.norm(fp32))
    return [Check(f"{info.name} against fp32, features of {what}, relative", distance, _FEATURE_TOLERANCE[info.name])]


def _familiarity_checks(bundle: ModelBundle) -> list[Check]:
    """The familiarity of features near the training images and farther off, against distances taken one by one."""
    if FAMILIARITY not in bundle.manifest.files:
        return []
    data = bundle.read(FAMILIARITY)
    graph = onnx.load_model_from_string(data).graph
    parts = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.initializer}
    if missing := {"mean", "components", "references", "held_out"} - parts.keys():
        raise ParityError(f"{FAMILIARITY} is not what this version exports ({', '.join(sorted(missing))} missing); export the bundle again")
    rng = np.random.default_rng(3)
    near = parts["mean"] + (parts["components"] @ parts["references"][:, :_NUM_ANGLES]).T
    spread = np.linalg.norm(near, axis=1, keepdims=True) * np.geomspace(1e-3, 1, len(near))[:, None] / np.sqrt(near.shape[1])
    features = (near + spread * rng.normal(size=near.shape)).astype(np.float32)
    unit = features / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    offsets = ((unit - parts["mean"]) @ parts["components"])[:, :, None] - parts["references"]
    distances = (offsets**2).sum(axis=1).min(axis=1)
    expected = (1 + (parts["held_out"] >= distances[:, None]).sum(axis=1)) / (1 + parts["held_out"].size)
    found = Stage(data, FAMILIARITY)(features)
    return [Check("familiarity.onnx against NumPy, familiarity", _distance(found, expected), _TIES / (1 + parts["held_out"].size))]


def _head_checks(bundle: ModelBundle) -> list[Check]:
    angles = np.random.default_rng(2).uniform(-np.pi / 2, np.pi / 2, size=(_NUM_ANGLES, bundle.head.num_angles))
    exact = get_backend("statevector").run(bundle.head, bundle.weights, angles).expvals
    others: dict[str, Callable[[], F64]] = {
        "PennyLane default.qubit": lambda: get_backend("pennylane:default.qubit").run(bundle.head, bundle.weights, angles).expvals,
        "Qiskit Statevector": lambda: _qiskit_expvals(bundle, angles),
        "head.qasm": lambda: qasm_expvals(bundle.read("head.qasm").decode(), angles),
    }
    return [Check(f"statevector against {name}, expvals", _distance(exact, run()), _EXPVAL_TOLERANCE) for name, run in others.items()]


def _qiskit_expvals(bundle: ModelBundle, angles: F64) -> F64:
    from qiskit.quantum_info import SparsePauliOp, Statevector

    circuit = qiskit_circuit(bundle.head, bundle.weights)
    count = bundle.head.num_qubits
    observables = [SparsePauliOp.from_sparse_list([("Z", [qubit], 1.0)], count) for qubit in range(count)]
    names = [f"angles[{k}]" for k in range(bundle.head.num_angles)]
    states = [Statevector(circuit.assign_parameters(dict(zip(names, row, strict=True)))) for row in angles]
    return np.array([[state.expectation_value(observable).real for observable in observables] for state in states])


def _synthetic(spec: PreprocessSpec) -> list[bytes]:
    encoded = []
    for index in range(_NUM_IMAGES):
        rng, buffer = np.random.default_rng([0, index]), io.BytesIO()
        if spec.depth is None:
            patch, _ = synth_patch(SynthSpec(), rng, crack=index % 2 == 0)
            Image.fromarray(patch).save(buffer, "PNG")
        else:
            np.save(buffer, synth_volume(SynthVolumeSpec(), rng, crack=index % 2 == 0))
        encoded.append(buffer.getvalue())
    return encoded


def _given(folder: Path, spec: PreprocessSpec) -> list[Path]:
    suffixes = suffixes_of(spec)
    found = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(suffixes) and path.is_file())
    if not found:
        raise InputError(f"{str(folder)!r} holds no {'image' if spec.depth is None else 'volume'} ({' '.join(suffixes)})")
    return found[:: max(1, len(found) // _NUM_IMAGES)][:_NUM_IMAGES]


def _distance(left: NDArray[np.floating], right: NDArray[np.floating]) -> float:
    return float(np.abs(np.asarray(left, dtype=np.float64) - right).max()) if left.shape == right.shape else float("inf")
