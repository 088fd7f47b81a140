"""Stacked models against single ones and torch's own optimiser: entry by entry the same numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hqtl_common import HeadSpec
from training.config import FitConfig
from training.head import make_head
from training.model import HybridModel, build_model
from training.runs import RunFolder
from training.stack import CONTENDERS, Lineup, StackedAdam, StackedLinear, make_lineup
from training.trainer import Trainer, TrainingData
from training.twins import make_twins

FEATURES, CLASSES = 7, 3


def models(count: int, spec: HeadSpec | None = None) -> list[HybridModel]:
    return [build_model(FEATURES, CLASSES, spec or HeadSpec(), seed=seed) for seed in range(count)]


def lineup(singles: list[HybridModel]) -> Lineup:
    spec = singles[0].head.spec
    head = make_head(spec, torch.stack([model.head.weights.detach() for model in singles]))
    return make_lineup(singles, head, range(len(singles)))


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, FEATURES, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "spec",
    [HeadSpec(), HeadSpec(num_qubits=3, embedding="reuploading", entangler="circular", num_layers=2), HeadSpec(2, "amplitude")],
    ids=lambda spec: spec.embedding,
)
def test_each_entry_answers_as_the_single_model(spec: HeadSpec) -> None:
    singles = models(4, spec)
    data = features(4, 5)
    logits = lineup(singles)(data)
    assert logits.shape == (len(CONTENDERS), 4, 5, CLASSES)
    for entry, model in enumerate(singles):
        alone = {"hybrid": model, **make_twins(model, entry)}
        for name, answer in zip(CONTENDERS, logits[:, entry], strict=True):
            torch.testing.assert_close(answer, alone[name](data[entry]), rtol=1e-5, atol=1e-5)


def test_states_are_those_of_single_models_and_load_back() -> None:
    singles = models(3)
    stack = lineup(singles)
    for entry, model in enumerate(singles):
        state = stack.state_of("hybrid", entry)
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    data = features(3, 2)
    before = stack(data)
    states = [{name: stack.state_of(name, entry) for name in CONTENDERS} for entry in (2, 0)]
    stack.load(states)
    torch.testing.assert_close(stack(data[[2, 0]]), before[:, [2, 0]])
    states[0]["linear"]["outer.bias"] = torch.zeros(CLASSES + 1)
    with pytest.raises(ValueError, match=r"linear\.outer\.\w+ does not fit"):
        stack.load(states)


def test_a_state_is_a_copy() -> None:
    stack = lineup(models(1))
    state = stack.state_of("linear", 0)
    with torch.no_grad():
        stack.contenders["linear"].outer.weight.add_(1)  # type: ignore[union-attr,operator]
    assert not torch.equal(state["outer.weight"], stack.state_of("linear", 0)["outer.weight"])


def test_the_bottleneck_starts_where_the_hybrid_does() -> None:
    model, other = models(2)
    twins = make_twins(model, 0)
    assert torch.equal(twins["bottleneck"].inner.weight, model.pre_net.linear.weight)  # type: ignore[union-attr,arg-type]
    assert torch.equal(twins["bottleneck"].outer.bias, model.post_net.bias)  # type: ignore[union-attr,arg-type]
    assert not torch.equal(twins["linear"].outer.weight, make_twins(other, 1)["linear"].outer.weight)  # type: ignore[union-attr,arg-type]
    again = make_twins(model, 0)
    for name, twin in twins.items():
        assert all(torch.equal(value, again[name].state_dict()[key]) for key, value in twin.state_dict().items())
    wide = build_model(FEATURES, CLASSES, HeadSpec(3, "amplitude"))
    assert wide.pre_net.linear.out_features == 8
    assert make_twins(wide, 0)["bottleneck"].inner.out_features == 3  # type: ignore[union-attr]


class Toy(nn.Module):
    """Parameters of two types, one of them no linear map."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.narrow = nn.Parameter(torch.randn(2, 3, generator=generator))
        self.wide = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))

    def loss(self) -> Tensor:
        return self.narrow.sin().sum(dim=(-2, -1)).double() + (self.wide**4).sum(-1) * 1e-3


