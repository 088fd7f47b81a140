"""The frozen feature extractors: what they are, where their weights come from, and what is refused."""

from __future__ import annotations

import hashlib
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from hqtl_common.errors import ConfigError, HqtlError, InputError
from training.backbones import load_backbone, state_digest

IMAGENET_FILE = "resnet18-f37072fd.pth"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A state dict of torchvision's ResNet18 with values that no seed of ours gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        network = models.resnet18(weights=None)
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer += torch.rand_like(buffer)
    return dict(network.state_dict())


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty TORCH_HOME, and a download that fails at once; the folder of checkpoints."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("the network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    folder = tmp_path / "torch-home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_resnet18_is_frozen_and_in_eval_mode() -> None:
    backbone = load_backbone("resnet18", "none")
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())
    assert not any(module.training for module in backbone.network.modules())
    assert (backbone.name, backbone.weights, backbone.feature_width) == ("resnet18", "none", 512)
    assert backbone.digest == state_digest(backbone.network)
    with torch.no_grad():
        features = backbone.network(torch.randn(2, 3, 224, 224))
    assert features.shape == (2, 512)
    assert features.dtype == torch.float32
    assert state_digest(backbone.network) == backbone.digest, "a forward pass changed a buffer"


def test_vgg16_has_features_of_its_width() -> None:
    backbone = load_backbone("vgg16", "none")
    with torch.no_grad():
        assert backbone.network(torch.randn(1, 3, 224, 224)).shape == (1, 4096)
    assert backbone.feature_width == 4096
    assert not any(module.training for module in backbone.network.modules()), "dropout must be off"


