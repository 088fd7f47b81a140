"""The exported model, a folder: save, load, verify. Nothing in it is ever pickled or executed.

Loading reads the manifest, refuses every file that is missing, unexpected, a link or changed, and refuses ONNX models
that point to data outside themselves, all before ONNX Runtime sees a byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from hqtl_common.circuit import openqasm3
from hqtl_common.errors import BundleFormatError, BundleIntegrityError, ConfigError, ShapeError
from hqtl_common.manifest import ALLOWED_FILES, FAMILIARITY, FP32, MANIFEST, REQUIRED_FILES, FileEntry, Manifest
from hqtl_common.specs import HeadSpec, PreprocessSpec

__all__ = ["ModelBundle"]


@dataclass(frozen=True)
class ModelBundle:
    """A verified bundle.

    Args:
        path: Its folder.
        manifest: What it says about itself.
        weights: (L, n) float64, the head's trained rotations in radians.
    """

    path: Path
    manifest: Manifest
    weights: NDArray[np.float64]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.manifest.labels

    @property
    def head(self) -> HeadSpec:
        """The head's structure."""
        return self.manifest.head_spec

    @property
    def preprocess(self) -> PreprocessSpec:
        """The preprocessing."""
        return self.manifest.preprocess_spec

    @property
    def backbone_fp32(self) -> bytes:
        """The backbone in float32: what runs, or what that was made from.

        Raises:
            BundleIntegrityError: It was changed since the bundle was loaded.
        """
        return self.read("backbone.onnx" if self.manifest.precision is None else FP32)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelBundle:
        """Open and verify a bundle.

        Raises:
            BundleFormatError: Not a bundle, a file too many or too few, a link, or external ONNX data.
            BundleVersionError: A schema of another version.
            BundleIntegrityError: A file was changed.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BundleFormatError(f"expected the folder of a bundle; {str(folder)!r} is not a folder")
        manifest = Manifest.from_bytes(_read_regular(folder, MANIFEST))
        _check_names(folder, manifest)
        for name in sorted(manifest.files):
            data = _read_checked(folder, name, manifest.files[name])
            if name.endswith(".onnx"):
                _check_self_contained(name, data)
        weights = _parse_head(_read_checked(folder, "head.json", manifest.files["head.json"]), manifest.head_spec)
        return cls(folder, manifest, weights)

    def read(self, name: str) -> bytes:
        """The bytes of one file, checked once more against the manifest.

        Raises:
            BundleFormatError: The bundle has no such file.
            BundleIntegrityError: It was changed since the bundle was loaded.
        """
        if name not in self.manifest.files:
            raise BundleFormatError(f"the bundle {str(self.path)!r} holds no {name}; it holds {', '.join(sorted(self.manifest.files))}")
        return _read_checked(self.path, name, self.manifest.files[name])

    @classmethod
    def save(
        cls, path: str | os.PathLike[str], manifest: Manifest, weights: NDArray[np.float64], files: Mapping[str, bytes]
    ) -> ModelBundle:
        """Write a bundle in one step: it stands whole at ``path`` or not at all.

        Args:
            path: Folder to make; it must not exist yet, or be an empty folder.
            manifest: Its ``files`` are filled in here.
            weights: (L, n) radians.
            files: The ONNX files and MODEL_CARD.md by name; head.json and head.qasm are made here.

        Raises:
            ConfigError: ``path`` exists and is not empty.
            BundleFormatError: A name that a bundle does not have, or a required one missing.
            ShapeError: ``weights`` do not fit the manifest's head.
        """
        target = Path(path)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"{str(target)!r} exists already; give another folder or remove it first")
        unknown = sorted(set(files) - ALLOWED_FILES)
        if unknown:
            raise BundleFormatError(f"a bundle has no {', '.join(unknown)}; it may hold {', '.join(sorted(ALLOWED_FILES))}")
        spec = manifest.head_spec
        if np.shape(weights) != spec.weights_shape or not np.isfinite(weights).all():
            raise ShapeError(f"weights must be finite and of the shape {spec.weights_shape}; got {np.shape(weights)}")
        head = {**spec.to_dict(), "weights": np.asarray(weights, dtype=np.float64).tolist()}
        contents = {
            **files,
            "head.json": (json.dumps(head, indent=2, sort_keys=True) + "\n").encode(),
            "head.qasm": openqasm3(spec, weights).encode(),
        }
        entries = {name: FileEntry(sha256=_sha256(data), size=len(data)) for name, data in contents.items()}
        contents[MANIFEST] = manifest.model_copy(update={"files": entries}).to_bytes()
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            for name, data in contents.items():
                (staging / name).write_bytes(data)
            cls.load(staging)
            staging.chmod(0o755)
            staging.replace(target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return cls.load(target)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_names(folder: Path, manifest: Manifest) -> None:
    listed, present = set(manifest.files), {entry.name for entry in folder.iterdir()} - {MANIFEST}
    problems = {
        "missing in the folder": listed - present,
        "not listed in the manifest": present - listed,
        "required in every bundle but not listed": REQUIRED_FILES - listed,
        "not part of the bundle format": listed - ALLOWED_FILES,
    }
    for problem, names in problems.items():
        if names:
            raise BundleFormatError(f"bundle {str(folder)!r}: {problem}: {', '.join(sorted(names))}; export it again")
    for name, described in ((FAMILIARITY, manifest.familiarity), (FP32, manifest.precision)):
        if (name in listed) != (described is not None):
            raise BundleFormatError(f"bundle {str(folder)!r}: {name} and its description in the manifest come together or not at all")


def _read_regular(folder: Path, name: str) -> bytes:
    try:
        with open(folder / name, "rb", opener=_open_no_link) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleFormatError(f"{name} of the bundle {str(folder)!r} is not a regular file")
            return file.read()
    except OSError as error:
        raise BundleFormatError(f"cannot read {name} of the bundle {str(folder)!r}: {error.strerror}; links are refused") from error


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _read_checked(folder: Path, name: str, entry: FileEntry) -> bytes:
    data = _read_regular(folder, name)
    if len(data) != entry.size or _sha256(data) != entry.sha256:
        raise BundleIntegrityError(
            f"{name} of the bundle {str(folder)!r} was changed after export (SHA-256 differs); copy or export it again"
        )
    return data


def _check_self_contained(name: str, data: bytes) -> None:
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError has no public stable base
        raise BundleFormatError(f"{name} is not an ONNX model: {error}") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(model.graph)):
        raise BundleFormatError(f"{name} keeps tensors in other files; a bundle's models hold all their data")
    if any(_nested_tensors(function.node) for function in model.functions):
        raise BundleFormatError(f"{name} keeps tensors inside functions; a bundle's models are plain graphs")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _nested_tensors(graph.node)


def _nested_tensors(nodes: object) -> list[onnx.TensorProto]:
    found: list[onnx.TensorProto] = []
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += [*attribute.tensors]
            for sparse in [*attribute.sparse_tensors, *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]:
                found += [sparse.values, sparse.indices]
            for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                found += _tensors(graph)
    return found


def _parse_head(data: bytes, spec: HeadSpec) -> NDArray[np.float64]:
    try:
        values = json.loads(data)
        weights = np.asarray(values.pop("weights"), dtype=np.float64)
        found = HeadSpec.from_dict(values)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BundleFormatError(f"head.json does not describe a head: {error}") from error
    if found != spec or weights.shape != spec.weights_shape or not np.isfinite(weights).all():
        raise BundleFormatError(f"head.json holds {found} with weights {weights.shape}; the manifest says {spec}")
    weights.setflags(write=False)
    return weights