@settings(max_examples=20)
@given(
    lrs=st.lists(st.floats(1e-5, 1.0), min_size=1, max_size=4),
    weight_decay=st.sampled_from([0.0, 2e-3, 0.3]),
    steps=st.integers(1, 12),
    kept=st.data(),
)
def test_adam_is_that_of_torch_with_a_step_per_run(lrs: list[float], weight_decay: float, steps: int, kept: st.DataObject) -> None:
    singles = [Toy(seed) for seed in range(len(lrs))]
    stack = copy.deepcopy(singles[0])
    stack.narrow.data, stack.wide.data = (torch.stack([getattr(one, name).detach() for one in singles]) for name in ("narrow", "wide"))
    optimizer = StackedAdam(stack, lrs, weight_decay)
    theirs = [torch.optim.Adam(one.parameters(), lr=lr, weight_decay=weight_decay) for one, lr in zip(singles, lrs, strict=True)]
    entries = list(range(len(lrs)))
    leave_at = kept.draw(st.integers(0, steps))
    for step in range(steps):
        if step == leave_at:
            entries = sorted(kept.draw(st.sets(st.sampled_from(entries), min_size=1)))
            optimizer.select(entries)
        stack.loss().sum().backward()
        optimizer.step()
        for one, their in zip(singles, theirs, strict=True):
            their.zero_grad()
            one.loss().backward()
            their.step()
    assert optimizer.steps == steps
    for k, entry in enumerate(entries):
        torch.testing.assert_close(stack.narrow[k], singles[entry].narrow, rtol=1e-4, atol=2e-6)
        torch.testing.assert_close(stack.wide[k], singles[entry].wide, rtol=1e-12, atol=1e-12)


def test_adam_goes_on_from_its_moments() -> None:
    def stacked(seeds: list[int]) -> Toy:
        one = Toy(0)
        one.narrow.data, one.wide.data = (torch.stack([getattr(Toy(s), name).detach() for s in seeds]) for name in ("narrow", "wide"))
        return one

    def go(module: Toy, optimizer: StackedAdam, steps: int) -> None:
        for _ in range(steps):
            module.loss().sum().backward()
            optimizer.step()

    whole = stacked([3, 4])
    optimizer = StackedAdam(whole, [0.1, 0.2], 0.01)
    go(whole, optimizer, 4)
    moments, values = [optimizer.state_of(k) for k in (0, 1)], {key: value.clone() for key, value in whole.state_dict().items()}
    go(whole, optimizer, 3)
    again = stacked([3, 4])
    again.load_state_dict(values)
    resumed = StackedAdam(again, [0.1, 0.2], 0.01)
    resumed.load(moments, 4)
    go(again, resumed, 3)
    assert torch.equal(again.narrow, whole.narrow)
    assert torch.equal(again.wide, whole.wide)
    with pytest.raises(ValueError, match="the mean of float32 does not fit"):
        resumed.load(moments[:1], 4)


def test_stacked_linear_keeps_both_types() -> None:
    linears = [nn.Linear(3, 2, dtype=torch.float64) for _ in range(2)]
    stack, data = StackedLinear(linears), torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(stack(data), torch.stack([linear(one) for linear, one in zip(linears, data, strict=True)]))


