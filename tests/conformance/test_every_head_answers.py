"""Every embedding × entangler × 1 to 3 layers, and the ansatz commuting, from a bundle to the answer for an image."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from hqtl_common import HeadSpec, HybridClassifier, ModelBundle
from serving.app import create_app
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from tests.asgi import Client
from tests.heads import EMBEDDINGS, ENTANGLERS
from tests.tiny import tiny_bundle
from training.head import StatevectorHead

LAYERED = [HeadSpec(4, *parts) for parts in itertools.product(EMBEDDINGS, ENTANGLERS, (1, 2, 3))]
COMMUTING = [HeadSpec(4, kind, num_layers=layers, ansatz="commuting") for kind in ("angle", "angle_ry") for layers in (1, 2)]


def name_of(spec: HeadSpec) -> str:
    return f"{spec.ansatz}-{spec.embedding}-{spec.entangler}-{spec.num_layers}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "wall.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("spec", LAYERED + COMMUTING, ids=name_of)
def test_a_bundle_of_any_head_answers_as_torch(spec: HeadSpec, image: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", spec=spec)
    assert ModelBundle.load(bundle.path).head == spec
    with HybridClassifier(bundle) as classifier:
        batch = classifier.run(classifier.preprocess([image]))
    assert batch.angles is not None
    head = StatevectorHead(spec, torch.from_numpy(bundle.weights.copy()))
    np.testing.assert_allclose(batch.expvals, head(torch.from_numpy(batch.angles).double()).detach(), atol=1e-12)
    assert 0 < batch.predictions()[0].probability <= 1


@pytest.mark.slow
@pytest.mark.parametrize("spec", LAYERED + COMMUTING, ids=name_of)
def test_every_head_goes_the_whole_way(
    spec: HeadSpec,
    train: Callable[..., dict[str, Any]],
    photographs: Path,
    feature_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Train, export with the fused model, verify and score by the commands; the service gives the same probability."""
    from serving.cli import main as score
    from training.cli import main

    monkeypatch.setenv("HQTL_CACHE", str(feature_cache))
    train(tmp_path / "run", epochs=1, backbone="squeezenet1_1", input_size=64, **spec.to_dict())
    for command in (["export", str(tmp_path / "run"), str(tmp_path / "bundle"), "--fuse"], ["verify", str(tmp_path / "bundle")]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(score, [str(photographs), "--bundle", str(tmp_path / "bundle"), "--out", str(tmp_path / "scores")])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "scores" / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == len(list(photographs.rglob("*.png")))
    predictor = Predictor(ServiceSettings(bundle=tmp_path / "bundle", threads=1))
    try:
        answer = Client(create_app(predictor, None)).post("/v1/predict", files={"image": (photographs / rows[0]["path"]).read_bytes()})
    finally:
        predictor.close()
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["probability"] == pytest.approx(rows[0]["probability"], abs=1e-6)
