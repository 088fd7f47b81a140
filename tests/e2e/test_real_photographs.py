"""The main job on real photographs of pavement, with real weights: train, export, score, serve; one answer everywhere.

Skipped where ../shared/data is absent.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hqtl_common import HybridClassifier, ModelBundle
from hqtl_common.classifier import softmax
from hqtl_common.stages import Stage
from serving.app import create_app
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from tests.asgi import Client
from training.config import FitConfig
from training.evaluate import evaluate, load_run
from training.export import export_run
from training.features import FeatureCache, extract_features
from training.fit import fit, open_run
from training.prepare import prepare
from training.runs import RunFolder
from training.verify import verify_bundle

Answers = dict[str, tuple[str, dict[str, float]]]  # relative path → label, probability per class


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> Path:
    folder = shared_data / "dev" / "cfd_pavement"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared/data/dev/cfd_pavement")
    return folder


@pytest.fixture(scope="module", autouse=True)
def torch_home(shared_data: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(shared_data / "torch-home"))
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real-features")


@pytest.fixture(scope="module")
def config(photos: Path) -> FitConfig:
    return FitConfig(data=photos, group_by="source", epochs=100, seed=0)


@pytest.fixture(scope="module")
def run(config: FitConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real") / "run"
    fit(config, open_run(path, config, resume=False)[0], cache)
    return path


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return export_run(run, tmp_path_factory.mktemp("real") / "bundle", fused=True)


@pytest.fixture(scope="module")
def tested(run: Path) -> list[str]:
    """Relative paths of the test split."""
    data = RunFolder(run).data()
    assert data is not None
    split: list[str] = data["split"]["test"]
    return split


@pytest.fixture(scope="module")
def by_torch(run: Path, config: FitConfig, cache: Path, tested: list[str]) -> Answers:
    """What the trained networks say, by torch alone."""
    trained = load_run(run)
    data = prepare(config, trained.backbone, cache, "cpu")
    with torch.no_grad():
        probabilities = softmax(trained.model(data.tensors("test")[0]).numpy())
    labels = trained.data["labels"]
    return {
        name: (labels[0 if row[0] >= 0.5 else 1], dict(zip(labels, row.tolist(), strict=True)))
        for name, row in zip(tested, probabilities, strict=True)
    }


def assert_same_answers(found: Answers, expected: Answers) -> None:
    assert found.keys() == expected.keys()
    for name, (label, probabilities) in found.items():
        assert label == expected[name][0], name
        assert probabilities == pytest.approx(expected[name][1], abs=1e-4), name


def test_accuracy_is_that_of_the_classical_reference(run: Path) -> None:
    result, data = RunFolder(run).result(), RunFolder(run).data()
    assert result is not None
    assert data is not None
    sources = {name: {Path(path).name.partition("_")[0] for path in paths} for name, paths in data["split"].items()}
    assert not sources["train"] & (sources["test"] | sources["val"])
    assert result["test"]["num_images"] >= 80
    assert result["logistic_regression"]["accuracy"] > 0.85
    assert result["test"]["accuracy"] >= result["logistic_regression"]["accuracy"] - 0.02


def test_second_training_computes_no_feature_and_is_quick(config: FitConfig, run: Path, cache: Path) -> None:
    trained = load_run(run)
    data = prepare(config, trained.backbone, cache, "cpu")
    cached = FeatureCache(cache, trained.backbone, config.preprocess_spec)
    table = extract_features(data.source.dataset.samples, data.source.hashes, trained.backbone, config.preprocess_spec, cache=cached)
    assert table.num_cached == len(data.source.hashes) == 600
    assert sum(line["seconds"] for line in RunFolder(run).metrics()) < 60, "100 epochs"


def test_bundle_gives_torchs_answers(
    run: Path, bundle: ModelBundle, photos: Path, cache: Path, tested: list[str], by_torch: Answers
) -> None:
    with HybridClassifier(bundle) as classifier:
        batch = classifier.preprocess([photos / name for name in tested])
        assert_same_answers(
            {name: (p.label, p.probabilities) for name, p in zip(tested, classifier.run(batch).predictions(), strict=True)}, by_torch
        )
    fused = softmax(Stage(bundle.read("model.onnx"), "model.onnx")(batch.pixels))
    np.testing.assert_allclose(fused, [list(by_torch[name][1].values()) for name in tested], atol=1e-4)
    result = RunFolder(run).result()
    assert result is not None
    for model in (run, bundle.path):
        found = evaluate(model, photos, cache_folder=cache)
        assert found["subset"] == "test"
        assert {key: found[key] for key in ("accuracy", "confusion", "f1")} == {
            key: result["test"][key] for key in ("accuracy", "confusion", "f1")
        }


def test_scoring_a_folder_gives_torchs_answers(
    bundle: ModelBundle, photos: Path, tested: list[str], by_torch: Answers, tmp_path: Path
) -> None:
    for name in tested:
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / name, tmp_path / "folder" / name)
    command = [
        sys.executable,
        "-m",
        "serving.cli",
        str(tmp_path / "folder"),
        "--bundle",
        str(bundle.path),
        "--out",
        str(tmp_path / "scores"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], env={**os.environ})
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "scores" / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == len(tested)
    assert_same_answers({row["path"]: (row["label"], row["probabilities"]) for row in rows}, by_torch)


def test_the_service_gives_torchs_answers(bundle: ModelBundle, photos: Path, tested: list[str], by_torch: Answers) -> None:
    predictor = Predictor(ServiceSettings(bundle=bundle.path, max_images=200))
    try:
        files = [("image", (name, (photos / name).read_bytes())) for name in tested]
        answer = Client(create_app(predictor, None)).post("/v1/predict", files=files)
        assert answer.status_code == 200, answer.text
        predictions = answer.json()["predictions"]
    finally:
        predictor.close()
    assert_same_answers({name: (p["label"], p["probabilities"]) for name, p in zip(tested, predictions, strict=True)}, by_torch)


def test_bundle_is_verified_on_the_photographs(bundle: ModelBundle, photos: Path) -> None:
    checks = verify_bundle(bundle.path, photos)
    assert [check.name for check in checks if not check.passed] == []
    assert bundle.manifest.backbone.weights == "imagenet"
