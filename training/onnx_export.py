"""torch modules ↔ ONNX bytes: one file, dynamic batch, no traces of the machine that wrote it."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.fx.experimental.optimization import fuse

from hqtl_common.errors import ParityError

__all__ = ["OPSET", "fold_batch_norm", "load_initializers", "to_onnx"]

OPSET = 20


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch normalisations are folded into the convolutions right before them, as far as torch can."""
    plain = copy.deepcopy(network).eval().requires_grad_(False)
    for part in plain.modules():
        for kind in (nn.Conv2d, nn.Conv3d):
            if isinstance(part, kind) and type(part).forward is kind.forward:
                part.__class__ = kind  # torch folds no subclass, though these add nothing
    folded: nn.Module = fuse(plain, inplace=True)
    return folded.requires_grad_(False)


def to_onnx(module: nn.Module, example: torch.Tensor, input_name: str, output_name: str, *, keep_names: bool = False) -> bytes:
    """Export a module of one input (B, …) and one output (B, …); the same module gives the same bytes.

    Args:
        module: In eval mode.
        example: An input with B ≥ 2.
        input_name: Name of the input in the graph.
        output_name: Name of the output in the graph.
        keep_names: Keep every weight under its name in the module, for :func:`load_initializers`; without it the exporter may
            merge equal weights and compute with constant ones ahead.
    """
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            external_data=False,
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            optimize=not keep_names,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def load_initializers(module: nn.Module, data: bytes) -> nn.Module:
    """Copy the weights of an ONNX file into a module with the same parameter names, and return it.

    The exporter drops a bias that is zero; it is zero in the module then.

    Raises:
        ParityError: A weight is absent or has another shape.
    """
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_model_from_string(data).graph.initializer}
    state = {}
    for key, value in module.state_dict().items():
        if key in found and found[key].shape == tuple(value.shape):
            state[key] = torch.from_numpy(found[key].copy())
        elif key.endswith("num_batches_tracked"):
            state[key] = value  # counts training steps; no answer depends on it
        elif key not in found and key.endswith("bias"):
            state[key] = torch.zeros_like(value)
        else:
            raise ParityError(f"the ONNX file holds no weight {key} of shape {tuple(value.shape)}: it is another architecture")
    module.load_state_dict(state)
    return module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress on standard output, which belongs to results, and warns about itself."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