def test_random_weights_follow_the_seed_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = load_backbone("resnet18", "none", seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert load_backbone("resnet18", "none", seed=1).digest == first.digest
    assert load_backbone("resnet18", "none", seed=2).digest != first.digest


def test_digest_is_over_names_and_values() -> None:
    network = torch.nn.BatchNorm1d(2)
    before = state_digest(network)
    named = torch.nn.Sequential(network)
    assert state_digest(named) != before
    assert network.running_mean is not None
    network.running_mean[1] = 1e-30
    assert state_digest(network) != before
    parts = [key.encode() + b"\0" + value.numpy().tobytes() for key, value in sorted(network.state_dict().items())]
    assert state_digest(network) == hashlib.sha256(b"".join(parts)).hexdigest()


def save_pth(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)


def save_legacy(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_nested(state: dict[str, Any], path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": state}, path)


def save_headless(state: dict[str, Any], path: Path) -> None:
    torch.save({key: value for key, value in state.items() if not key.startswith("fc.") and "num_batches" not in key}, path)


def save_other_classes(state: dict[str, Any], path: Path) -> None:
    torch.save({**state, "fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}, path)


def save_safetensors(state: dict[str, Any], path: Path) -> None:
    save_file(state, path)


@pytest.mark.parametrize(
    ("save", "suffix"),
    [
        (save_pth, "pth"),
        (save_legacy, "pth"),
        (save_nested, "tar"),
        (save_headless, "pth"),
        (save_other_classes, "pt"),
        (save_safetensors, "safetensors"),
    ],
)
def test_weights_from_a_file(state: dict[str, torch.Tensor], tmp_path: Path, save: Callable[..., None], suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    save(state, path)
    backbone = load_backbone("resnet18", str(path))
    reference = models.resnet18(weights=None)
    reference.load_state_dict(state)
    reference.fc = torch.nn.Identity()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        np.testing.assert_array_equal(backbone.network(pixels).numpy(), reference.eval()(pixels).numpy())
    assert backbone.weights == "custom"


def bad_files(state: dict[str, torch.Tensor], folder: Path, bomb: Path) -> dict[str, str]:
    """File name → what the message must say."""
    save_pth(state, folder / "cut.pth")
    (folder / "cut.pth").write_bytes((folder / "cut.pth").read_bytes()[:100_000])
    save_safetensors(state, folder / "cut.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "cut.safetensors").read_bytes()[:100_000])
    (folder / "text.pth").write_text("not weights")
    (folder / "empty.pth").write_bytes(b"")
    torch.save([1, 2], folder / "list.pth")
    torch.save({"conv1.weight": 3}, folder / "number.pth")
    torch.save({0: torch.zeros(1)}, folder / "integer-key.pth")
    torch.save(models.resnet18(weights=None).layer1, folder / "module.pth")
    torch.save({**state, "conv1.weight": Bomb(bomb)}, folder / "bomb.pth")
    (folder / "plain-pickle.pth").write_bytes(pickle.dumps(Bomb(bomb)))
    (folder / "disguised.safetensors").write_bytes(pickle.dumps(Bomb(bomb)))
    return dict.fromkeys(sorted(path.name for path in folder.iterdir()), "state dict of tensors")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_hold_no_weights_are_refused_and_never_executed(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder, bomb = tmp_path / "files", tmp_path / "exploded"
    folder.mkdir()
    for name, says in bad_files(state, folder, bomb).items():
        with pytest.raises(InputError, match=says) as caught:
            load_backbone("resnet18", str(folder / name))
        assert name in str(caught.value)
        assert not bomb.exists(), f"{name} ran code"


def test_weights_of_another_architecture_are_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    files = {
        "vgg.pth": ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, r"missing .*unexpected \['features\.0\.weight'\]"),
        "resnet34.pth": ({**state, "layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}, r"unexpected \['layer1\.2\.conv1\.weight'\]"),
        "part.pth": ({key: value for key, value in state.items() if key != "bn1.bias"}, r"missing \['bn1\.bias'\]"),
        "wide.pth": ({**state, "conv1.weight": torch.zeros(128, 3, 7, 7)}, "size mismatch for conv1.weight"),
        "parallel.pth": ({f"module.{key}": value for key, value in state.items()}, r"unexpected \['module\.conv1\.weight'"),
        "nan.pth": ({**state, "conv1.weight": state["conv1.weight"] * float("nan")}, r"not finite numbers in conv1\.weight"),
    }
    for name, (values, says) in files.items():
        save_pth(values, tmp_path / name)
        with pytest.raises(ConfigError, match=says) as caught:
            load_backbone("resnet18", str(tmp_path / name))
        assert name in str(caught.value)
        assert "resnet18" in str(caught.value)


@pytest.mark.parametrize("weights", ["nowhere.pth", "."])
def test_missing_file_names_the_choices(weights: str) -> None:
    with pytest.raises(ConfigError, match=f"imagenet, none or the path .* no file '{weights}'"):
        load_backbone("resnet18", weights)


def test_unknown_backbone() -> None:
    with pytest.raises(ConfigError, match=r"unknown backbone 'resnet19'; did you mean resnet18, .*resnet50"):
        load_backbone("resnet19", "none")
    with pytest.raises(ConfigError, match="hqtl-train backbones lists the names"):
        load_backbone("zzz", "none")


def test_missing_imagenet_weights_name_file_folder_and_options(no_network: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_backbone("resnet18")
    for part in (IMAGENET_FILE, str(no_network), "the network is unreachable", "TORCH_HOME", "--weights PATH", "--weights none"):
        assert part in str(caught.value)


def test_imagenet_weights_are_found_under_torch_home(no_network: Path, state: dict[str, torch.Tensor]) -> None:
    save_pth(state, no_network / IMAGENET_FILE)
    backbone = load_backbone("resnet18")
    assert backbone.weights == "imagenet"
    assert torch.equal(backbone.network.state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_imagenet_weights_are_refused_and_never_executed(no_network: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder, bomb = tmp_path / "files", tmp_path / "exploded"
    folder.mkdir()
    for name in bad_files(state, folder, bomb):
        (no_network / IMAGENET_FILE).write_bytes((folder / name).read_bytes())
        with pytest.raises(HqtlError) as caught:
            load_backbone("resnet18")
        assert isinstance(caught.value, ConfigError), name
        assert str(no_network / IMAGENET_FILE) in str(caught.value), name
        assert "damaged" in str(caught.value), name
        assert not bomb.exists(), f"{name} ran code"
