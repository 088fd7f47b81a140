"""Trainings with altered copies and with an unfrozen backbone: the same after a kill, and exported as trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hqtl_common.errors import ConfigError, InputError
from training.architectures import default_spec
from training.backbones import Backbone, load_backbone, state_digest
from training.config import FitConfig
from training.export import export_run
from training.features import FeatureCache
from training.finetune import load_tuned, tune_backbone, unfrozen_parameters
from training.prepare import add_variants, prepare
from training.report.run_page import write_report
from training.runs import RunFolder
from training.synth import SynthSpec, write_dataset
from training.trained import load_run
from training.verify import verify_bundle

Train = Callable[..., dict[str, Any]]
OPTIONS = {"backbone": "squeezenet1_1", "input_size": 32, "batch_size": 8, "weights": "none", "epochs": 2}
TUNED = {**OPTIONS, "unfreeze": "features.11,features.12", "backbone_lr": 1e-3, "backbone_epochs": 3, "augment": "flips,noise"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning") / "images"
    write_dataset(folder, 20, seed=0, spec=SynthSpec(crack_width=(8.0, 16.0), contrast=(0.9, 1.0)))
    return folder


@pytest.fixture(scope="module")
def tuned_run(train: Train, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "run"
    train(path, data=images, augment_variants=2, **TUNED)
    return path


def network() -> Backbone:
    return load_backbone("squeezenet1_1", "none", 0, default_spec("squeezenet1_1", 32))


def test_only_the_unfrozen_parts_have_changed(tuned_run: Path) -> None:
    before, run = network(), load_run(tuned_run)
    after = run.backbone.network.state_dict()
    changed = {key for key, value in before.network.state_dict().items() if not torch.equal(value, after[key])}
    assert changed == set(unfrozen_parameters(before.network, "features.11,features.12"))
    assert (run.backbone.weights, run.backbone.digest) == ("tuned", run.result["tuning"]["backbone_sha256"])
    assert run.backbone.digest == state_digest(run.backbone.network) != before.digest == run.data["backbone_sha256"]
    assert not any(parameter.requires_grad for parameter in run.backbone.network.parameters())


def test_the_best_epoch_is_kept(tuned_run: Path) -> None:
    losses = [line["val_loss"] for line in RunFolder(tuned_run / "tuning").metrics()]
    tuning = load_run(tuned_run).result["tuning"]
    assert len(losses) == tuning["epoch"] == 3
    assert (tuning["best_epoch"] - 1, tuning["best_loss"]) == (int(np.argmin(losses)), min(losses))


def test_the_tuned_network_is_what_is_exported_and_verified(tuned_run: Path, feature_cache: Path, tmp_path: Path) -> None:
    bundle = export_run(tuned_run, tmp_path / "bundle", cache_folder=feature_cache)
    info = bundle.manifest.backbone
    assert (info.weights, info.weights_sha256) == ("tuned", load_run(tuned_run).backbone.digest)
    assert bundle.manifest.training["unfreeze"] == "features.11,features.12"
    assert bundle.preprocess.size == 32
    assert all(check.passed for check in verify_bundle(bundle.path))


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_tuning_goes_on_to_the_same_weights(images: Path, tuned_run: Path, tmp_path: Path, stop_after: int) -> None:
    config = FitConfig.parse({"data": images, **TUNED})
    data = prepare(config, network(), tmp_path, "cpu")
    run = RunFolder(tmp_path / "run")
    run.start(config)
    tune_backbone(config.model_copy(update={"backbone_epochs": stop_after}), run, network(), data)
    with pytest.raises(InputError, match="finish the run with"):
        load_tuned(run.path, config, network())
    tuned = tune_backbone(config, run, network(), data)
    assert tuned.digest == load_run(tuned_run).backbone.digest
    assert (run.path / "tuning" / "metrics.jsonl").read_bytes() == (tuned_run / "tuning" / "metrics.jsonl").read_bytes()


def test_a_damaged_tuning_is_refused(images: Path, tmp_path: Path) -> None:
    config = FitConfig.parse({"data": images, **TUNED, "backbone_epochs": 1})
    data = prepare(config, network(), tmp_path, "cpu")
    run = RunFolder(tmp_path / "run")
    run.start(config)
    tune_backbone(config, run, network(), data)
    other = config.model_copy(update={"unfreeze": "features.3"})
    with pytest.raises(InputError, match="does not fit"):
        tune_backbone(other, run, network(), data)
    path = run.path / "tuning" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        load_tuned(run.path, config, network())


def test_unknown_parts_are_named_with_the_known_ones() -> None:
    backbone = network().network
    assert set(unfrozen_parameters(backbone, "all")) == {name for name, _ in backbone.named_parameters()}
    assert set(unfrozen_parameters(backbone, "features.0")) == {"features.0.weight", "features.0.bias"}
    for bad in ("layer4", "features.1", "feature", ""):
        with pytest.raises(ConfigError, match=r"its parts are features \(and parts of them\), or all"):
            unfrozen_parameters(backbone, bad)


def test_variants_are_cached_copies_of_the_training_images_only(images: Path, tmp_path: Path) -> None:
    config = FitConfig.parse({"data": images, **OPTIONS, "augment": "all", "augment_variants": 3})
    backbone = network()
    plain = prepare(config, backbone, tmp_path, "cpu")
    data = add_variants(config, plain, backbone, tmp_path, "cpu")
    assert data.variants is not None
    assert data.variants.shape == (3, 20, 512)
    np.testing.assert_array_equal(data.variants[0], plain.features)
    train, rest = list(data.split.train), [*data.split.val, *data.split.test]
    assert all(len({data.variants[k, i].tobytes() for k in range(3)}) == 3 for i in train)
    assert not data.variants[1:, rest].any()
    cache = FeatureCache(tmp_path, backbone, config.preprocess_spec)
    size = cache.size_bytes
    again = add_variants(config, plain, backbone, tmp_path, "cpu")
    assert again.variants is not None
    assert again.variants.tobytes() == data.variants.tobytes()
    assert cache.size_bytes == size
    assert len(data.training_tensors()[0]) == 3
    assert add_variants(config.model_copy(update={"augment": "none"}), plain, backbone, tmp_path, "cpu").variants is None


def test_a_part_that_is_not_there_leaves_no_run_behind(train: Train, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no part 'features\.99' to unfreeze"):
        train(tmp_path / "run", data=images, **{**TUNED, "unfreeze": "features.99"})
    train(tmp_path / "run", data=images, **OPTIONS)  # the same folder, not "exists already"


def test_card_and_page_say_what_was_tuned(tuned_run: Path, tmp_path: Path) -> None:
    export_run(tuned_run, tmp_path / "bundle")
    card = (tmp_path / "bundle/MODEL_CARD.md").read_text()
    assert "(weights: none, features.11,features.12 tuned on these images)" in card
    assert "frozen" not in card
    page = write_report(tuned_run, tmp_path / "page.html").read_text("utf-8")
    assert "random weights, features.11,features.12 tuned" in page
    for text in (card, page):
        assert "tuned through the hybrid model, which may favour it over its twins" in text
