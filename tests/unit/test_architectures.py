"""Any torchvision classifier as a backbone: what is cut off, how wide its features are, and the same numbers from its ONNX file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from hqtl_common import PreprocessSpec
from hqtl_common.errors import ConfigError
from hqtl_common.stages import Stage
from training.architectures import build_network, cut_last_layer, default_spec, describe_backbones, known_backbones, last_layer
from training.backbones import load_backbone, state_digest
from training.onnx_export import fold_batch_norm, load_initializers, to_onnx


def small(name: str, size: int = 64) -> PreprocessSpec:
    spec = default_spec(name)
    return dataclasses.replace(spec, size=size, depth=spec.depth and (16 if size > 64 else 8))


def check_through_onnx(name: str, spec: PreprocessSpec, width: int) -> None:
    """Built, run, exported with a batch of any size, and read back into another network of the same architecture."""
    backbone = load_backbone(name, "none", 1, spec)
    assert backbone.feature_width == width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pixels = torch.randn(4, *spec.pixels_shape)
        for part in backbone.network.modules():  # statistics of its own inputs, so that random features neither vanish nor explode
            if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
                part.momentum = 1.0
        with torch.no_grad():
            backbone.network.train()(pixels)
        backbone.network.eval()
    data = to_onnx(fold_batch_norm(backbone.network), pixels[:2], "pixels", "features", keep_names=True)
    stage = Stage(data, name, threads=1)
    with torch.no_grad():
        expected = backbone.network(pixels).numpy()
    scale = np.abs(expected).max()
    assert expected.shape == (4, width)
    assert scale > 1e-2
    for count in (1, 4):
        np.testing.assert_allclose(stage(pixels[:count].numpy()), expected[:count], atol=1e-3 * scale)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        other = fold_batch_norm(cut_last_layer(build_network(name, spec), name, spec))
    with torch.no_grad():
        np.testing.assert_allclose(load_initializers(other, data)(pixels).numpy(), expected, atol=1e-3 * scale)


def test_squeezenet_through_onnx() -> None:
    check_through_onnx("squeezenet1_1", small("squeezenet1_1"), 512)


def test_mobilenet_through_onnx() -> None:
    check_through_onnx("mobilenet_v3_small", small("mobilenet_v3_small"), 1024)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "size"),
    [
        ("alexnet", 4096, 64),
        ("convnext_tiny", 768, 64),
        ("densenet121", 1024, 64),
        ("efficientnet_b0", 1280, 64),
        ("efficientnet_v2_s", 1280, 64),
        ("googlenet", 1024, 64),
        ("inception_v3", 2048, 96),
        ("maxvit_t", 512, 224),
        ("mnasnet0_5", 1280, 64),
        ("mobilenet_v2", 1280, 64),
        ("mobilenet_v3_large:pooled", 960, 64),
        ("regnet_x_400mf", 400, 64),
        ("regnet_y_400mf", 440, 64),
        ("resnet50", 2048, 64),
        ("resnext50_32x4d", 2048, 64),
        ("shufflenet_v2_x0_5", 1024, 64),
        ("swin_t", 768, 64),
        ("swin_v2_t", 768, 64),
        ("vgg11_bn", 4096, 64),
        ("vgg16:pooled", 512, 64),
        ("vit_b_16", 768, 64),
        ("wide_resnet50_2", 2048, 64),
        ("mc3_18", 512, 32),
        ("r2plus1d_18", 512, 32),
        ("r3d_18", 512, 32),
        ("s3d", 1024, 224),
    ],
)
def test_every_family_through_onnx(name: str, width: int, size: int) -> None:
    check_through_onnx(name, small(name, size), width)


def test_every_name_of_torchvision_is_known_with_size_and_normalisation() -> None:
    assert set(models.list_models(module=models)) < set(known_backbones())
    described = {each["name"]: each for each in describe_backbones()}
    assert described.keys() == set(known_backbones())
    assert described["inception_v3"]["size"] == 299
    assert described["resnet18"]["parameters"] == sum(value.numel() for value in models.resnet18().parameters())
    assert default_spec("resnet18") == PreprocessSpec()
    assert default_spec("efficientnet_v2_l").mean == (0.5, 0.5, 0.5)
    assert default_spec("r3d_18").pixels_shape == (3, 16, 112, 112)
    assert default_spec("r3d_18", 32, 8).pixels_shape == (3, 8, 32, 32)


def test_weights_that_lie_where_torch_looks_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").touch()
    assert [each["name"] for each in describe_backbones() if each["found"]] == ["resnet18"]


def test_what_is_cut_off_is_the_last_layer_that_runs() -> None:
    expected = {"resnet18": "fc", "squeezenet1_1": "classifier.1", "mobilenet_v3_small": "classifier.3"}
    for name, layer in expected.items():
        assert last_layer(build_network(name, small(name)), small(name)) == layer


def test_pooled_vgg_averages_the_last_map() -> None:
    backbone = load_backbone("vgg11:pooled", "none", 0, small("vgg11"))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone.network(pixels), backbone.network.features(pixels).mean((2, 3)))
    assert backbone.feature_width == 512


@pytest.mark.parametrize(
    ("name", "size", "depth", "says"),
    [
        ("resnet18", None, 8, "a depth needs a network for volumes"),
        ("resnet18:pooled", 64, None, "averages over positions already"),
        ("resnet18:wide", None, None, "unknown variant 'wide' of resnet18; the only one is resnet18:pooled"),
        ("resnet18:", None, None, "unknown variant"),
        ("ResNet-18", None, None, "did you mean .*resnet18"),
        ("fcn_resnet50", None, None, "unknown backbone"),
        ("vit_b_16", 100, None, "vit_b_16 cannot take images of 100 × 100 pixels"),
        ("alexnet", 16, None, r"does not run on pixels of the shape \(3, 16, 16\)"),
    ],
)
def test_what_cannot_be_is_refused(name: str, size: int | None, depth: int | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_backbone(name, "none", 0, default_spec(name, size, depth))


def test_finding_the_layer_computes_nothing_and_changes_nothing() -> None:
    network = build_network("resnet18", PreprocessSpec())
    before, generator = state_digest(network), torch.get_rng_state()
    last_layer(network, PreprocessSpec())
    assert state_digest(network) == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(part._forward_hooks for part in network.modules())


def test_published_squeezenet_gives_torchvisions_features(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(shared_data / "torch-home"))
    if not next(each for each in describe_backbones() if each["name"] == "squeezenet1_1")["found"]:
        pytest.skip("needs the published weights of squeezenet1_1")
    backbone = load_backbone("squeezenet1_1")
    whole = models.squeezenet1_1(weights=models.SqueezeNet1_1_Weights.DEFAULT).eval()
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(backbone.network(pixels), whole.features(pixels).mean((2, 3)))
    assert (backbone.weights, backbone.feature_width) == ("imagenet", 512)
