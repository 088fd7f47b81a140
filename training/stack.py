"""Several trainings as one batched program: their parameters stacked along a leading axis S, one entry per run.

A tensor of a stack is that of a single model with S in front, under the same name, so one entry of a stack is the state of a
model. A single training is a stack of one.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.head import Head
from training.model import HybridModel
from training.twins import TWINS, make_twins

__all__ = ["CONTENDERS", "Lineup", "StackedAdam", "StackedLinear", "State", "make_lineup"]

State = dict[str, Tensor]

CONTENDERS = ("hybrid", *TWINS)

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class StackedLinear(nn.Module):
    """S linear maps side by side: (S, B, F) → (S, B, O).

    Args:
        linears: S maps of equal shape, whose values are taken.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([linear.weight.detach() for linear in linears]))
        self.bias = nn.Parameter(torch.stack([linear.bias.detach() for linear in linears]))

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class."""
        return torch.baddbmm(self.bias[:, None], inputs, self.weight.transpose(1, 2))


class Lineup(nn.Module):
    """The hybrid models of S runs and their twins, each stacked: features (S, B, F) → logits (M, S, B, C) float64.

    The M contenders stand in the order of :data:`CONTENDERS`.

    Args:
        contenders: By name.
    """

    def __init__(self, contenders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.contenders = nn.ModuleDict(contenders)

    @property
    def head(self) -> Head:
        """The circuit of all runs."""
        head = self.contenders["hybrid"].head
        assert isinstance(head, Head)
        return head

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return torch.stack([self.contenders[name](features) for name in CONTENDERS])

    def state_of(self, name: str, entry: int) -> State:
        """A copy of the values of one contender of one run, named as in a single model."""
        return {key: value[entry].clone() for key, value in self.contenders[name].state_dict().items()}

    def load(self, states: Sequence[Mapping[str, State]]) -> None:
        """Take the values of these runs, by contender, and be a stack of as many.

        Raises:
            ValueError: Names or shapes that do not fit.
        """
        for name, module in self.contenders.items():
            for key, parameter in module.named_parameters():
                values = [state[name][key] for state in states if state[name].keys() == module.state_dict().keys()]
                if len(values) != len(states) or any(value.shape != parameter.shape[1:] for value in values):
                    raise ValueError(f"{name}.{key} does not fit")
                parameter.data = torch.stack(values).to(parameter.dtype)
                parameter.grad = None


class StackedAdam:
    """Adam (Kingma and Ba 2015) with an L2 penalty, as :class:`torch.optim.Adam` computes it, and a step of its own per run.

    Parameters of one dtype lie in one buffer, so that a step is a few operations whatever their number.

    Args:
        module: All its parameters have the leading axis S.
        lrs: S step sizes.
        weight_decay: Factor of the L2 penalty.
    """

    def __init__(self, module: nn.Module, lrs: Sequence[float], weight_decay: float) -> None:
        self.steps = 0
        self._lrs = torch.tensor(lrs, dtype=torch.float64)
        self._weight_decay = weight_decay
        self._parameters: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in module.parameters():
            self._parameters.setdefault(parameter.dtype, []).append(parameter)
        self._values = {dtype: torch.cat([p.detach().flatten(1) for p in group], 1) for dtype, group in self._parameters.items()}
        self._moments = {dtype: (torch.zeros_like(values), torch.zeros_like(values)) for dtype, values in self._values.items()}
        self._bind()

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients, which are used up."""
        self.steps += 1
        correction1, correction2 = 1 - _BETA1**self.steps, 1 - _BETA2**self.steps
        for dtype, group in self._parameters.items():
            values, (mean, square) = self._values[dtype], self._moments[dtype]
            gradient = torch.cat([_gradient(parameter).flatten(1) for parameter in group], 1)
            gradient.add_(values, alpha=self._weight_decay)
            mean.lerp_(gradient, 1 - _BETA1)
            square.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
            scale = square.sqrt().div_(correction2**0.5).add_(_EPSILON)
            values.sub_(torch.div(mean, scale).mul_((self._lrs / correction1).to(dtype)[:, None]))
            for parameter in group:
                parameter.grad = None

    def select(self, entries: Sequence[int]) -> None:
        """Go on with these entries of the stack only."""
        kept = torch.tensor(entries)
        self._lrs = self._lrs[kept]
        self._values = {dtype: values[kept] for dtype, values in self._values.items()}
        self._moments = {dtype: (mean[kept], square[kept]) for dtype, (mean, square) in self._moments.items()}
        self._bind()

    def state_of(self, entry: int) -> State:
        """A copy of the moments of one run."""
        return {
            f"{_name(dtype)}.{moment}": value[entry].clone()
            for dtype, moments in self._moments.items()
            for moment, value in zip(("mean", "square"), moments, strict=True)
        }

    def load(self, states: Sequence[State], steps: int) -> None:
        """Go on from the moments of these runs.

        Raises:
            KeyError: A moment is missing.
            ValueError: A shape that does not fit.
        """
        for dtype, moments in self._moments.items():
            for moment, value in zip(("mean", "square"), moments, strict=True):
                found = torch.stack([state[f"{_name(dtype)}.{moment}"] for state in states])
                if found.shape != value.shape:
                    raise ValueError(f"the {moment} of {_name(dtype)} does not fit")
                value.copy_(found)
        self.steps = steps

    def _bind(self) -> None:
        """Let the parameters be views of the buffers."""
        for dtype, group in self._parameters.items():
            ends = list(itertools.accumulate(parameter[0].numel() for parameter in group))
            for parameter, part in zip(group, torch.tensor_split(self._values[dtype], ends[:-1], 1), strict=True):
                parameter.data = part.view(len(part), *parameter.shape[1:])
                parameter.grad = None


def make_lineup(models: Sequence[HybridModel], head: Head, seeds: Sequence[int]) -> Lineup:
    """Stack freshly built models and their twins.

    Args:
        models: S models.
        head: The circuit of all, with weights (S, L, n).
        seeds: S seeds of the twins' own values.
    """
    twins = [make_twins(model, seed) for model, seed in zip(models, seeds, strict=True)]
    hybrid = _stacked(models)
    hybrid.head = head
    return Lineup({"hybrid": hybrid, **{name: _stacked([each[name] for each in twins]) for name in TWINS}})


def _stacked(modules: Sequence[nn.Module]) -> nn.Module:
    """The first module with every linear map replaced by those of all."""
    together = copy.deepcopy(modules[0])
    for name, part in modules[0].named_modules():
        if isinstance(part, nn.Linear):
            linears = [module.get_submodule(name) for module in modules]
            together.set_submodule(name, StackedLinear([linear for linear in linears if isinstance(linear, nn.Linear)]))
    return together


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
