"""Grad-CAM: the gradient is that of the whole model, and the heat lies where the cause is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from hqtl_common import HeadSpec, PreprocessSpec
from hqtl_common.errors import ConfigError, InputError
from training.explain import explain
from training.export import Fused
from training.gradcam import feature_gradients, heat_maps, last_feature_map
from training.model import HybridModel, build_model

SPEC = PreprocessSpec(size=32)


class Small(nn.Module):
    """Two convolutions with a layer that works in place behind the second, then averages."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.last = nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.relu_(self.last(torch.relu(self.first(pixels)))).mean((2, 3))


@pytest.fixture(scope="module")
def network() -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> HybridModel:
    model = build_model(6, 3, HeadSpec(num_layers=2), seed=1).eval()
    with torch.no_grad():
        model.head.weights.uniform_(-3, 3, generator=torch.Generator().manual_seed(0))
    return model


def pixels(count: int = 2) -> Tensor:
    return torch.randn(count, *SPEC.pixels_shape, generator=torch.Generator().manual_seed(2))


def test_the_gradient_is_that_of_the_fused_model(network: Small, model: HybridModel) -> None:
    found = feature_gradients(network, model, last_feature_map(network, SPEC), pixels(), target=1)
    maps = network.last(torch.relu(network.first(pixels()))).requires_grad_()
    logits = model(torch.relu(maps).mean((2, 3)))
    (expected,) = torch.autograd.grad(logits[:, 1].sum(), maps)
    torch.testing.assert_close(found.gradients, expected)
    torch.testing.assert_close(found.logits, Fused(network, model)(pixels()).detach())


def test_it_is_the_slope_of_the_logit(network: Small, model: HybridModel) -> None:
    """Central differences through the whole model, by a constant added to one channel of the map: its bias."""
    found = feature_gradients(network, model, "last", pixels(1), target=0)
    step, slopes = 1e-2, []
    for channel in range(6):
        values = []
        for sign in (1, -1):
            moved = Small().requires_grad_(False)
            moved.load_state_dict(network.state_dict())
            assert moved.last.bias is not None
            moved.last.bias[channel] += sign * step
            values.append(Fused(moved, model)(pixels(1))[0, 0].item())
        slopes.append((values[0] - values[1]) / (2 * step))
    np.testing.assert_allclose(found.gradients.sum((2, 3))[0].numpy(), slopes, atol=2e-3)


def test_looking_changes_nothing_and_leaves_nothing_behind(network: Small, model: HybridModel) -> None:
    before = network(pixels())
    feature_gradients(network, model, "last", pixels())
    torch.testing.assert_close(network(pixels()), before)
    assert not any(part._forward_hooks for part in network.modules())
    assert all(parameter.grad is None for parameter in (*network.parameters(), *model.parameters()))


def test_heat_is_the_weighted_sum_of_the_maps_above_zero(network: Small, model: HybridModel) -> None:
    found = feature_gradients(network, model, "last", pixels())
    heat = heat_maps(found, SPEC)
    assert heat.shape == (2, 32, 32)
    weights = found.gradients.mean((2, 3)).numpy()
    expected = np.maximum(np.einsum("bk,bkyx->byx", weights, found.activations.numpy()), 0)
    for each, wanted in zip(heat.numpy(), expected, strict=True):
        if wanted.max() > 0:
            assert each.max() == pytest.approx(1)
            assert np.corrcoef(each[2::4, 2::4].ravel(), wanted.ravel())[0, 1] > 0.9
        else:
            assert not each.any()


def test_a_network_without_a_map_is_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(ConfigError, match="no feature map"):
        last_feature_map(flat, SPEC)


def test_heat_lies_on_the_crack(finished_run: Path, photographs: Path, tmp_path: Path) -> None:
    """Wide dark cracks: the heat that speaks for them is denser on dark pixels than elsewhere, over all cracked images."""
    done, errors = explain(finished_run, [photographs / "crack"], tmp_path / "why", target="crack")
    assert len(done) == 20
    assert not errors
    shares, chances = [], []
    for each in done:
        grey = np.asarray(Image.open(each.path).convert("L"), dtype=np.float64)
        rows, columns = np.nonzero(grey < 60)
        box = np.zeros(grey.shape, dtype=bool)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        if each.heat.any() and box.mean() < 0.8:
            shares.append(each.heat[box].sum() / each.heat.sum())
            chances.append(box.mean())
        with Image.open(each.picture) as picture:
            assert picture.size[0] > 2 * picture.size[1]
    assert len(shares) >= 5
    assert np.mean(shares) > np.mean(chances)


def test_a_bundle_is_explained_as_its_run(finished_run: Path, exported_bundle: Path, photographs: Path, tmp_path: Path) -> None:
    images = sorted((photographs / "crack").iterdir())[:1]
    (by_run,), _ = explain(finished_run, images, tmp_path / "run", target="crack")
    (by_bundle,), _ = explain(exported_bundle, images, tmp_path / "bundle", target="crack")
    np.testing.assert_allclose(by_bundle.heat, by_run.heat, atol=1e-3)
    np.testing.assert_allclose(by_bundle.expvals, by_run.expvals, atol=1e-4)


def test_a_map_without_heat_is_called_so(finished_run: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr("training.explain.heat_maps", lambda found, spec: torch.zeros(1, spec.size, spec.size))
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: titles.extend(axes.get_title() for axes in figure.axes))
    explain(finished_run, [next((photographs / "crack").iterdir())], tmp_path / "why", target="crack")
    assert "nothing on the map speaks for crack" in titles


def test_what_cannot_be_explained_is_said(finished_run: Path, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    done, errors = explain(finished_run, [tmp_path / "broken.png"], tmp_path / "out")
    assert (done, list(errors)) == ([], [tmp_path / "broken.png"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for says, kind, arguments in (
        ("exists already", ConfigError, ([photographs], tmp_path / "full", None)),
        ("no class 'dog'", ConfigError, ([photographs], tmp_path / "new", "dog")),
        ("there is no image", InputError, ([tmp_path / "full"], tmp_path / "new", None)),
    ):
        with pytest.raises(kind, match=says):
            explain(finished_run, arguments[0], arguments[1], target=arguments[2])
