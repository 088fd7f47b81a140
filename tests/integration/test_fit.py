"""A whole training on small synthetic photographs: what it leaves, what repeats, what may interrupt it, what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hqtl_common.errors import BackendError, CapabilityError, ConfigError, InputError
from training.backbones import load_backbone, state_digest
from training.card import model_card
from training.config import FitConfig
from training.export import _manifest
from training.fit import fit, open_run
from training.runs import Checkpoint, RunFolder
from training.synth import SynthSpec, synth_patch
from training.trained import load_run

Train = Callable[..., dict[str, Any]]
FILES = [
    "checkpoint.safetensors",
    "config.json",
    "confusion.png",
    "curves.png",
    "data.json",
    "metrics.jsonl",
    "predictions.json",
    "result.json",
]


def same_tensors(left: Path, right: Path) -> bool:
    mine, theirs = RunFolder(left).load_checkpoint(), RunFolder(right).load_checkpoint()
    assert mine is not None
    assert theirs is not None
    assert mine.tensors.keys() == theirs.tensors.keys()
    return mine.progress == theirs.progress and all(torch.equal(value, theirs.tensors[key]) for key, value in mine.tensors.items())


def figures(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in RunFolder(run).metrics()]


def assert_same_run(left: Path, right: Path) -> None:
    for name in ("result.json", "predictions.json", "data.json", "config.json", "confusion.png", "curves.png"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    assert figures(left) == figures(right)
    assert same_tensors(left, right)


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed training with default options."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(path)
    return path


def test_run_folder_is_complete(whole: Path, photographs: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == FILES
    run = RunFolder(whole)
    data, result = run.data(), run.result()
    assert data is not None
    assert result is not None
    assert data["labels"] == ["crack", "no_crack"]
    assert data["counts"] == {
        "train": {"crack": 14, "no_crack": 14},
        "val": {"crack": 3, "no_crack": 3},
        "test": {"crack": 3, "no_crack": 3},
    }
    files = sorted(path.relative_to(photographs).as_posix() for path in photographs.rglob("*.png"))
    assert sorted(itertools.chain(*data["split"].values())) == files
    assert [line["epoch"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite([line["train_loss"], line["val_loss"], line["seconds"]]).all() for line in run.metrics())
    assert result["best_epoch"] == 1 + int(np.argmin([line["val_loss"] for line in run.metrics()]))
    assert (result["epochs"], result["shots"], result["diff_method"], result["positive"]) == (6, None, "backprop", "crack")
    assert result["test"]["num_images"] == result["logistic_regression"]["num_images"] == 6


def test_it_learns(whole: Path) -> None:
    """Wide cracks, linearly separable even by random features: the head must rank them and the loss must fall."""
    run, result = RunFolder(whole), RunFolder(whole).result()
    assert result is not None
    assert run.metrics()[-1]["train_loss"] < run.metrics()[0]["train_loss"] - 0.05
    assert result["test"]["roc_auc"] > 0.9
    assert result["val"]["loss"] == pytest.approx(min(line["val_loss"] for line in run.metrics()), abs=1e-9)


def test_backbone_is_untouched_by_a_training(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone("resnet18", "none")
    monkeypatch.setattr("training.fit.load_backbone", lambda *args: backbone)
    train(tmp_path / "run", epochs=2)
    assert state_digest(backbone.network) == backbone.digest
    assert not any(module.training for module in backbone.network.modules())
    assert all(parameter.grad is None for parameter in backbone.network.parameters())


def test_same_command_gives_the_same_run_and_the_same_bundle(whole: Path, train: Train, tmp_path: Path) -> None:
    from training.export import export_run

    train(tmp_path / "again")
    assert_same_run(whole, tmp_path / "again")
    for path, name in ((whole, "first"), (tmp_path / "again", "second")):
        export_run(path, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert len(names) >= 7
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_another_seed_gives_another_run(whole: Path, train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run", seed=1)
    mine, theirs = RunFolder(whole).data(), RunFolder(tmp_path / "run").data()
    assert mine is not None
    assert theirs is not None
    assert mine["split_sha256"] != theirs["split_sha256"]
    assert mine["backbone_sha256"] != theirs["backbone_sha256"], "random weights come from the seed too"
    assert not same_tensors(whole, tmp_path / "run")


class Interruption:
    """Raises KeyboardInterrupt around the n-th checkpoint: before it is written, or right after."""

    def __init__(self, at: int, *, written: bool) -> None:
        self.left, self.written = at, written
        self.commit = RunFolder.commit_checkpoint

    def __call__(self, run: RunFolder) -> None:
        self.left -= 1
        if self.left or self.written:
            self.commit(run)
        if not self.left:
            raise KeyboardInterrupt


def interrupted(train: Train, path: Path, monkeypatch: pytest.MonkeyPatch, at: int, *, written: bool, **options: Any) -> None:
    with monkeypatch.context() as patch:
        interruption = Interruption(at, written=written)
        patch.setattr(RunFolder, "commit_checkpoint", lambda run: interruption(run))
        with pytest.raises(KeyboardInterrupt):
            train(path, resume=path.exists(), **options)
    assert not (path / "result.json").exists()


@pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
def test_resumed_at_an_epoch_ends_as_if_undisturbed(
    whole: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, written: bool
) -> None:
    interrupted(train, tmp_path / "run", monkeypatch, at, written=written)
    train(tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


def test_interrupted_again_and_again(whole: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for written in (False, True, False, True, True):
        interrupted(train, tmp_path / "run", monkeypatch, 1 if not written else 2, written=written)
        if len(RunFolder(tmp_path / "run").metrics()) >= 5:
            break
    train(tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("moment", ["backbone", "features", "reference", "plot_confusion"])
def test_interrupted_before_and_after_the_epochs(
    whole: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    target = {
        "backbone": "training.fit.load_backbone",
        "features": "training.prepare.extract_features",
        "reference": "training.fit._reference",
        "plot_confusion": "training.fit.plot_confusion",
    }[moment]

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(target, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run")
    train(tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


def test_resume_with_recorded_options_and_of_a_finished_run(whole: Path, feature_cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    run, config = open_run(copy, None, resume=True)
    assert config == RunFolder(whole).config()
    assert fit(config, run, feature_cache) == json.loads(before["result.json"])
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before, "nothing is left to do"


def test_resume_makes_a_run_where_there_is_none(train: Train, tmp_path: Path) -> None:
    """A script that always says --resume works from the first call on."""
    assert train(tmp_path / "run", resume=True, epochs=1)["epochs"] == 1


def test_noise_goes_on_where_it_stopped(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled gradients: after a resume the next draws must be those that would have come."""
    options = {"shots": 20, "diff_method": "spsa", "epochs": 3, "seed": 2}
    train(tmp_path / "whole", **options)
    interrupted(train, tmp_path / "run", monkeypatch, 2, written=False, **options)
    train(tmp_path / "run", resume=True, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_existing_run_is_not_overwritten(whole: Path, train: Train) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(ConfigError, match="exists already; go on with it by --resume"):
        train(whole)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


@pytest.fixture
def begun(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run stopped after its first epoch."""
    interrupted(train, tmp_path / "begun", monkeypatch, 1, written=True)
    return tmp_path / "begun"


def test_other_options_are_refused_by_name(begun: Path, train: Train) -> None:
    with pytest.raises(ConfigError) as caught:
        train(begun, resume=True, lr=0.5, num_layers=3, shots=100)
    for part in ("lr: 0.0004 here, 0.5 there", "num_layers: 1 here, 3 there", "shots: None here, 100 there"):
        assert part in str(caught.value)
    assert "seed" not in str(caught.value)


def test_moved_data_and_another_device_are_no_difference(whole: Path, begun: Path, train: Train, photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs, tmp_path / "moved")
    train(begun, resume=True, data=tmp_path / "moved", device="cpu")
    assert same_tensors(whole, begun)


def test_changed_data_are_refused(begun: Path, train: Train, photographs: Path, tmp_path: Path) -> None:
    more = Path(shutil.copytree(photographs, tmp_path / "more"))
    Image.new("L", (224, 224)).save(more / "crack" / "extra.png")
    renamed = Path(shutil.copytree(photographs, tmp_path / "renamed"))
    (renamed / "crack").rename(renamed / "fissure")
    for folder, changed in ((more, "data_sha256, split_sha256, counts, split"), (renamed, "labels, data_sha256")):
        with pytest.raises(ConfigError, match=rf"changed since .* was begun \({changed}.* differ\); begin a new run"):
            train(begun, resume=True, data=folder)


def test_changed_weights_are_refused(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    path = tmp_path / "mine.pth"
    torch.save(models.resnet18(weights=None).state_dict(), path)
    interrupted(train, tmp_path / "run", monkeypatch, 1, written=True, weights=str(path))
    torch.save(models.resnet18(weights=None).state_dict(), path)
    with pytest.raises(ConfigError, match=r"\(backbone_sha256 differ\)"):
        train(tmp_path / "run", resume=True, weights=str(path))


def test_early_stop(train: Train, tmp_path: Path) -> None:
    result = train(tmp_path / "run", patience=2, epochs=60, lr=0.01)
    losses = [line["val_loss"] for line in RunFolder(tmp_path / "run").metrics()]
    assert len(losses) == result["epochs"] < 60
    assert result["best_epoch"] == result["epochs"] - 2 == 1 + int(np.argmin(losses))


def test_best_epoch_and_not_the_last_is_measured(train: Train, tmp_path: Path) -> None:
    result = train(tmp_path / "run", patience=3, epochs=60, lr=0.01)
    checkpoint = RunFolder(tmp_path / "run").load_checkpoint()
    assert checkpoint is not None
    assert result["best_epoch"] < result["epochs"]
    assert not torch.equal(checkpoint.part("best")["post_net.weight"], checkpoint.part("model")["post_net.weight"])
    metrics = RunFolder(tmp_path / "run").metrics()
    assert result["val"]["loss"] == pytest.approx(metrics[result["best_epoch"] - 1]["val_loss"], abs=1e-9)


def test_overflow_is_a_clear_error(train: Train, photographs: Path, tmp_path: Path) -> None:
    from torchvision import models

    state = models.resnet18(weights=None).state_dict()
    torch.save({**state, "layer4.1.bn2.weight": state["layer4.1.bn2.weight"] * 3e38}, tmp_path / "huge.pth")
    with pytest.raises(ConfigError, match=r"loss is no finite number in epoch 1; .* smaller --lr or other --weights"):
        train(tmp_path / "run", weights=str(tmp_path / "huge.pth"))
    assert not RunFolder(tmp_path / "run").metrics(), "what is no number must not be recorded"


def patch(index: int, crack: bool = False, size: int = 224) -> np.ndarray:
    return synth_patch(SynthSpec(size=size), np.random.default_rng([9, index]), crack)[0]


def write(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def test_three_classes(train: Train, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(photographs, tmp_path / "data")
    for index in range(8):
        write(tmp_path / "data" / "[b] $_$" / f"{index}.png", np.full((64, 64, 3), 20 * index, dtype=np.uint8))
    result = train(tmp_path / "run", data=tmp_path / "data", epochs=2)
    assert result["test"]["labels"] == ["[b] $_$", "crack", "no_crack"]
    assert np.array(result["test"]["confusion"]).shape == (3, 3)
    assert result["positive"] == "crack"
    from training.tables import print_fit

    print_fit(tmp_path / "run", result)
    assert capsys.readouterr().out.count("[b] $_$") == 2, "a name is no markup"


@pytest.fixture(scope="module")
def divided(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/, validation/ and test/ with four, two and three images per class."""
    root = tmp_path_factory.mktemp("divided")
    for label in ("crack", "no_crack"):
        files = iter(sorted((photographs / label).iterdir()))
        for part, count in (("train", 4), ("validation", 2), ("test", 3)):
            (root / part / label).mkdir(parents=True)
            for file in itertools.islice(files, count):
                shutil.copy(file, root / part / label)
    return root


def test_given_folders_are_the_split(train: Train, divided: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", data=divided, epochs=1, split="10/80/10", seed=4)
    data = RunFolder(tmp_path / "run").data()
    assert data is not None
    for name, folder, count in (("train", "train", 8), ("val", "validation", 4), ("test", "test", 6)):
        assert len(data["split"][name]) == count
        assert all(path.startswith(f"{folder}/") for path in data["split"][name])


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of 12 source photographs, four of each; their names tell the source."""
    root = tmp_path_factory.mktemp("grouped")
    for source, row in itertools.product(range(12), range(4)):
        crack = row < 2
        name = f"wall{source:02d}_{row:04d}_0000.png"
        write(root / ("crack" if crack else "no_crack") / name, patch(4 * source + row, crack, size=32))
    return root


def test_patches_of_one_photograph_stay_in_one_split(train: Train, grouped: Path, tmp_path: Path) -> None:
    def sources(run: Path) -> dict[str, set[str]]:
        data = RunFolder(run).data()
        assert data is not None
        return {name: {Path(path).name[:6] for path in paths} for name, paths in data["split"].items()}

    train(tmp_path / "run", data=grouped, epochs=1, group_by="source")
    parts = sources(tmp_path / "run")
    assert sum(map(len, parts.values())) == 12
    assert not parts["train"] & parts["test"]
    train(tmp_path / "torn", data=grouped, epochs=1)
    assert sum(map(len, sources(tmp_path / "torn").values())) > 12, "without grouping photographs are torn apart"


@pytest.mark.parametrize("options", [{}, {"diff_method": "adjoint"}, {"backend": "pennylane:lightning.qubit"}], ids=str)
def test_pennylane_trains_to_the_same_figures(whole: Path, train: Train, tmp_path: Path, options: dict[str, Any]) -> None:
    result, expected = train(tmp_path / "run", **{"backend": "pennylane:default.qubit", "epochs": 6} | options), RunFolder(whole).result()
    assert expected is not None
    assert result["best_epoch"] == expected["best_epoch"]
    for name in ("val", "test"):
        for key in ("accuracy", "loss", "roc_auc", "f1"):
            assert result[name][key] == pytest.approx(expected[name][key], abs=1e-4)
    for mine, theirs in zip(figures(tmp_path / "run"), figures(whole), strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-4)


def test_sampled_training_repeats_with_its_seed_and_counts_its_work(train: Train, tmp_path: Path) -> None:
    options = {"backend": "aer", "shots": 50, "epochs": 1, "diff_method": "parameter-shift"}
    results = [train(tmp_path / name, **options) for name in ("first", "second")]
    assert results[0] == results[1]
    assert same_tensors(tmp_path / "first", tmp_path / "second")
    assert (results[0]["shots"], results[0]["diff_method"]) == (50, "parameter-shift")
    # 28 images in 7 steps of 17 points each, then val (twice: per epoch and at the end) and test with 6 images
    assert (results[0]["parameter_sets"], results[0]["jobs"]) == (28 * 17 + 3 * 6, 7 + 3)


def test_default_shots_of_a_sampler_are_not_called_exact(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Aer has no exact values: what really ran is recorded, and the card of a bundle says it."""
    result = train(tmp_path / "run", backend="aer", diff_method="spsa", epochs=1)
    assert result["shots"] == 1024
    assert "head on aer, 1024 shots, gradient by spsa" in capsys.readouterr().err
    manifest = _manifest(load_run(tmp_path / "run"))
    assert manifest.training["shots"] == 1024
    assert "head on aer, 1024 shots" in model_card(manifest)


def test_illegal_gradient_method_is_refused_before_anything_is_done(train: Train, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match=r"'backprop' cannot be used on 'aer'"):
        train(tmp_path / "run", backend="aer", diff_method="backprop", data=tmp_path / "nowhere")
    with pytest.raises(CapabilityError, match="on 'aer' with its own number of shots"):  # aer has no exact values
        train(tmp_path / "run", backend="aer", diff_method="adjoint", data=tmp_path / "nowhere")
    with pytest.raises(BackendError, match=r"unknown backend 'moon'"):
        train(tmp_path / "run", backend="moon", data=tmp_path / "nowhere")


def test_corrupt_image_is_left_out_and_reported(
    train: Train, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photographs, tmp_path / "data")
    victim = sorted((tmp_path / "data" / "crack").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:2000])
    result = train(tmp_path / "run", data=tmp_path / "data", epochs=1)
    data = RunFolder(tmp_path / "run").data()
    assert data is not None
    relative = f"crack/{victim.name}"
    assert list(data["unusable"]) == [relative]
    assert "damaged or cut off" in data["unusable"][relative]
    assert relative not in itertools.chain(*data["split"].values())
    assert sum(sum(counts.values()) for counts in data["counts"].values()) == 39
    assert result["test"]["num_images"] + result["val"]["num_images"] <= 12
    assert f"warning: left out {relative}: the image is damaged" in capsys.readouterr().err


def test_class_whose_images_are_all_corrupt_is_an_error(train: Train, photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs, tmp_path / "data")
    for path in (tmp_path / "data" / "crack").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"the train split has no usable image of class 'crack'"):
        train(tmp_path / "run", data=tmp_path / "data")


def test_mixed_formats_and_depths(train: Train, tmp_path: Path) -> None:
    """One photograph in many formats: all are usable, and lossless copies have the same features."""
    from hqtl_common.preprocess import preprocess

    data = tmp_path / "data"
    for index, crack in itertools.product(range(4), (False, True)):
        folder, grey = data / ("crack" if crack else "plain"), patch(index, crack)
        write(folder / "deep" / f"{index}.PNG", grey.astype(np.uint16) * 257)
        write(folder / f"{index}.bmp", grey)
        write(folder / f"{index}.jpg", np.repeat(grey[:, :, None], 3, axis=2), quality=95)
        write(folder / f"{index}.tiff", grey.astype(np.uint16) * 257)
        write(folder / f"{index}.webp", np.dstack([grey] * 3 + [np.full_like(grey, 255)]), lossless=True)
    train(tmp_path / "run", data=data, epochs=1, group_by=r"(\d+)\.\w+$", split="50/25/25")
    record = RunFolder(tmp_path / "run").data()
    assert record is not None
    assert record["unusable"] == {}
    assert sum(sum(counts.values()) for counts in record["counts"].values()) == 40
    reference = preprocess(data / "crack" / "0.bmp")
    for name, tolerance in (("deep/0.PNG", 1e-5), ("0.tiff", 1e-5), ("0.webp", 1e-6), ("0.jpg", 0.3)):
        np.testing.assert_allclose(preprocess(data / "crack" / name), reference, atol=tolerance)


def test_identical_images_across_splits_are_announced(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, crack in itertools.product(range(6), (False, True)):
        write(tmp_path / "data" / ("crack" if crack else "plain") / f"{index}.png", patch(0, crack, size=32))
    train(tmp_path / "run", data=tmp_path / "data", epochs=1, split="34/33/33")
    assert "8 images outside the training split are byte for byte equal to one inside" in capsys.readouterr().err
    record = RunFolder(tmp_path / "run").data()
    assert record is not None
    assert record["leaked"] == 8
    assert "**Leakage: 8 images of the validation and test split" in model_card(_manifest(load_run(tmp_path / "run")))


def test_class_name_that_is_no_text_is_refused_before_training(train: Train, photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs, tmp_path / "data")
    (tmp_path / "data" / "no_crack").rename(tmp_path / "data" / os.fsdecode(b"no_crack\xff"))
    with pytest.raises(InputError, match=r"must be text in UTF-8; rename the folder 'no_crack\\udcff'"):
        train(tmp_path / "run", data=tmp_path / "data")


def test_working_folder_does_not_matter_on_resume(
    whole: Path, photographs: Path, feature_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photographs.parent)
    config = FitConfig.parse({"data": photographs.name, "weights": "none", "epochs": 6})
    open_run(tmp_path / "run", config, resume=False)
    monkeypatch.chdir(tmp_path)
    run, recorded = open_run(Path("run"), None, resume=True)
    fit(recorded, run, feature_cache)
    assert same_tensors(whole, tmp_path / "run")


def test_every_option_is_recorded(whole: Path) -> None:
    recorded = json.loads((whole / "config.json").read_text())
    assert set(recorded) == set(FitConfig.model_fields)
    assert {field.name for field in dataclasses.fields(Checkpoint)} == {"tensors", "progress"}
