"""A backbone of less precision: made of a run, compared with fp32, told by every part of the bundle, and served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from hqtl_common import HybridClassifier, ModelBundle
from hqtl_common.classifier import softmax
from hqtl_common.errors import BundleFormatError, ConfigError, InputError, ParityError
from hqtl_common.manifest import FP32, PrecisionChange
from hqtl_common.preprocess import preprocess_batch
from hqtl_common.records import InferenceBatch
from hqtl_common.stages import Stage
from serving.app import create_app
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from tests.asgi import Client
from training.calibration import ThresholdRule
from training.card import model_card
from training.cli import main
from training.export import export_run
from training.precision import check_drop, compare_logits, reduce_backbone
from training.precision_check import check_precision
from training.recalibrate import recalibrate
from training.synth import SynthSpec, write_dataset
from training.verify import verify_bundle


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few, because each goes through the backbones many times; read-only."""
    folder = tmp_path_factory.mktemp("synthetic") / "photographs"
    write_dataset(folder, 24, seed=0, spec=SynthSpec(crack_width=(8.0, 16.0), contrast=(0.9, 1.0)))
    return folder


@pytest.fixture(scope="module")
def run(train: Callable[..., dict[str, Any]], few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of a small backbone; read-only."""
    path = tmp_path_factory.mktemp("finished") / "run"
    train(path, data=few, backbone="squeezenet1_1", epochs=2)
    return path


@pytest.fixture(autouse=True)
def _speed_is_measured_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.precision._BATCH", 1)
    monkeypatch.setattr("training.precision._REPEATS", 1)


@pytest.fixture(scope="module")
def make(run: Path, feature_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelBundle]:
    def make(precision: str, **options: Any) -> ModelBundle:
        target = tmp_path_factory.mktemp(precision) / "bundle"
        return export_run(run, target, precision=precision, cache_folder=feature_cache, **options)

    return make


@pytest.fixture(scope="module")
def int8(make: Callable[..., ModelBundle]) -> ModelBundle:
    return make("int8", max_accuracy_drop=1.0)


@pytest.fixture(scope="module")
def fp16(make: Callable[..., ModelBundle]) -> ModelBundle:
    return make("fp16")


@pytest.fixture(params=["int8", "fp16"])
def reduced(request: pytest.FixtureRequest) -> ModelBundle:
    bundle: ModelBundle = request.getfixturevalue(request.param)
    return bundle


def types_of(data: bytes) -> set[int]:
    return {tensor.data_type for tensor in onnx.load_model_from_string(data).graph.initializer if np.prod(tensor.dims) > 1000}


def test_the_backbone_that_runs_is_the_reduced_one_and_the_other_stays_beside_it(int8: ModelBundle, fp16: ModelBundle) -> None:
    assert types_of(int8.read("backbone.onnx")) <= {TensorProto.INT8, TensorProto.INT32}
    assert types_of(fp16.read("backbone.onnx")) == {TensorProto.FLOAT16}
    assert int8.read(FP32) == fp16.read(FP32) == int8.backbone_fp32
    assert types_of(int8.backbone_fp32) == {TensorProto.FLOAT}
    assert len(int8.read("backbone.onnx")) < 0.3 * len(int8.read(FP32))
    assert (int8.manifest.precision_name, fp16.manifest.precision_name) == ("int8", "fp16")


def test_what_changes_is_what_the_manifest_says(reduced: ModelBundle, few: Path) -> None:
    """Measured again through the stages, on the test split of the run."""
    report = check_precision(reduced.path, few)
    info = reduced.manifest.precision
    assert report is not None
    assert info is not None
    found = report.changes[str(few)]
    files = sorted(few.rglob("*.png"))
    pixels, applied = preprocess_batch(files, reduced.preprocess), reduced.manifest.applied_to("statevector", None, noise_free=True)
    with HybridClassifier(reduced) as classifier:
        after = classifier.run(InferenceBatch(pixels=pixels))
        before = classifier.run(InferenceBatch(features=Stage(reduced.read(FP32), "fp32")(pixels)))
    assert before.logits is not None
    assert after.probabilities is not None
    expected = softmax(before.logits / applied.temperature)
    np.testing.assert_allclose(found.max_change, np.abs(after.probabilities - expected).max(), rtol=1e-3, atol=1e-6)
    truth = np.array([reduced.labels.index(path.parent.name) for path in files])
    np.testing.assert_allclose(found.accuracy, (after.label_indices == truth).mean(), rtol=1e-5)
    assert found.num_images == len(files) == 24
    assert info.changes.keys() == {"val", "test"}
    assert all(change.max_change <= found.max_change + 1e-4 for change in info.changes.values())
    assert 0 < found.max_change < (0.5 if info.name == "int8" else 0.01)


def test_verify_holds_fp32_to_its_tolerance_and_finds_another_network(reduced: ModelBundle, tmp_path: Path) -> None:
    checks = verify_bundle(reduced.path)
    assert all(check.passed for check in checks), checks
    assert sum("against torch" in check.name for check in checks) == 2
    (own,) = [check for check in checks if "against fp32" in check.name]
    assert own.difference > 0
    model = onnx.load_model_from_string(reduced.backbone_fp32)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight"):
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    files = {name: reduced.read(name) for name in reduced.manifest.files if not name.startswith("head")}
    spoilt = ModelBundle.save(tmp_path / "spoilt", reduced.manifest, reduced.weights, files | {"backbone.onnx": model.SerializeToString()})
    assert [check.name for check in verify_bundle(spoilt.path) if not check.passed] == [own.name]


@pytest.mark.parametrize("problem", ["name", "fixed rows", "shape"])
def test_verify_wants_the_documented_names_and_shapes(fp16: ModelBundle, tmp_path: Path, problem: str) -> None:
    bundle = fp16
    model = onnx.load_model_from_string(bundle.read("post_net.onnx"))
    output = model.graph.output[0]
    if problem == "name":
        model.graph.node.append(helper.make_node("Identity", [output.name], ["answers"]))
        output.name = "answers"
    elif problem == "fixed rows":
        output.type.tensor_type.shape.dim[0].dim_value = 2
    else:
        output.type.tensor_type.shape.dim.add().dim_value = 1
    files = {name: bundle.read(name) for name in bundle.manifest.files if not name.startswith("head")}
    ModelBundle.save(tmp_path / "b", bundle.manifest, bundle.weights, files | {"post_net.onnx": model.SerializeToString()})
    with pytest.raises(ParityError, match=r"post_net.onnx should have logits \(batch, 2\)"):
        verify_bundle(tmp_path / "b")


def test_the_card_tells_it(int8: ModelBundle) -> None:
    card = (int8.path / "MODEL_CARD.md").read_text()
    info = int8.manifest.precision
    assert info is not None
    assert "computes in int8 (static QDQ, weights per channel, ranges from 16 training images)" in card
    assert f"| val | {info.changes['val'].accuracy:.3f} | {info.changes['val'].accuracy_fp32:.3f} |" in card
    assert "## Precision" not in model_card(int8.manifest.model_copy(update={"precision": None}))


def test_the_service_says_what_runs(int8: ModelBundle, few: Path) -> None:
    predictor = Predictor(ServiceSettings(bundle=int8.path, threads=1, decoders=1))
    try:
        client = Client(create_app(predictor, None))
        image = sorted(few.rglob("*.png"))[0]
        answer = client.post("/v1/predict", content=image.read_bytes(), headers={"content-type": "application/octet-stream"}).json()
        with HybridClassifier(int8) as classifier:
            assert answer["predictions"][0]["logits"] == pytest.approx(classifier.predict(image).logits, abs=1e-6)
        assert answer["runtime"] == client.get("/v1/model").json()["runtime"] == {"precision": "int8", "providers": ["cpu"]}
        assert 'hqtl_backbone_info{precision="int8",providers="cpu"} 1.0' in client.get("/metrics").text
    finally:
        predictor.close()


def test_a_new_calibration_keeps_the_precision(int8: ModelBundle, few: Path, tmp_path: Path) -> None:
    recalibrate(int8.path, few, tmp_path / "new", ThresholdRule(), subset="all")
    assert ModelBundle.load(tmp_path / "new").manifest.precision == int8.manifest.precision


def test_the_same_run_gives_the_same_bytes(make: Callable[..., ModelBundle], int8: ModelBundle) -> None:
    again = make("int8", max_accuracy_drop=1.0)
    assert again.manifest.to_bytes() == int8.manifest.to_bytes()


class TestRefusals:
    def test_the_fused_model_has_no_precision(self, make: Callable[..., ModelBundle]) -> None:
        with pytest.raises(ConfigError, match="leave out --fuse"):
            make("int8", fused=True)

    def test_images_of_the_run_are_needed(self, run: Path, feature_cache: Path, tmp_path: Path) -> None:
        moved = tmp_path / "run"
        shutil.copytree(run, moved)
        config = json.loads((moved / "config.json").read_text())
        (moved / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
        with pytest.raises(ConfigError, match="run's own images; bring"):
            export_run(moved, tmp_path / "bundle", precision="int8", cache_folder=feature_cache)
        assert not (tmp_path / "bundle").exists()

    @pytest.mark.parametrize(("right", "refused"), [(90, False), (89, False), (88, True)])
    def test_a_loss_of_accuracy(self, right: int, refused: bool) -> None:
        """Ninety of a hundred were right; one in a hundred may be lost."""
        change = PrecisionChange(num_images=100, accuracy=right / 100, accuracy_fp32=0.9, changed_labels=5, max_change=0.5)
        if refused:
            with pytest.raises(ParityError, match=r"right on 2 of 100 images fewer.*--max-accuracy-drop"):
                check_drop(change, 0.01, "int8")
        else:
            check_drop(change, 0.01, "int8")

    def test_the_file_and_its_description_come_together(self, int8: ModelBundle, tmp_path: Path) -> None:
        files = {name: int8.read(name) for name in int8.manifest.files if not name.startswith("head")}
        alone = int8.manifest.model_copy(update={"precision": None})
        with pytest.raises(BundleFormatError, match=f"{FP32} and its description"):
            ModelBundle.save(tmp_path / "b", alone, int8.weights, files)

    def test_there_is_nothing_to_compare_in_fp32(self, bundle: ModelBundle, few: Path) -> None:
        assert check_precision(bundle.path) is None
        with pytest.raises(ConfigError, match="computes in fp32"):
            check_precision(bundle.path, few)

    def test_classes_that_the_bundle_does_not_have(self, int8: ModelBundle, few: Path, tmp_path: Path) -> None:
        shutil.copytree(few, tmp_path / "data")
        (tmp_path / "data" / "crack").rename(tmp_path / "data" / "spall")
        with pytest.raises(InputError, match="no class 'spall'"):
            check_precision(int8.path, tmp_path / "data")


class TestCommands:
    def test_export_and_verify_print_the_change_and_the_speed(self, run: Path, feature_cache: Path, few: Path, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle"
        options = ["--precision", "int8", "--max-accuracy-drop", "1", "--cache-dir", str(feature_cache)]
        made = CliRunner().invoke(main, ["export", str(run), str(bundle), *options])
        assert made.exit_code == 0, made.output
        seen = CliRunner().invoke(main, ["verify", str(bundle), "--data", str(few)])
        assert seen.exit_code == 0, seen.output
        for output in (made.output, seen.output):
            assert "int8 against fp32 on 4 images of the run's val split, at its export: accuracy" in output
            assert "times as fast" in output
        assert f"on 24 images of {few}: accuracy" in seen.output

    def test_verify_fails_where_the_images_speak_against_it(
        self, int8: ModelBundle, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lost = PrecisionChange(num_images=40, accuracy=0.5, accuracy_fp32=0.9, changed_labels=16, max_change=0.5)
        monkeypatch.setattr("training.precision_check.compare_logits", lambda *_: lost)
        info = int8.manifest.precision
        assert info is not None
        files = {name: int8.read(name) for name in int8.manifest.files if not name.startswith("head")}
        strict = int8.manifest.model_copy(update={"precision": info.model_copy(update={"max_accuracy_drop": 0.01})})
        ModelBundle.save(tmp_path / "b", strict, int8.weights, files)
        seen = CliRunner().invoke(main, ["verify", str(tmp_path / "b"), "--data", str(few), "--json"])
        document = json.loads(seen.stdout)
        assert (seen.exit_code, document["passed"], document["precision"]["name"]) == (1, False, "int8")
        assert "right on 16 of 40 images fewer" in document["precision"]["refused"]


def test_changes_are_counted_by_the_label_rule() -> None:
    fp32, other = np.array([[0.0, 2.0], [0.0, -2.0], [0.0, 0.3]]), np.array([[0.0, 2.0], [0.0, -1.0], [0.0, -0.3]])
    change = compare_logits(other, fp32, np.array([1, 0, 1]), 2.0, 0.5, 1)
    sigmoid = 1 / (1 + np.exp(-np.array([0.5, 1.0, 0.15])))
    assert (change.num_images, change.changed_labels) == (3, 1)
    assert (change.accuracy, change.accuracy_fp32) == (pytest.approx(2 / 3, abs=1e-6), 1.0)
    assert change.max_change == pytest.approx(max(sigmoid[1] - sigmoid[0], 2 * sigmoid[2] - 1), abs=1e-5)
    assert compare_logits(other, fp32, np.array([1, 0, 1]), 2.0, 0.4, 1).changed_labels == 0


def test_int8_of_a_linear_network_is_as_near_as_eight_bits_allow() -> None:
    """Weights in 255 levels per channel, activations in 255 levels of their range."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["pixels", "w"], ["features"])],
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 6, 6, 6])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    pixels = rng.uniform(-1, 1, size=(4, 3, 8, 8)).astype(np.float32)
    reduced, method = reduce_backbone(model, "int8", iter([pixels[:2], pixels[2:]]))
    assert method.endswith("4 training images")
    exact, found = Stage(model, "exact")(pixels), Stage(reduced, "reduced")(pixels)
    levels = np.abs(pixels).max() / 127 * np.abs(weights).sum(axis=(1, 2, 3)) / 2 + np.abs(weights).max(axis=(1, 2, 3)) / 127 * 27 / 2
    bound = levels[None, :, None, None] + np.ptp(exact) / 255
    assert (np.abs(found - exact) <= bound).all()
    assert np.abs(found - exact).max() > 0
