"""A run as a bundle: the same answers everywhere, nothing pickled, and a verification that can fail."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import training.export
import training.verify
from hqtl_common import HybridClassifier, ModelBundle
from hqtl_common.backends import statevector
from hqtl_common.classifier import softmax
from hqtl_common.errors import BundleError, BundleFormatError, ConfigError, InputError, ParityError
from hqtl_common.preprocess import preprocess_batch
from hqtl_common.stages import Stage
from tests.tiny import tiny_bundle
from training.calibration import ThresholdRule
from training.card import model_card
from training.evaluate import evaluate, load_run
from training.export import export_run
from training.head import StatevectorHead
from training.runs import RunFolder
from training.verify import Check, verify_bundle

REQUIRED = {"MODEL_CARD.md", "backbone.onnx", "head.json", "head.qasm", "manifest.json", "post_net.onnx", "pre_net.onnx"}


@pytest.fixture(scope="module")
def bundle(exported_bundle: Path) -> ModelBundle:
    return ModelBundle.load(exported_bundle)


@pytest.fixture(scope="module")
def files(photographs: Path) -> list[Path]:
    return sorted(photographs.rglob("*.png"))


@pytest.fixture(scope="module")
def by_torch(finished_run: Path, bundle: ModelBundle, files: list[Path]) -> np.ndarray:
    """Probabilities (40, 2) of all photographs through the networks that were trained."""
    run = load_run(finished_run)
    with torch.no_grad():
        return softmax(run.model(run.backbone.network(torch.from_numpy(preprocess_batch(files, bundle.preprocess)))).numpy())


def test_bundle_is_complete(bundle: ModelBundle, finished_run: Path) -> None:
    assert {path.name for path in bundle.path.iterdir()} == REQUIRED | {"model.onnx", "familiarity.onnx"}
    result, data = RunFolder(finished_run).result(), RunFolder(finished_run).data()
    assert result is not None
    assert data is not None
    manifest = bundle.manifest
    assert manifest.metrics == {name: result[name] for name in ("val", "test", "logistic_regression", "twins", "mcnemar")}
    assert (manifest.labels, manifest.positive_label, manifest.created) == (("crack", "no_crack"), "crack", None)
    assert manifest.split.sha256 == data["split_sha256"]
    assert manifest.split.counts == data["counts"]
    assert manifest.training["data_sha256"] == data["data_sha256"]
    assert manifest.backbone.weights_sha256 == data["backbone_sha256"]
    assert {"torch", "numpy", "python"} <= set(manifest.training["versions"])
    assert (manifest.head["num_layers"], manifest.onnx["opset"]) == (2, 20)
    best = RunFolder(finished_run).load_checkpoint()
    assert best is not None
    np.testing.assert_array_equal(bundle.weights, best.part("best")["head.weights"].numpy())


def test_card_tells_figures_and_limits(bundle: ModelBundle) -> None:
    card = (bundle.path / "MODEL_CARD.md").read_text()
    test, reference = bundle.manifest.metrics["test"], bundle.manifest.metrics["logistic_regression"]
    for part in (
        f"| {test['accuracy']:.3f} |",
        f"| {reference['accuracy']:.3f} |",
        "shows no advantage",
        "weights: none",
        "| the classical twin | ",
        "| the linear twin | ",
        "no computation that needs a quantum computer",
        "| statevector | val, 6 images | 1 | ",
        "`crack` is answered from a probability of 0.5 on (even odds)",
        "the temperature stays at 1: 6 images are too few to fit it",
        "the share of 6 validation images that are at least as far from",
    ):
        assert part in card
    assert card.count("McNemar's exact test") + card.count("no difference can be seen") == 2
    assert "{" not in card.replace("└", ""), "a placeholder was left"
    lines = card.splitlines()
    tables = [i for i, line in enumerate(lines) if line.startswith("|---")]
    assert len(tables) == 3
    for i in tables:
        assert lines[i - 1].count("|") == lines[i].count("|") == lines[i + 1].count("|")
        assert not lines[i - 2]


def test_card_of_a_bundle_that_knows_nothing(tmp_path: Path) -> None:
    """As those from before there was a calibration, and those that were not trained here."""
    card = model_card(tiny_bundle(tmp_path / "b", labels=("a", "b", "c")).manifest)
    for part in ("The bundle holds no figures", "Probabilities are not calibrated", "cannot tell whether an image is unlike"):
        assert part in card


def test_nothing_names_the_machine_and_nothing_is_pickled(bundle: ModelBundle, finished_run: Path, photographs: Path) -> None:
    for path in (*bundle.path.iterdir(), *finished_run.iterdir()):
        data = path.read_bytes()
        assert path.suffix in {".onnx", ".json", ".jsonl", ".qasm", ".md", ".safetensors", ".png"}
        assert not zipfile.is_zipfile(path), "torch's own format is a zip of pickles"
        assert data[:1] != b"\x80", "a pickle begins so"
        if path.parent == bundle.path:
            for place in (photographs.parent, finished_run.parent, Path.cwd(), Path(sys.prefix), Path.home()):
                assert str(place).encode() + b"/" not in data, f"{path.name} tells {place}"


def test_every_way_gives_the_same_answers(
    bundle: ModelBundle, finished_run: Path, photographs: Path, feature_cache: Path, files: list[Path], by_torch: np.ndarray
) -> None:
    with HybridClassifier(bundle) as classifier:
        predictions = classifier.predict_many(files)
    staged = np.array([[p.probabilities[label] for label in bundle.labels] for p in predictions])
    fused = softmax(Stage(bundle.read("model.onnx"), "model.onnx")(preprocess_batch(files, bundle.preprocess)))
    np.testing.assert_allclose(staged, by_torch, atol=1e-4)
    np.testing.assert_allclose(fused, by_torch, atol=1e-4)
    assert np.ptp(by_torch[:, 0]) > 0.02, "answers must differ between photographs, or this test says nothing"
    labels = [bundle.labels[index] for index in np.where(by_torch[:, 0] >= 0.5, 0, 1)]
    assert [p.label for p in predictions] == labels == [bundle.labels[index] for index in np.where(fused[:, 0] >= 0.5, 0, 1)]
    truth = [path.parent.name for path in files]
    expected = [[sum(t == a and p == b for t, p in zip(truth, labels, strict=True)) for b in bundle.labels] for a in bundle.labels]
    for model in (finished_run, bundle.path):
        assert evaluate(model, photographs, subset="all", cache_folder=feature_cache)["confusion"] == expected


def test_unfinished_run_is_refused(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    for name in ("result.json", "checkpoint.safetensors", "data.json"):
        (run / name).unlink()
        with pytest.raises(InputError, match=rf"has not finished; finish it with: hqtl-train fit --resume {run}"):
            export_run(run, tmp_path / "bundle")
    with pytest.raises(InputError, match="is not a run"):
        export_run(tmp_path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_changed_weights_are_refused(finished_run: Path, photographs: Path, feature_cache: Path, tmp_path: Path) -> None:
    """Random weights come from the seed: with another one the backbone is not the one the model was trained on."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "seed": 1}))
    with pytest.raises(ConfigError, match="'none' of resnet18 changed since the run"):
        export_run(run, tmp_path / "bundle")
    with pytest.raises(ConfigError, match="changed since the run"):
        evaluate(run, photographs, cache_folder=feature_cache)


