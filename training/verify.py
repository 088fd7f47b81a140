"""Does a bundle compute what it says? Its files, then every implementation of each stage against an independent one."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import models

from hqtl_common.backends.registry import get_backend
from hqtl_common.bundle import ModelBundle
from hqtl_common.circuit import qiskit_circuit
from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import InputError, ParityError
from hqtl_common.preprocess import IMAGE_SUFFIXES, preprocess_batch
from hqtl_common.records import InferenceBatch
from hqtl_common.stages import Stage
from training.backbones import BACKBONES
from training.export import LOGIT_TOLERANCE, Fused
from training.head import StatevectorHead
from training.model import HybridModel
from training.onnx_export import fold_batch_norm, load_initializers
from training.synth import SynthSpec, synth_patch

__all__ = ["Check", "verify_bundle"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_FUSED_TOLERANCE = 1e-5
_EXPVAL_TOLERANCE = 1e-6
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
        images: A folder with photographs to compare on (default: synthetic ones).

    Raises:
        BundleError: A file is missing, too many, changed or not legal; nothing was run.
        ParityError: The bundle's backbone is not the architecture that it names.
        InputError: ``images`` holds no image.
    """
    bundle = ModelBundle.load(path)
    size = bundle.preprocess.size
    random = np.random.default_rng(1).normal(size=(_NUM_IMAGES, 3, size, size)).astype(np.float32)
    real = preprocess_batch(_photographs(images) if images else _synthetic(), bundle.preprocess)
    reference = _torch_model(bundle)
    checks: list[Check] = []
    with HybridClassifier(bundle) as classifier:
        for name, pixels in (("random images", random), ("synthetic photographs" if images is None else "given photographs", real)):
            staged = classifier.run(InferenceBatch(pixels=pixels)).logits
            assert staged is not None
            with torch.no_grad():
                expected = reference(torch.from_numpy(pixels)).numpy()
            checks.append(Check(f"ONNX Runtime against torch, logits of {name}", _distance(staged, expected), LOGIT_TOLERANCE))
            if "model.onnx" in bundle.manifest.files:
                fused = Stage(bundle.read("model.onnx"), "model.onnx")(pixels)
                checks.append(Check(f"model.onnx against the stages, logits of {name}", _distance(fused, staged), _FUSED_TOLERANCE))
    return checks + _head_checks(bundle)


def _head_checks(bundle: ModelBundle) -> list[Check]:
    angles = np.random.default_rng(2).uniform(-np.pi / 2, np.pi / 2, size=(_NUM_ANGLES, bundle.head.num_angles))
    exact = get_backend("statevector").run(bundle.head, bundle.weights, angles).expvals
    others: dict[str, Callable[[], F64]] = {
        "PennyLane default.qubit": lambda: get_backend("pennylane:default.qubit").run(bundle.head, bundle.weights, angles).expvals,
        "Qiskit Statevector": lambda: _qiskit_expvals(bundle, angles),
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


def _torch_model(bundle: ModelBundle) -> Fused:
    """The bundle's weights in torch's own architecture."""
    info = bundle.manifest.backbone
    if info.name not in BACKBONES:
        raise ParityError(f"the bundle's backbone {info.name!r} cannot be computed by torch here; known are {', '.join(BACKBONES)}")
    network = models.get_model(info.name, weights=None)
    BACKBONES[info.name].strip(network)
    backbone = load_initializers(fold_batch_norm(network), bundle.read("backbone.onnx"))
    head = StatevectorHead(bundle.head, torch.from_numpy(bundle.weights.copy()))
    model = HybridModel(info.feature_width, len(bundle.labels), head)
    load_initializers(model.pre_net, bundle.read("pre_net.onnx"))
    load_initializers(model.post_net, bundle.read("post_net.onnx"))
    return Fused(backbone, model).eval()


def _synthetic() -> list[bytes]:
    encoded = []
    for index in range(_NUM_IMAGES):
        patch, _ = synth_patch(SynthSpec(), np.random.default_rng([0, index]), crack=index % 2 == 0)
        buffer = io.BytesIO()
        Image.fromarray(patch).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def _photographs(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise InputError(f"{str(folder)!r} holds no image ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return found[:: max(1, len(found) // _NUM_IMAGES)][:_NUM_IMAGES]


def _distance(left: NDArray[np.floating], right: NDArray[np.floating]) -> float:
    return float(np.abs(np.asarray(left, dtype=np.float64) - right).max()) if left.shape == right.shape else float("inf")
