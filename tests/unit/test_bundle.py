"""Save, load, and every way in which a folder may fail to be the bundle that was saved."""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pydantic import ValidationError

from hqtl_common import HybridClassifier, ModelBundle
from hqtl_common.errors import BundleError, BundleFormatError, BundleIntegrityError, BundleVersionError, ConfigError, ShapeError
from hqtl_common.manifest import MANIFEST, REQUIRED_FILES, FamiliarityInfo, FileEntry, Manifest
from hqtl_common.specs import HeadSpec
from tests.tiny import calibration, tiny_bundle

ONNX_FILES = ("backbone.onnx", "pre_net.onnx", "post_net.onnx")
GIVEN_FILES = (*ONNX_FILES, "MODEL_CARD.md")


@pytest.fixture
def copied(bundle: ModelBundle, tmp_path: Path) -> Path:
    """A copy of the bundle's folder that a test may spoil."""
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


@pytest.fixture(scope="module")
def spoilt(bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy for many examples; each puts back what it changes."""
    return Path(shutil.copytree(bundle.path, tmp_path_factory.mktemp("spoilt") / "copy"))


def given_files(bundle: ModelBundle) -> dict[str, bytes]:
    return {name: bundle.read(name) for name in GIVEN_FILES}


def reseal(folder: Path, **changes: Any) -> None:
    """What someone with write access does: change files or fields, then make every hash fit again."""
    values = json.loads((folder / MANIFEST).read_bytes())
    del values["manifest_sha256"]
    values |= changes
    values["files"] = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        for path in folder.iterdir()
        if path.name != MANIFEST
    }
    text = json.dumps(values, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    values["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(values, sort_keys=True, indent=2, ensure_ascii=False) + "\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------- what was saved comes back


@pytest.mark.parametrize("spec", [HeadSpec(), HeadSpec(num_qubits=2, num_layers=3), HeadSpec(num_qubits=5, num_layers=2)], ids=str)
def test_round_trip(tmp_path: Path, spec: HeadSpec) -> None:
    saved = tiny_bundle(tmp_path / "new" / "bundle", seed=4, spec=spec, labels=("Riß", "intakt", "unklar"))
    loaded = ModelBundle.load(str(tmp_path / "new" / "bundle"))
    assert loaded.manifest == saved.manifest
    assert (loaded.head, loaded.labels) == (spec, ("Riß", "intakt", "unklar"))
    np.testing.assert_array_equal(loaded.weights, saved.weights)
    with pytest.raises(ValueError, match="read-only"):
        loaded.weights[0, 0] = 0


def test_weights_come_back_to_the_last_bit(bundle: ModelBundle, tmp_path: Path) -> None:
    weights = np.array([[np.pi, np.nextafter(0.1, 1), 5e-324, -1e300]])
    assert ModelBundle.save(tmp_path / "b", bundle.manifest, weights, given_files(bundle)).weights.tobytes() == weights.tobytes()


def test_same_inputs_give_the_same_bytes(bundle: ModelBundle, tmp_path: Path) -> None:
    reversed_files = dict(reversed(given_files(bundle).items()))
    ModelBundle.save(tmp_path / "again", bundle.manifest, bundle.weights.copy(), reversed_files)
    assert contents(tmp_path / "again") == contents(bundle.path)


def test_files_are_the_documented_ones(bundle: ModelBundle) -> None:
    assert set(contents(bundle.path)) == REQUIRED_FILES | {MANIFEST}
    with pytest.raises(BundleFormatError, match=r"holds no model\.onnx"):
        bundle.read("model.onnx")


def test_fused_model_is_optional(bundle: ModelBundle, tmp_path: Path) -> None:
    fused = ModelBundle.save(
        tmp_path / "b", bundle.manifest, bundle.weights, given_files(bundle) | {"model.onnx": bundle.read("pre_net.onnx")}
    )
    assert fused.read("model.onnx") == bundle.read("pre_net.onnx")


def test_nothing_is_pickled(bundle: ModelBundle) -> None:
    for name, data in contents(bundle.path).items():
        assert not data.startswith((b"\x80", b"PK\x03\x04")), name  # pickle protocols 2 to 5; the zip of torch.save
        with pytest.raises(ValueError, match=r"opcode|pickle"):
            list(pickletools.genops(data))


# ---------------------------------------------------------------- changed


@settings(max_examples=400)
@given(st.sampled_from(sorted(REQUIRED_FILES | {MANIFEST})), st.integers(0, 10**6), st.integers(0, 7))
def test_any_flipped_bit_is_refused_by_name(spoilt: Path, name: str, position: int, bit: int) -> None:
    path = spoilt / name
    original = path.read_bytes()
    data = bytearray(original)
    data[position % len(data)] ^= 1 << bit
    try:
        path.write_bytes(data)
        with pytest.raises(BundleError, match=name) as caught:
            ModelBundle.load(spoilt)
    finally:
        path.write_bytes(original)
    assert isinstance(caught.value, BundleIntegrityError) or name == MANIFEST


@pytest.mark.parametrize("name", sorted(REQUIRED_FILES | {MANIFEST}))
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\n", lambda data: b""], ids=["cut", "longer", "empty"])
def test_other_lengths_are_refused_by_name(copied: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (copied / name).write_bytes(change((copied / name).read_bytes()))
    with pytest.raises(BundleError, match=name):
        ModelBundle.load(copied)


@pytest.mark.parametrize("name", ONNX_FILES)
def test_change_after_loading_is_found_before_onnx_runtime_sees_it(copied: Path, name: str) -> None:
    loaded = ModelBundle.load(copied)
    with (copied / name).open("r+b") as file:
        file.seek(20)
        file.write(b"\xff")
    with pytest.raises(BundleIntegrityError, match=name):
        HybridClassifier(loaded)


# ---------------------------------------------------------------- missing, extra, not a file


@pytest.mark.parametrize("name", sorted(REQUIRED_FILES | {MANIFEST}))
def test_missing_file(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleFormatError, match=name):
        ModelBundle.load(copied)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "backbone.onnx.data", "model.onnx"])
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir], ids=["file", "folder"])
def test_extra_entry(copied: Path, name: str, make: Callable[[Path], None]) -> None:
    make(copied / name)
    with pytest.raises(BundleFormatError, match=rf"not listed in the manifest: {name}"):
        ModelBundle.load(copied)


def replace_by_link(path: Path) -> None:
    target = path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(target)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["backbone.onnx", "head.json", MANIFEST])
@pytest.mark.parametrize("replace", [replace_by_link, replace_by_folder, replace_by_pipe])
def test_what_is_no_regular_file_is_refused_without_waiting(
    copied: Path, name: str, replace: Callable[[Path], None], open_files: Callable[[], list[str]]
) -> None:
    replace(copied / name)
    with pytest.raises(BundleFormatError, match=name):
        ModelBundle.load(copied)
    assert open_files() == []


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(BundleFormatError):
            ModelBundle.load(path)


# ---------------------------------------------------------------- the manifest says something else


def test_unknown_field_is_refused(copied: Path) -> None:
    reseal(copied, colour="red")
    with pytest.raises(BundleFormatError, match="colour"):
        ModelBundle.load(copied)


@pytest.mark.parametrize("schema", ["hqtl-bundle/2", "hqtl-bundle/10", "hqtl-bundle/0"])
def test_other_schema_version_is_told_apart_from_damage(copied: Path, schema: str) -> None:
    reseal(copied, schema=schema, fields_of_the_future=1)
    with pytest.raises(BundleVersionError, match=f"{schema}.*hqtl-bundle/1"):
        ModelBundle.load(copied)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "something-else"},
        {"schema": 1},
        {"labels": ["crack"]},
        {"labels": ["crack", "crack"]},
        {"labels": "crack"},
        {"positive_label": "hole"},
        {"threshold": 0},
        {"threshold": 1.5},
        {"temperature": {"aer": 1.0}},
        {"temperature": {"default": 0}},
        {"head": {"num_qubits": 99}},
        {"head": {"num_wires": 4}},
        {"preprocess": {"std": [0, 0, 0]}},
        {"backbone": None},
    ],
    ids=str,
)
def test_illegal_fields_are_refused(copied: Path, changes: dict[str, Any]) -> None:
    reseal(copied, **changes)
    with pytest.raises(BundleFormatError, match=f"^{MANIFEST}.*{next(iter(changes))}") as caught:
        ModelBundle.load(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"metrics": NaN}', b'{"created": "\\ud800"}', b'{"schema": "hqtl-bundle/1"}'],
    ids=["empty", "list", "null", "not text", "deep", "not a number", "lone surrogate", "unsealed"],
)
def test_what_is_no_manifest_is_a_bundle_error(data: bytes) -> None:
    with pytest.raises(BundleError, match=MANIFEST):
        Manifest.from_bytes(data)


@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(str.encode)
    | st.recursive(st.floats() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_bytes_in_place_of_a_manifest_are_a_bundle_error(data: bytes) -> None:
    with pytest.raises(BundleError, match=MANIFEST):
        Manifest.from_bytes(data)


def test_equal_manifests_written_otherwise_are_refused(bundle: ModelBundle) -> None:
    """The canonical form is the only one: white space or a doubled key cannot hide a second reading."""
    data = (bundle.path / MANIFEST).read_bytes()
    for other in (data + b" ", json.dumps(json.loads(data)).encode(), data.replace(b"{\n", b'{\n  "threshold": 0.5,\n', 1)):
        with pytest.raises(BundleIntegrityError, match=MANIFEST):
            Manifest.from_bytes(other)


def test_names_outside_the_folder_are_refused(bundle: ModelBundle, copied: Path) -> None:
    outside = copied.parent / "outside"
    outside.write_bytes(b"x")
    entry = FileEntry(sha256=hashlib.sha256(b"x").hexdigest(), size=1)
    manifest = bundle.manifest.model_copy(update={"files": {**bundle.manifest.files, "../outside": entry}})
    (copied / MANIFEST).write_bytes(manifest.to_bytes())
    with pytest.raises(BundleFormatError, match=r"\.\./outside"):
        ModelBundle.load(copied)


@pytest.mark.parametrize(
    "head",
    [
        b"[]",
        b"{",
        {"num_layers": 2, "weights": [[0.0] * 4] * 2},
        {"weights": [[0.0] * 3]},
        {"weights": [[0.0, 0.0, 0.0, float("nan")]]},
        {"weights": [["a", "b", "c", "d"]]},
        {"weights": [[0.0] * 4], "more": 1},
        {"num_layers": 1},
    ],
    ids=str,
)
def test_head_file_must_fit_the_manifest(copied: Path, head: bytes | dict[str, Any]) -> None:
    (copied / "head.json").write_bytes(head if isinstance(head, bytes) else json.dumps(head).encode())
    reseal(copied)
    with pytest.raises(BundleFormatError, match=r"head\.json"):
        ModelBundle.load(copied)


# ---------------------------------------------------------------- ONNX models that reach outside themselves


def external(name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="secret.bin")
    return tensor


def sparse() -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=external(), indices=TensorProto(data_type=TensorProto.INT64, dims=[1]), dims=[3])


def model(nodes: list[Any], **parts: Any) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 1]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], **parts)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def models_with_external_data() -> Iterator[tuple[str, onnx.ModelProto]]:
    """One model per place where ONNX can keep a tensor."""
    add = helper.make_node("Add", ["x", "w"], ["y"])
    constant = helper.make_node("Constant", [], ["w"], value=external())
    body = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [1])])
    deep = helper.make_graph([helper.make_node("If", ["c"], ["w"], then_branch=body, else_branch=body)], "outer", [], body.output)
    yield "initializer", model([add], initializer=[external()])
    yield "sparse initializer", model([add], sparse_initializer=[sparse()])
    yield "attribute", model([constant, add])
    yield "sparse attribute", model([helper.make_node("Constant", [], ["w"], sparse_value=sparse()), add])
    yield "list attribute", model([helper.make_node("Custom", ["x"], ["y"], tensors=[external()])])
    yield "branch", model([helper.make_node("If", ["c"], ["w"], then_branch=body, else_branch=body), add])
    yield "branch of a branch", model([helper.make_node("If", ["c"], ["w"], then_branch=deep, else_branch=deep), add])
    marked = model([add], initializer=[external()])
    marked.graph.initializer[0].data_location = TensorProto.DEFAULT  # some readers look only at the entries
    yield "entries without the mark", marked
    bare = model([add], initializer=[external()])
    del bare.graph.initializer[0].external_data[:]
    yield "mark without entries", bare
    with_function = model([helper.make_node("F", ["x"], ["y"], domain="own")])
    function_nodes = [constant, helper.make_node("Add", ["a", "w"], ["b"])]
    with_function.functions.append(helper.make_function("own", "F", ["a"], ["b"], function_nodes, [helper.make_opsetid("", 18)]))
    yield "function", with_function


EXTERNAL_MODELS = dict(models_with_external_data())


@pytest.mark.parametrize("place", EXTERNAL_MODELS)
def test_external_data_is_refused(bundle: ModelBundle, copied: Path, tmp_path: Path, place: str) -> None:
    data = EXTERNAL_MODELS[place].SerializeToString()
    with pytest.raises(BundleFormatError, match=r"pre_net\.onnx keeps tensors"):
        ModelBundle.save(tmp_path / "new", bundle.manifest, bundle.weights, given_files(bundle) | {"pre_net.onnx": data})
    assert not (tmp_path / "new").exists()
    (copied / "pre_net.onnx").write_bytes(data)
    reseal(copied)
    with pytest.raises(BundleFormatError, match=r"pre_net\.onnx keeps tensors"):
        ModelBundle.load(copied)


def test_hard_linked_data_file_cannot_be_smuggled_in(copied: Path, tmp_path: Path) -> None:
    """ONNX Runtime follows a hard link; the bundle refuses both the model and the further file."""
    (tmp_path / "secret").write_bytes(bytes(4))
    os.link(tmp_path / "secret", copied / "secret.bin")
    (copied / "pre_net.onnx").write_bytes(EXTERNAL_MODELS["initializer"].SerializeToString())
    reseal(copied)
    with pytest.raises(BundleFormatError, match=r"secret\.bin"):
        ModelBundle.load(copied)


# ---------------------------------------------------------------- saving


def test_existing_folder_is_left_alone(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ConfigError, match="exists already"):
            ModelBundle.save(target, bundle.manifest, bundle.weights, given_files(bundle))
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_empty_folder_is_filled(bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ModelBundle.save(tmp_path / "empty", bundle.manifest, bundle.weights, given_files(bundle))
    assert contents(tmp_path / "empty") == contents(bundle.path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", range(7))
def test_failure_midway_leaves_nothing(
    bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, failing: int
) -> None:
    written: list[Path] = []
    write_bytes = Path.write_bytes

    def fail_at_some_file(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) > failing:
            raise error
        return write_bytes(path, data)

    files = given_files(bundle)
    monkeypatch.setattr(Path, "write_bytes", fail_at_some_file)
    with pytest.raises(type(error)):
        ModelBundle.save(tmp_path / "target", bundle.manifest, bundle.weights, files)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_net.onnx": b"\xff\xff garbage"}, r"pre_net\.onnx is not an ONNX model"),
        ({"pre_net.onnx": None}, r"required in every bundle but not listed: pre_net\.onnx"),
        ({"weights.pt": b""}, r"no weights\.pt"),
        ({"../escaped": b""}, r"no \.\./escaped"),
        ({MANIFEST: b"{}"}, rf"no {MANIFEST}"),
    ],
)
def test_illegal_files_are_not_saved(bundle: ModelBundle, tmp_path: Path, changes: dict[str, bytes | None], message: str) -> None:
    files = {name: data for name, data in (given_files(bundle) | changes).items() if data is not None}
    with pytest.raises(BundleFormatError, match=message):
        ModelBundle.save(tmp_path / "inner" / "target", bundle.manifest, bundle.weights, files)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("weights", [np.zeros((2, 4)), np.zeros((1, 3)), np.zeros(4), np.full((1, 4), np.nan)])
def test_weights_that_do_not_fit_are_not_saved(bundle: ModelBundle, tmp_path: Path, weights: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"weights must be finite and of the shape \(1, 4\)"):
        ModelBundle.save(tmp_path / "target", bundle.manifest, weights, given_files(bundle))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the manifest as a value


def test_temperature_and_threshold_of_a_bundle_without_calibration(bundle: ModelBundle) -> None:
    manifest = bundle.manifest.model_copy(update={"temperature": {"default": 1.5, "aer": 0.7}, "threshold": 0.3})
    found = [manifest.applied_to(name, None, noise_free=True) for name in ("aer", "statevector")]
    assert [(one.temperature, one.threshold, one.name) for one in found] == [(0.7, 0.3, "uncalibrated"), (1.5, 0.3, "uncalibrated")]


def test_manifest_from_before_calibration_is_read_as_it_is(bundle: ModelBundle, tmp_path: Path) -> None:
    """Same schema: the two fields are missing, and the hash is over what is there."""
    copy = Path(shutil.copytree(bundle.path, tmp_path / "old"))
    values = json.loads((copy / MANIFEST).read_bytes())
    for name in ("calibration", "familiarity", "manifest_sha256"):
        del values[name]
    text = json.dumps(values, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    values["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (copy / MANIFEST).write_text(json.dumps(values, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    assert ModelBundle.load(copy).manifest == bundle.manifest
    assert (bundle.manifest.calibration, bundle.manifest.familiarity) == ((), None)


def test_calibrations_round_trip_and_stand_once_each(tmp_path: Path) -> None:
    entries = (calibration(), calibration("aer", 100, options={"optimization_level": 3}, notes=("few",)))
    assert tiny_bundle(tmp_path / "b", calibration=entries).manifest.calibration == entries
    assert ModelBundle.load(tmp_path / "b").manifest.calibration == entries
    with pytest.raises(ValidationError, match=r"one entry per backend and shots; got \['aer at 100 shots', 'aer at 100 shots'\]"):
        tiny_bundle(tmp_path / "c", calibration=(entries[1], entries[1]))
    for wrong in ({"temperature": 0.01}, {"temperature": 21.0}, {"threshold": 1.0}, {"num_images": 0}):
        with pytest.raises(ValidationError):
            calibration(**wrong)


def test_familiarity_and_its_description_come_together(bundle: ModelBundle, tmp_path: Path) -> None:
    info = FamiliarityInfo(method="m", level=0.02, num_reference=1, rank=1, num_held_out=1)
    described = bundle.manifest.model_copy(update={"familiarity": info})
    for manifest, extra in ((described, {}), (bundle.manifest, {"familiarity.onnx": bundle.read("pre_net.onnx")})):
        with pytest.raises(BundleFormatError, match=r"familiarity\.onnx and its description in the manifest come together or not at all"):
            ModelBundle.save(tmp_path / "b", manifest, bundle.weights, given_files(bundle) | extra)


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5), max_size=5)
)
def test_free_fields_round_trip(bundle: ModelBundle, values: dict[str, Any]) -> None:
    manifest = bundle.manifest.model_copy(update={"training": values, "metrics": {"test": values}})
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