def single_loop(data: TrainingData, config: FitConfig) -> list[Any]:
    """The plain loop of one hybrid model, written without any stack: the oracle."""
    model = build_model(data.train[0].shape[-1], 2, config.head_spec, seed=config.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    losses = []
    for epoch in range(config.epochs):
        order = torch.from_numpy(np.random.default_rng([config.seed, epoch]).permutation(len(data.train[1])))
        for batch in order.split(config.batch_size):
            optimizer.zero_grad()
            cross_entropy(model(data.train[0][batch]), data.train[1][batch]).backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(cross_entropy(model(data.val[0]), data.val[1]).item())
    return losses


def dataset(seed: int, variants: int | None = None) -> TrainingData:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(14) % 2
    values = torch.randn(*([] if variants is None else [variants]), 14, FEATURES, generator=generator) + truth[:, None]
    return TrainingData((values, truth), (torch.randn(6, FEATURES, generator=generator) + truth[:6, None], truth[:6]))


def fit(tmp_path: Path, data: list[TrainingData], configs: list[FitConfig]) -> Trainer:
    runs = [RunFolder(tmp_path / f"{len(configs)}-{index}") for index in range(len(configs))]
    for config, run in zip(configs, runs, strict=True):
        run.start(config)
    singles = [build_model(FEATURES, 2, config.head_spec, seed=config.seed) for config in configs]
    head = make_head(configs[0].head_spec, torch.stack([model.head.weights.detach() for model in singles]))
    trainer = Trainer(make_lineup(singles, head, [config.seed for config in configs]), configs, runs)
    trainer.train(data, lambda reports: None)
    return trainer


def test_stack_of_one_is_the_plain_loop(tmp_path: Path) -> None:
    config = FitConfig(data=Path("none"), epochs=10, seed=5, lr=0.01, num_layers=2)
    trainer = fit(tmp_path, [dataset(0)], [config])
    found = [line["val_loss"] for line in trainer.runs[0].folder.metrics()]
    assert found == pytest.approx(single_loop(dataset(0), config), abs=1e-6)


@pytest.mark.parametrize("variants", [None, 3])
@pytest.mark.parametrize("patience", [None, 2])
def test_together_as_alone(tmp_path: Path, variants: int | None, patience: int | None) -> None:
    """Other seeds and steps, shared and own data, early stops: every line of metrics, every best value, every answer."""
    shared, own = dataset(0, variants), dataset(1, variants)
    configs = [
        FitConfig(data=Path("none"), epochs=12, seed=seed, lr=lr, patience=patience)
        for seed, lr in ((3, 0.01), (4, 0.01), (3, 0.08), (9, 0.03))
    ]
    data = [shared, shared, shared, own]
    together = fit(tmp_path, data, configs)
    together.take_best()
    test = features(6)
    answers = together.answer(test.expand(4, *test.shape))
    epochs = set()
    for entry, (config, each) in enumerate(zip(configs, data, strict=True)):
        alone = fit(tmp_path / str(entry), [each], [config])
        mine, theirs = together.runs[entry], alone.runs[0]
        assert (mine.epoch, {name: best.epoch for name, best in mine.best.items()}) == (
            theirs.epoch,
            {name: best.epoch for name, best in theirs.best.items()},
        )
        epochs.add(mine.epoch)
        for left, right in zip(mine.folder.metrics(), theirs.folder.metrics(), strict=True):
            for key in ("train_loss", "val_loss", "val_accuracy", "parameter_sets", "jobs"):
                assert left[key] == pytest.approx(right[key], abs=1e-5)
            assert left["twins"]["linear"]["val_loss"] == pytest.approx(right["twins"]["linear"]["val_loss"], abs=1e-5)
        alone.take_best()
        torch.testing.assert_close(answers[:, entry], alone.answer(test[None])[:, 0], rtol=1e-4, atol=1e-5)
    assert (len(epochs) > 1) == (patience is not None), "with patience some run must stop before another"


def test_variants_are_all_used_and_drawn_by_seed_and_epoch(tmp_path: Path) -> None:
    """Variant k of image i is the number 100·k + i: what the model sees tells which were taken."""
    seen: list[Tensor] = []
    numbers = 100.0 * torch.arange(3)[:, None] + torch.arange(14)
    data = TrainingData((numbers[..., None].expand(3, 14, FEATURES), torch.arange(14) % 2), dataset(0).val)
    config = FitConfig(data=Path("none"), epochs=2, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        forward = Lineup.forward
        patch.setattr(Lineup, "forward", lambda self, inputs: (seen.append(inputs[0, :, 0]), forward(self, inputs))[1])
        fit(tmp_path / "first", [data], [config])
        first, seen = torch.cat([each for each in seen if len(each) != 6]), []
        fit(tmp_path / "second", [data], [config])
        second = torch.cat([each for each in seen if len(each) != 6])
    assert torch.equal(first, second)
    epochs = first.reshape(2, 14)
    assert all(sorted((epoch % 100).tolist()) == list(range(14)) for epoch in epochs), "each image once an epoch"
    assert set((first // 100).tolist()) == {0, 1, 2}
    assert epochs[0].sort().values.tolist() != epochs[1].sort().values.tolist(), "each epoch takes other variants"
