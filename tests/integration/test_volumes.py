"""Volumes through every door: trained, exported, verified, predicted, scored; and refused by the service that takes images."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hqtl_common import HybridClassifier, ModelBundle
from hqtl_common.errors import ConfigError
from serving.predictor import Predictor
from serving.scoring.folder import score_folder
from serving.settings import ServiceSettings
from training.evaluate import evaluate
from training.explain import explain
from training.export import export_run
from training.synth_volumes import SynthVolumeSpec, synth_volume, write_volumes
from training.verify import verify_bundle


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes") / "cubes"
    write_volumes(folder, 14, 0, spec=SynthVolumeSpec(edge=16, crack_width=(4.0, 6.0), contrast=0.9))
    (folder / "crack" / "notes.txt").write_text("no volume")
    return folder


@pytest.fixture(scope="module")
def bundle(train: Callable[..., dict[str, Any]], volumes: Path, feature_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volume-run")
    result = train(folder / "run", data=volumes, backbone="r3d_18", input_size=16, depth=4, epochs=2)
    assert result["test"]["num_images"] >= 2
    return export_run(folder / "run", folder / "bundle", cache_folder=feature_cache).path


def test_the_bundle_is_verified_and_every_door_gives_one_answer(bundle: Path, volumes: Path, feature_cache: Path, tmp_path: Path) -> None:
    assert all(check.passed for check in verify_bundle(bundle, volumes))
    loaded = ModelBundle.load(bundle)
    assert loaded.preprocess.pixels_shape == (3, 4, 16, 16)
    with HybridClassifier(loaded) as classifier:
        paths = sorted(volumes.rglob("*.npy"))
        answers = {path.relative_to(volumes).as_posix(): classifier.predict(path) for path in paths}
    score_folder(volumes, bundle, tmp_path / "scores")
    with (tmp_path / "scores" / "scores.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows.keys() == answers.keys()
    assert all(rows[path]["label"] == answer.label for path, answer in answers.items())
    result = evaluate(bundle, volumes, subset="all", cache_folder=feature_cache)
    assert result["num_images"] == len(answers)
    done, errors = explain(bundle, paths[:1], tmp_path / "why")
    assert (done[0].heat.shape, errors) == ((4, 16, 16), {})


def test_the_service_refuses_the_bundle(bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"classifies volumes .* use hqtl-score"):
        Predictor(ServiceSettings(bundle=bundle))


def test_synthetic_volumes_are_what_they_say(tmp_path: Path) -> None:
    write_volumes(tmp_path / "a", 4, 3)
    write_volumes(tmp_path / "b", 4, 3)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*.npy"))]
    assert len(files) == 4
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    with pytest.raises(ConfigError, match="exists already"):
        write_volumes(tmp_path / "a", 4, 3)
    spec = SynthVolumeSpec(pores=(0, 0), crack_width=(3.0, 3.0))
    dark = [(synth_volume(spec, np.random.default_rng(seed), crack=crack) < 90).mean() for seed in range(5) for crack in (True, False)]
    assert min(dark[::2]) > 0.02 > max(dark[1::2])
    assert 0.5 < np.mean(dark[::2]) * spec.edge / 3 < 3, "a plane of three voxels through the cube"
