"""Calibration, threshold, familiarity and review: the same in the library, the folder scoring, the service and the evaluation."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hqtl_common import HybridClassifier, InferenceBatch, ModelBundle, get_backend
from hqtl_common.classifier import softmax
from hqtl_common.errors import ConfigError
from serving.app import create_app
from serving.predictor import Predictor
from serving.scoring import Request, score_folder
from serving.settings import ServiceSettings
from tests.asgi import Client
from tests.tiny import FEATURES, calibration, tiny_bundle
from training.calibration import ThresholdRule
from training.cli import main
from training.evaluate import evaluate
from training.export import export_run
from training.familiarity import build_reference
from training.recalibrate import recalibrate

LEVEL = 0.1
ENTRIES = (calibration(temperature=3.0, threshold=0.3), calibration("aer", 200, temperature=0.5, threshold=0.6))


def photograph(kind: int, index: int) -> bytes:
    """A grid of patches with a little noise: images of one kind are alike."""
    grid = np.random.default_rng(kind).integers(40, 216, size=(4, 4, 3)) + np.random.default_rng([kind, index]).integers(-30, 31, (4, 4, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.kron(grid.clip(0, 255).astype(np.uint8), np.ones((56, 56, 1), np.uint8))).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 labelled images: 24 like those of the training, 24 of many other kinds."""
    root = tmp_path_factory.mktemp("labelled") / "walls"
    for label in ("crack", "no_crack"):
        (root / label).mkdir(parents=True)
        for index in range(24):
            own = index < 12
            (root / label / f"{index:02d}.png").write_bytes(photograph(0 if own else 100 + index, index + 50 * (label == "crack")))
    return root


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A bundle with two calibrations that knows the images of kind 0."""
    plain = tiny_bundle(tmp_path_factory.mktemp("plain") / "bundle")
    with HybridClassifier(plain, threads=1) as classifier:
        features = classifier.featurize(classifier.preprocess([photograph(0, 200 + k) for k in range(60)])).features
    assert features is not None
    assert features.shape == (60, FEATURES)
    reference = build_reference(features[:40], features[40:], LEVEL)
    return tiny_bundle(tmp_path_factory.mktemp("knowing") / "bundle", reference=reference, calibration=ENTRIES)


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


# ---------------------------------------------------------------- the library


@pytest.mark.parametrize(
    ("backend", "options", "temperature", "threshold", "name"),
    [
        ("statevector", {}, 3.0, 0.3, "statevector"),
        ("pennylane:default.qubit", {}, 3.0, 0.3, "statevector"),
        ("aer", {"shots": 100, "seed": 1}, 0.5, 0.6, "aer at 200 shots"),
        ("fake_lima", {}, 3.0, 0.3, "uncalibrated for fake_lima: statevector's used"),
    ],
)
def test_answer_follows_the_calibration_of_its_backend(
    knowing: ModelBundle, files: list[Path], backend: str, options: dict[str, int], temperature: float, threshold: float, name: str
) -> None:
    with HybridClassifier(knowing, get_backend(backend, **options), threads=1) as classifier:
        batch = classifier.run(classifier.preprocess(files[:12]))
    assert (batch.temperature, batch.threshold, batch.calibration) == (temperature, threshold, name)
    assert batch.logits is not None
    expected = softmax(batch.logits / temperature)
    np.testing.assert_allclose(batch.probabilities, expected)
    for prediction, row in zip(batch.predictions(), expected, strict=True):
        assert prediction.label == ("crack" if row[0] >= threshold else "no_crack")
        assert prediction.calibration == name
        assert prediction.boundary == pytest.approx(threshold if prediction.label == "crack" else 1 - threshold)


def test_threshold_that_is_given_goes_before_the_calibrations(knowing: ModelBundle, files: list[Path]) -> None:
    with HybridClassifier(knowing, threads=1, threshold=0.9) as classifier:
        batch = classifier.preprocess(files[:2])
        assert [classifier.run(batch, threshold=value).threshold for value in (None, 0.2)] == [0.9, 0.2]
        assert classifier.run(batch).temperature == 3.0


def test_adaptive_shots_decide_by_the_calibrated_threshold(knowing: ModelBundle, files: list[Path]) -> None:
    """With a threshold that no image comes near, none is in doubt; at the middle of the answers some are."""
    with HybridClassifier(knowing, get_backend("statevector", shots=50, seed=3), threads=1) as classifier:
        batch = classifier.featurize(classifier.preprocess(files))
        exact = classifier.run(batch, backend=get_backend("statevector")).probabilities
        assert exact is not None
        far, near = float(exact[:, 0].min()) / 30, float(np.median(exact[:, 0]))
        used = [classifier.run(batch, max_shots=400, threshold=threshold).shots_used for threshold in (far, near)]
    assert used[0] is not None
    assert used[1] is not None
    assert used[0].max() == 50
    assert used[1].max() == 400


def test_reasons_for_a_review(knowing: ModelBundle, files: list[Path]) -> None:
    with HybridClassifier(knowing, threads=1) as classifier:
        batch = classifier.run(classifier.preprocess(files))
        sampled = classifier.run(batch, backend=get_backend("statevector", shots=60, seed=0)).predictions()
        unknown = classifier.run(InferenceBatch(angles=batch.angles)).predictions()
    exact = batch.predictions()
    own = [path.stem < "12" for path in files]
    assert np.mean([p.unfamiliar for p, known in zip(exact, own, strict=True) if not known]) == 1
    assert np.mean([p.unfamiliar for p, known in zip(exact, own, strict=True) if known]) < 0.4
    for p in exact:
        assert p.familiarity is not None
        assert ("unfamiliar" in p.review) == p.unfamiliar == (p.familiarity <= np.float32(LEVEL))
        assert p.boundary is not None
        assert ("close" in p.review) == (p.probability - 0.1 < p.boundary)
    for p in sampled:
        assert p.interval is not None
        assert p.boundary is not None
        assert ("interval" in p.review) == (p.interval[0] < p.boundary)
        assert "close" not in p.review
    assert {"close"} < {reason for p in exact for reason in p.review} >= {"unfamiliar"}
    assert any("interval" in p.review for p in sampled)
    assert {(p.familiarity, p.unfamiliar) for p in unknown} == {(None, False)}  # from angles alone it cannot be told


# ---------------------------------------------------------------- folder scoring and service


@pytest.mark.parametrize("request_", [Request(batch_size=7, chunk_size=20), Request(backend="aer", shots=150, seed=2, batch_size=48)])
def test_scores_say_what_the_library_says(knowing: ModelBundle, folder: Path, tmp_path: Path, request_: Request) -> None:
    outcome = score_folder(folder, knowing.path, tmp_path / "out", request_)
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text("ascii").splitlines()]
    backend = get_backend(request_.backend or "statevector", **({"shots": 150, "seed": 2} if request_.backend else {}))
    with HybridClassifier(knowing, backend, threads=1) as classifier:
        expected = [p.to_dict() for p in classifier.predict_many([folder / row["path"] for row in rows])]
    for row, answer in zip(rows, expected, strict=True):
        for field in ("label", "calibration", "familiarity", "review"):
            assert row[field] == answer[field], field
        assert row["probability"] == pytest.approx(answer["probability"], abs=1e-5)
    name = "aer at 200 shots" if request_.backend else "statevector"
    assert outcome.summary["calibration"] == [name]
    assert outcome.summary["options"]["threshold"] == (0.6 if request_.backend else 0.3)
    assert outcome.summary["unfamiliar"] == sum("unfamiliar" in row["review"] for row in rows) >= 24
    assert len(outcome.strangers) == 5
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        flat = list(csv.DictReader(file))
    assert [row["review"].split() for row in flat] == [row["review"] for row in rows]
    assert [float(row["familiarity"]) for row in flat] == [row["familiarity"] for row in rows]


def test_service_says_what_the_library_says(knowing: ModelBundle, files: list[Path]) -> None:
    predictor = Predictor(ServiceSettings(bundle=knowing.path, threads=1))
    try:
        sent = [("image", (path.name, path.read_bytes(), "image/png")) for path in files[10:14]]
        found = Client(create_app(predictor, None)).post("/v1/predict", files=sent, data={"backend": "aer", "shots": "100", "seed": "1"})
    finally:
        predictor.close()
    with HybridClassifier(knowing, get_backend("aer", shots=100, seed=1), threads=1) as classifier:
        expected = [p.to_dict() for p in classifier.predict_many(files[10:14])]
    assert found.status_code == 200, found.text
    assert [{k: v for k, v in p.items() if k != "filename"} for p in found.json()["predictions"]] == json.loads(json.dumps(expected))
    assert {p["calibration"] for p in expected} == {"aer at 200 shots"}


# ---------------------------------------------------------------- evaluation


def test_evaluation_with_and_without_the_unfamiliar(knowing: ModelBundle, folder: Path, files: list[Path], tmp_path: Path) -> None:
    found = evaluate(knowing.path, folder, cache_folder=tmp_path, out=tmp_path / "out")
    with HybridClassifier(knowing, threads=1) as classifier:
        predictions = classifier.predict_many(files)
    right = np.array([p.label == path.parent.name for p, path in zip(predictions, files, strict=True)])
    strange = np.array([p.unfamiliar for p in predictions])
    for name, chosen in (("familiar", ~strange), ("unfamiliar", strange)):
        assert found["familiarity"][name]["num_images"] == chosen.sum() > 0
        assert found["familiarity"][name]["accuracy"] == pytest.approx(right[chosen].mean())
    assert found["accuracy"] == right.mean()
    assert found["calibration"] == {"temperature": 3.0, "threshold": 0.3, "name": "statevector"}
    assert found["reliability"]["nll"] == pytest.approx(found["loss"])
    assert found["uncalibrated"]["nll"] != found["reliability"]["nll"]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    with Image.open(tmp_path / "out" / "reliability.png") as image:
        assert min(image.size) > 500
    with pytest.raises(ConfigError, match="give another folder for the evaluation"):
        evaluate(knowing.path, folder, cache_folder=tmp_path, out=tmp_path / "out")


def test_run_is_calibrated_as_its_bundle(train: Callable[..., Any], photographs: Path, feature_cache: Path, tmp_path: Path) -> None:
    """With enough validation images for a temperature of its own; the head of the run samples, and gets an entry, too."""
    train(tmp_path / "run", split="30/60/10", epochs=4, lr=0.3, shots=40)
    bundle = export_run(tmp_path / "run", tmp_path / "bundle", cache_folder=feature_cache)
    exact, sampled = bundle.manifest.calibration
    assert (exact.label, sampled.label, sampled.seed) == ("statevector", "statevector at 40 shots", 0)
    assert exact.temperature != 1
    found = [evaluate(model, photographs, subset="val", cache_folder=feature_cache) for model in (tmp_path / "run", bundle.path)]
    assert found[0]["calibration"] == found[1]["calibration"]
    assert found[0]["calibration"]["temperature"] == exact.temperature
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-4)
    assert found[0]["loss"] == pytest.approx(exact.after.nll, abs=1e-4)
    assert found[0]["confusion"] == found[1]["confusion"]
    again = evaluate(tmp_path / "run", photographs, subset="val", cache_folder=feature_cache, shots=50)
    assert again["calibration"]["name"] == sampled.label


# ---------------------------------------------------------------- calibrate


def test_calibrate_adds_an_entry_and_leaves_the_rest(knowing: ModelBundle, folder: Path, tmp_path: Path) -> None:
    command = ["calibrate", str(knowing.path), str(folder), "--backend", "fake_lima", "--shots", "300", "--subset", "all", "--seed", "4"]
    answers = [CliRunner().invoke(main, [*command, "--recall", "0.9", "--out", str(tmp_path / n), "--json"]) for n in ("a", "b")]
    assert [answer.exit_code for answer in answers] == [0, 0], answers[0].stderr
    new = ModelBundle.load(tmp_path / "a")
    assert new.manifest.to_bytes() == ModelBundle.load(tmp_path / "b").manifest.to_bytes()
    changed = {name for name in new.manifest.files if new.manifest.files[name] != knowing.manifest.files[name]}
    assert changed == {"MODEL_CARD.md"}
    assert [entry.label for entry in new.manifest.calibration] == ["aer at 200 shots", "fake_lima at 300 shots", "statevector"]
    entry = new.manifest.calibration[1]
    assert json.loads(answers[0].stdout)["calibration"] == entry.model_dump(mode="json")
    assert (entry.seed, entry.subset, entry.num_images, entry.rule) == (4, "all of walls", 48, "recall 0.9")
    assert entry.recall is not None
    assert entry.recall.recall >= 0.9
    assert "| fake_lima at 300 shots | all of walls, 48 images |" in (new.path / "MODEL_CARD.md").read_text()
    with HybridClassifier(new, get_backend("fake_lima", shots=300, seed=4), threads=1) as classifier:
        batch = classifier.run(classifier.preprocess([folder / "crack" / "00.png"]))
    assert (batch.calibration, batch.temperature, batch.threshold) == ("fake_lima at 300 shots", entry.temperature, entry.threshold)


def test_calibrate_again_replaces_the_entry(knowing: ModelBundle, folder: Path, tmp_path: Path) -> None:
    entry, errors = recalibrate(knowing.path, folder, tmp_path / "a", ThresholdRule(), subset="all")
    assert errors == []
    assert ModelBundle.load(tmp_path / "a").manifest.calibration == (ENTRIES[1], entry)


def test_calibrate_on_the_validation_split_of_the_training(exported_bundle: Path, photographs: Path, tmp_path: Path) -> None:
    """Without noise and from the same images it finds what export found."""
    entry, _ = recalibrate(exported_bundle, photographs, tmp_path / "a", ThresholdRule())
    (before,) = ModelBundle.load(exported_bundle).manifest.calibration
    assert (entry.temperature, entry.threshold, entry.subset, entry.notes) == (before.temperature, 0.5, "val", before.notes)
    assert entry.before.nll == pytest.approx(before.before.nll, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--backend", "ibm:ibm_fez", "--shots", "10"], 1, "set --max-jobs or --max-qpu-seconds"),
        (["--backend", "ibm:least_busy", "--shots", "10", "--yes"], 1, "holds for one machine; name it"),
        (["--cost-miss", "3"], 1, "give both costs"),
        (["--recall", "0.9", "--cost-miss", "3", "--cost-false-alarm", "1"], 1, "give one of them"),
        ([], 1, "is not the folder the model was trained on"),
        (["--subset", "train"], 2, "Invalid value for '--subset'"),
    ],
)
def test_calibrate_refuses_and_writes_nothing(
    knowing: ModelBundle, folder: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    answer = CliRunner().invoke(main, ["calibrate", str(knowing.path), str(folder), "--out", str(tmp_path / "new"), *arguments])
    assert answer.exit_code == code
    assert says in " ".join(answer.stderr.split())
    assert not (tmp_path / "new").exists()


def test_calibrate_refuses_a_place_that_is_taken_and_leaves_out_what_it_cannot_read(
    knowing: ModelBundle, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        recalibrate(knowing.path, folder, knowing.path, ThresholdRule(), subset="all")
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    (damaged / "crack" / "00.png").write_bytes(b"no image")
    command = ["calibrate", str(knowing.path), str(damaged), "--subset", "all", "--out", str(tmp_path / "new")]
    answer = CliRunner().invoke(main, command)
    assert answer.exit_code == 3
    assert "left out crack/00.png" in answer.stderr
    assert "all of damaged, 47 images" in answer.stdout