def test_existing_target_is_refused_before_any_work(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.export, "load_run", lambda path: pytest.fail("worked for nothing"))
    (tmp_path / "thesis.tex").write_text("precious")
    for target in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ConfigError, match="exists already"):
            export_run(finished_run, target)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def contents(bundle: ModelBundle, *names: str) -> dict[str, bytes]:
    return {name: bundle.read(name) for name in names or ("backbone.onnx", "pre_net.onnx", "post_net.onnx", "MODEL_CARD.md")}


def with_changed_weight(data: bytes, shape: tuple[int, ...], change: float) -> bytes:
    """The same model with one element of the first weight of this shape changed."""
    model = onnx.load_model_from_string(data)
    tensor = next(tensor for tensor in model.graph.initializer if tuple(tensor.dims) == shape)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += change
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()


@pytest.mark.parametrize("name", ["post_net.onnx", "model.onnx"])
def test_bundle_that_computes_something_else_is_not_written(
    bundle: ModelBundle, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As if the exporter had got one number wrong."""
    data = contents(bundle, "backbone.onnx", "pre_net.onnx", "post_net.onnx", "model.onnx")
    data[name] = with_changed_weight(data[name], (2, 4), 1.0)
    monkeypatch.setattr(training.export, "_onnx_files", lambda run, *, fused: data)
    with pytest.raises(
        ParityError, match=rf"{'the stages' if name == 'post_net.onnx' else name} .* differ from torch's by .*nothing was written"
    ):
        export_run(finished_run, tmp_path / "deep" / "bundle", fused=True)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(("epoch", "created"), [("0", "1970-01-01T00:00:00+00:00"), ("1700000000", "2023-11-14T22:13:20+00:00")])
def test_time_comes_from_the_build_or_not_at_all(
    bundle: ModelBundle, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: str, created: str
) -> None:
    monkeypatch.setattr(
        training.export, "_onnx_files", lambda run, *, fused: contents(bundle, "backbone.onnx", "pre_net.onnx", "post_net.onnx")
    )
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert export_run(finished_run, tmp_path / "bundle").manifest.created == created
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH must be seconds since 1970; got 'yesterday'"):
        export_run(finished_run, tmp_path / "other")


@pytest.fixture
def quick_onnx(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ONNX files of ``finished_run`` without making them anew."""
    ready = contents(bundle, "backbone.onnx", "pre_net.onnx", "post_net.onnx")
    monkeypatch.setattr(training.export, "_onnx_files", lambda run, *, fused: dict(ready))


@pytest.mark.usefixtures("quick_onnx")
def test_same_command_gives_the_same_bytes_and_the_rule_decides(
    finished_run: Path, feature_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [export_run(finished_run, tmp_path / n, rule=ThresholdRule(recall=1.0), level=0.2, cache_folder=feature_cache) for n in "ab"]
    assert [one.read("familiarity.onnx") for one in made] == [made[0].read("familiarity.onnx")] * 2
    assert made[0].manifest.to_bytes() == made[1].manifest.to_bytes()
    (entry,) = made[0].manifest.calibration
    assert (entry.label, entry.rule, entry.subset, entry.num_images) == ("statevector", "recall 1", "val", 6)
    assert entry.recall is not None
    assert (entry.recall.recall, entry.recall.positives) == (1.0, 3)
    info = made[0].manifest.familiarity
    assert info is not None
    assert (info.level, info.num_reference, info.num_held_out) == (0.2, 28, 6)
    assert info.flagged.keys() == {"test"}
    said = " ".join(capsys.readouterr().err.split())
    assert "3 positive images cannot prove recall 1 (no number can)" in said
    assert "no image will be called unfamiliar" not in said
    costly = export_run(finished_run, tmp_path / "c", rule=ThresholdRule(None, 4.0, 1.0), cache_folder=feature_cache)
    assert costly.manifest.calibration[0].threshold == 0.2
    assert "at the level 0.02 it takes 49 validation images, and there are 6" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ConfigError, match="level of familiarity must lie between 0 and 1; got 1"):
        export_run(finished_run, tmp_path / "d", level=1.0)


@pytest.mark.usefixtures("quick_onnx")
def test_run_whose_images_are_gone_is_calibrated_by_what_it_kept(
    finished_run: Path, exported_bundle: Path, feature_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
    made = export_run(run, tmp_path / "b", cache_folder=feature_cache).manifest
    assert made.calibration == ModelBundle.load(exported_bundle).manifest.calibration
    assert made.familiarity is None
    assert "the bundle cannot tell unfamiliar images" in capsys.readouterr().err
    (run / "predictions.json").unlink()
    assert export_run(run, tmp_path / "c", cache_folder=feature_cache).manifest.calibration == ()
    with pytest.raises(ConfigError, match="a threshold is chosen on the run's own images; bring"):
        export_run(run, tmp_path / "d", rule=ThresholdRule(recall=0.9), cache_folder=feature_cache)


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def test_verify_passes_every_check(bundle: ModelBundle) -> None:
    checks = verify_bundle(bundle.path)
    assert failed(checks) == []
    assert len(checks) == 8
    assert sum("model.onnx" in check.name for check in checks) == 2
    for part in ("torch", "PennyLane", "Qiskit", "head.qasm", "familiarity.onnx against NumPy"):
        assert any(part in check.name for check in checks)


def test_verify_on_given_photographs(bundle: ModelBundle, photographs: Path, tmp_path: Path) -> None:
    assert any("given photographs" in check.name for check in verify_bundle(bundle.path, photographs))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="holds no image"):
        verify_bundle(bundle.path, tmp_path)


def test_any_changed_byte_is_refused_by_name(bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *args, **kwargs: pytest.fail("ONNX Runtime saw it"))
    copy = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    rng = np.random.default_rng(0)
    for name in sorted(path.name for path in copy.iterdir()):
        good = (copy / name).read_bytes()
        for _ in range(3):
            damaged = bytearray(good)
            damaged[rng.integers(len(good))] ^= 1 << int(rng.integers(8))
            (copy / name).write_bytes(damaged)
            with pytest.raises(BundleError, match=name.replace(".", r"\.")):
                verify_bundle(copy)
        (copy / name).write_bytes(good)
    (copy / "extra.bin").touch()
    with pytest.raises(BundleFormatError, match=r"not listed in the manifest: extra\.bin"):
        verify_bundle(copy)


def remade(bundle: ModelBundle, target: Path, **changes: Any) -> Path:
    """A bundle with other files, weights or manifest whose hashes are all right."""
    data = contents(
        bundle, *(name for name in bundle.manifest.files if not name.startswith("head.") and name not in changes.get("without", ()))
    )
    manifest = bundle.manifest.model_copy(update=changes.get("manifest", {}))
    return ModelBundle.save(target, manifest, changes.get("weights", bundle.weights), data | changes.get("files", {})).path


def test_wrong_numbers_under_right_hashes_are_seen_by_the_fused_model(bundle: ModelBundle, tmp_path: Path) -> None:
    """A weight of a stage is its only source; model.onnx holds a second copy of each."""
    changed = {
        "pre": {"files": {"pre_net.onnx": with_changed_weight(bundle.read("pre_net.onnx"), (4, 512), 0.05)}},
        "head": {"weights": bundle.weights + 0.01},
    }
    for name, change in changed.items():
        checks = failed(verify_bundle(remade(bundle, tmp_path / name, **change)))
        assert [check.partition(",")[0] for check in checks] == ["model.onnx against the stages"] * 2


def tanh_to_sigmoid(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Tanh").op_type = "Sigmoid"


def other_factor(model: onnx.ModelProto) -> None:
    """1.5 in place of π/2."""
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))]
    tensor = next(tensor for tensor in tensors if numpy_helper.to_array(tensor).size == 1)
    assert numpy_helper.to_array(tensor).item() == pytest.approx(np.pi / 2)
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), 1.5), tensor.name))


