"""A bundle → the same model in torch: the values of its files in torch's own architecture."""

from __future__ import annotations

import torch
from torch import nn

from hqtl_common.bundle import ModelBundle
from hqtl_common.errors import ConfigError, ParityError
from training.architectures import build_network, cut_last_layer
from training.model import HybridModel
from training.onnx_export import fold_batch_norm, load_initializers
from training.statevector import StatevectorHead

__all__ = ["rebuild_model"]


def rebuild_model(bundle: ModelBundle) -> tuple[nn.Module, HybridModel]:
    """The bundle's backbone, and its model with the exact head, both in eval mode.

    Raises:
        ParityError: torchvision has no network of the name in the manifest, or the values are those of another one.
    """
    info, spec = bundle.manifest.backbone, bundle.preprocess
    try:
        with torch.random.fork_rng(devices=[]):
            network = cut_last_layer(build_network(info.name, spec), info.name, spec)
    except ConfigError as error:
        raise ParityError(f"the bundle's backbone {info.name!r} cannot be computed by torch here: {error}") from error
    backbone = load_initializers(fold_batch_norm(network), bundle.backbone_fp32)
    head = StatevectorHead(bundle.head, torch.from_numpy(bundle.weights.copy()))
    model = HybridModel(info.feature_width, len(bundle.labels), head)
    load_initializers(model.pre_net, bundle.read("pre_net.onnx"))
    load_initializers(model.post_net, bundle.read("post_net.onnx"))
    return backbone.eval(), model.eval()
