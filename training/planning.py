"""Plans for real data: how many images there are, and what they cost on the backend that was named, and more cheaply."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hqtl_common.backends.mitigation import MITIGATION_OPTIONS, Mitigation, mitigation_of
from hqtl_common.preprocess import suffixes_of
from training.config import FitConfig
from training.data import content_hashes, group_keys, load_dataset, merge_identical
from training.head import resolve_diff_method
from training.plan import Plan, cost_of, evaluate_counts, fit_counts, read_prices
from training.prepare import divide

__all__ = ["plan_answers", "plan_fit", "plan_training"]

_DEFAULT_SHOTS = 1024  # what sampled backends take when none are given


def plan_training(config: FitConfig, prices: Path | None = None) -> dict[str, Plan]:
    """The plan of a training, and of cheaper ones, by name.

    Raises:
        ConfigError: Options that do not fit.
        InputError: The folder cannot be used.
        BackendError: The method is not legal on the backend.
    """
    dataset = load_dataset(config.data, suffixes_of(config.preprocess_spec))
    groups = group_keys(dataset, config.group_by)
    merged = None if groups is None else merge_identical(groups, content_hashes(dataset.samples))
    split = divide(dataset, config.split_recipe, config.data_seed, merged)
    images = {name: len(split.indices(name)) for name in ("train", "val", "test")}
    table = read_prices(prices)
    shots = _shots(config.backend, config.shots)
    variants: dict[str, dict[str, Any]] = {"as given": {}}
    if shots is not None:
        variants["a quarter of the shots"] = {"shots": max(1, shots // 4)}
        variants["spsa"] = {"diff_method": "spsa"}
        variants |= _leaner(config, shots)
    variants["4 × the batch size"] = {"batch_size": 4 * config.batch_size}
    return {name: plan_fit(config.model_copy(update=changes), images, table) for name, changes in variants.items()}


def plan_fit(config: FitConfig, images: Mapping[str, int], prices: Mapping[str, float]) -> Plan:
    """The plan of a training on so many images.

    Args:
        config: Options.
        images: Number of images of ``train``, ``val`` and ``test``.
        prices: US dollars per QPU second by plan.

    Raises:
        BackendError: The method is not legal on the backend.
        ConfigError: Options that do not fit.
    """
    shots = _shots(config.backend, config.shots)
    method = resolve_diff_method(config.backend, shots, config.diff_method, config.head_spec)
    mitigation = _mitigation(shots, config.backend_options)
    counts = fit_counts(
        config.head_spec, method, images, batch_size=config.batch_size, epochs=config.epochs, shots=shots, mitigation=mitigation
    )
    return cost_of(counts, shots, prices, mitigation)


def _leaner(config: FitConfig, shots: int) -> dict[str, dict[str, Any]]:
    """The method that gives the same gradient as the chosen one from fewer parameter sets, if there is one."""
    spec = config.head_spec
    method = resolve_diff_method(config.backend, shots, config.diff_method, spec)
    leaner = "commuting" if spec.ansatz == "commuting" else "lean-shift"
    return {leaner: {"diff_method": leaner}} if method == "parameter-shift" else {}


def plan_answers(
    num_images: int,
    backend: str,
    shots: int | None,
    images_per_call: int | None,
    prices: Path | None = None,
    backend_options: Mapping[str, Any] | None = None,
) -> dict[str, Plan]:
    """The plan of an evaluation (one call) or a scoring (one call per chunk).

    Raises:
        ConfigError: Options that do not fit.
        UnknownBackendError: No such backend.
    """
    table = read_prices(prices)
    shots = _shots(backend, shots)
    mitigation = _mitigation(shots, backend_options or {})

    def plan(images_per_call: int | None) -> Plan:
        return cost_of(evaluate_counts(num_images, shots, images_per_call, mitigation), shots, table, mitigation)

    plans = {"as given": plan(images_per_call)}
    if images_per_call is not None:
        plans["8 × the images per job"] = plan(8 * images_per_call)
    return plans


def _shots(backend: str, shots: int | None) -> int | None:
    from hqtl_common.backends.registry import backend_capabilities

    return _DEFAULT_SHOTS if shots is None and not backend_capabilities(backend).exact else shots


def _mitigation(shots: int | None, backend_options: Mapping[str, Any]) -> Mitigation:
    return mitigation_of(shots, **{name: value for name, value in backend_options.items() if name in MITIGATION_OPTIONS})