@pytest.mark.parametrize("change", [tanh_to_sigmoid, other_factor])
def test_another_computation_under_right_hashes_is_seen(
    bundle: ModelBundle, tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx.load_model_from_string(bundle.read("pre_net.onnx"))
    change(model)
    path = remade(bundle, tmp_path / "b", files={"pre_net.onnx": model.SerializeToString()}, without=("model.onnx",))
    checks = failed(verify_bundle(path))
    assert len(checks) == 2
    assert all(check.startswith("ONNX Runtime against torch") for check in checks)


def test_another_architecture_than_the_manifest_says_is_seen(bundle: ModelBundle, tmp_path: Path) -> None:
    for name, says in (("vgg16", "another architecture"), ("resnet99", r"'resnet99' cannot be computed by torch here")):
        backbone = bundle.manifest.backbone.model_copy(update={"name": name})
        with pytest.raises(ParityError, match=says):
            verify_bundle(remade(bundle, tmp_path / name, manifest={"backbone": backbone}, without=("model.onnx",)))


def test_another_circuit_in_the_text_and_another_distance_are_seen(
    bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = bundle.read("head.qasm").decode()
    model = onnx.load_model_from_string(bundle.read("familiarity.onnx"))
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    next(attribute for attribute in gemm.attribute if attribute.name == "alpha").f = 1.0
    with monkeypatch.context() as patch:
        patch.setattr("hqtl_common.bundle.openqasm3", lambda spec, weights: text.replace("cx q[0], q[1];", "cx q[1], q[0];", 1))
        path = remade(bundle, tmp_path / "b", files={"familiarity.onnx": model.SerializeToString()}, without=("model.onnx",))
    assert failed(verify_bundle(path)) == ["statevector against head.qasm, expvals", "familiarity.onnx against NumPy, familiarity"]


def test_wrong_implementations_are_seen(bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the independent implementations made wrong in turn: the checks that use it must fail, and only those."""
    path = remade(bundle, tmp_path / "b", without=("model.onnx",))
    forward = StatevectorHead.forward
    with monkeypatch.context() as patch:
        patch.setattr(StatevectorHead, "forward", lambda head, angles: forward(head, angles.flip(1)))
        assert [name.partition(",")[0] for name in failed(verify_bundle(path))] == ["ONNX Runtime against torch"] * 2
    exact = statevector.probabilities
    with monkeypatch.context() as patch:
        patch.setattr(statevector, "probabilities", lambda spec, weights, angles: exact(spec, weights, angles[:, ::-1]))
        assert len(failed(verify_bundle(path))) == 5
    with monkeypatch.context() as patch:
        patch.setattr(training.verify, "qiskit_circuit", lambda spec, weights: training_circuit(spec, -weights))
        assert failed(verify_bundle(path)) == ["statevector against Qiskit Statevector, expvals"]


training_circuit = training.verify.qiskit_circuit


def test_undefined_difference_does_not_pass() -> None:
    assert not Check("a", float("nan"), 1.0).passed
    assert not Check("a", float("inf"), 1.0).passed
    assert Check("a", 1.0, 1.0).passed
    assert [field.name for field in dataclasses.fields(Check)] == ["name", "difference", "tolerance"]
