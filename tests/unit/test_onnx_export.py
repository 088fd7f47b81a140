"""torch → ONNX: one file that says nothing about the machine, the same bytes each time, any batch, and back again."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from hqtl_common import HeadSpec
from hqtl_common.errors import ParityError
from hqtl_common.stages import Stage
from training.model import PreNet, build_model
from training.onnx_export import OPSET, fold_batch_norm, load_initializers, to_onnx


def random_net(seed: int = 0) -> nn.Module:
    """Convolutions with and without bias before batch normalisations with statistics of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 5, 3, bias=False),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3),
            nn.BatchNorm2d(4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 2)
                nn.init.normal_(part.weight)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folded() -> nn.Module:
    return fold_batch_norm(random_net())


@pytest.fixture(scope="module")
def exported(folded: nn.Module) -> bytes:
    return to_onnx(folded, torch.zeros(2, 3, 16, 16), "pixels", "features")


def test_folding_changes_the_shape_of_the_network_but_not_its_values(folded: nn.Module) -> None:
    net, pixels = random_net(), torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    torch.testing.assert_close(folded(pixels), net(pixels), atol=1e-5, rtol=1e-5)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fold_batch_norm(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "the original was changed"


def test_it_is_one_legal_file_without_external_data(exported: bytes, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(exported)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data or tensor.data_location for tensor in model.graph.initializer)
    assert {(opset.domain, opset.version) for opset in model.opset_import} >= {("", OPSET)}
    assert [value.name for value in model.graph.input] == ["pixels"]
    assert [value.name for value in model.graph.output] == ["features"]


def test_it_says_nothing_about_the_machine_that_wrote_it(exported: bytes) -> None:
    for word in (str(Path(__file__).parent), sys.prefix, "site-packages", "onnx_export.py", "pkg.torch", "nn_module_stack"):
        assert word.encode() not in exported
    model = onnx.load_model_from_string(exported)
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info, *model.functions):
        assert not part.metadata_props
        assert not part.doc_string


def test_same_module_gives_the_same_bytes(folded: nn.Module, exported: bytes) -> None:
    assert to_onnx(fold_batch_norm(random_net()), torch.ones(4, 3, 16, 16), "pixels", "features") == exported
    assert to_onnx(fold_batch_norm(random_net(seed=1)), torch.zeros(2, 3, 16, 16), "pixels", "features") != exported


@pytest.mark.parametrize("count", [1, 2, 5, 33])
def test_any_batch_size_gives_torchs_values(folded: nn.Module, exported: bytes, count: int) -> None:
    pixels = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
    features = Stage(exported, "net", threads=1)(pixels.numpy())
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, folded(pixels).numpy(), atol=1e-5)


def test_hybrid_model_in_one_graph_keeps_double_precision_of_the_head() -> None:
    model = build_model(6, 3, HeadSpec(num_layers=2), seed=4).eval()
    with torch.no_grad():
        model.head.weights.uniform_(-3, 3, generator=torch.Generator().manual_seed(0))
    stage = Stage(to_onnx(model, torch.zeros(2, 6), "features", "logits"), "model", threads=1)
    features = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(features).numpy()
    logits = stage(features.numpy())
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, atol=1e-7)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output belongs to --json, and releases of the exporter differ in what they print there."""
    export = torch.onnx.export

    def chatty(*args: Any, **options: Any) -> Any:
        print("[torch.onnx] here I am")
        warnings.warn("I am new", stacklevel=1)
        return export(*args, **options)

    monkeypatch.setattr(torch.onnx, "export", chatty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(PreNet(5, HeadSpec()), torch.zeros(2, 5), "features", "angles")
    assert capfd.readouterr() == ("", "")


def test_weights_come_back(folded: nn.Module, exported: bytes) -> None:
    twin = load_initializers(fold_batch_norm(random_net(seed=9)), exported)
    assert all(torch.equal(value, folded.state_dict()[key]) for key, value in twin.state_dict().items())
    pre = PreNet(5, HeadSpec())
    data = to_onnx(pre, torch.zeros(2, 5), "features", "angles")
    assert torch.equal(load_initializers(PreNet(5, HeadSpec()), data).linear.weight, pre.linear.weight)


def test_a_bias_of_zeros_comes_back() -> None:
    """The exporter leaves it out; a module with another bias must get the zeros all the same."""
    pre = PreNet(5, HeadSpec())
    nn.init.zeros_(pre.linear.bias)
    twin = PreNet(5, HeadSpec())
    nn.init.ones_(twin.linear.bias)
    load_initializers(twin, to_onnx(pre, torch.zeros(2, 5), "features", "angles"))
    features = torch.randn(3, 5)
    assert torch.equal(twin(features), pre(features))


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(5, 4)

    def forward(self, features: Tensor) -> Tensor:
        return self.other(features)


@pytest.mark.parametrize(
    ("module", "name"),
    [(PreNet(5, HeadSpec(num_qubits=3)), "linear.weight"), (PreNet(6, HeadSpec()), "linear.weight"), (Renamed(), "other.weight")],
)
def test_another_architecture_is_refused(module: nn.Module, name: str) -> None:
    data = to_onnx(PreNet(5, HeadSpec()), torch.zeros(2, 5), "features", "angles")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ParityError, match=rf"no weight {name} of shape .*another architecture"):
        load_initializers(module, data)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_changed_weight_is_what_comes_back() -> None:
    """load_initializers reads the file: numbers changed there are in the module, so a comparison with the rest can fail."""
    pre = PreNet(5, HeadSpec())
    model = onnx.load_model_from_string(to_onnx(pre, torch.zeros(2, 5), "features", "angles"))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "linear.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 1, weight.name))
    assert torch.equal(load_initializers(PreNet(5, HeadSpec()), model.SerializeToString()).linear.weight, pre.linear.weight + 1)
