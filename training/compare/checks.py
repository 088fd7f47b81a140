"""Every reason why a run of a comparison could not work, found before any of them begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from hqtl_common.backends.opening import Limits, check_limits, open_backend
from hqtl_common.backends.registry import backend_capabilities, is_installed
from hqtl_common.errors import BackendUnavailableError, HqtlError
from training.compare.grid import PlannedRun, refuse
from training.config import FitConfig
from training.data import SPLIT_NAMES, group_keys, merge_identical
from training.head import resolve_diff_method
from training.plan import Plan, read_prices
from training.planning import plan_fit
from training.prepare import SourceData, divide, read_source

__all__ = ["RunChecker"]


class RunChecker:
    """Checks runs, each distinct question once; no image is decoded, nothing is trained, no paid machine is asked.

    Args:
        limits: What may be spent on paid backends.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._reasons: dict[str, str | None] = {}
        self._sources: dict[str, SourceData] = {}
        self._images: dict[str, dict[str, int]] = {}

    def check(self, runs: Sequence[PlannedRun]) -> None:
        """Refuse a comparison with runs that cannot work.

        Raises:
            ConfigError: Lists every such run with its reason.
        """
        refuse([(run.name, reason) for run in runs if (reason := self._reason_against(run.config)) is not None])

    def plan(self, run: PlannedRun) -> Plan:
        """What a checked run costs."""
        return plan_fit(run.config, self._images[_split_key(run.config)], read_prices())

    def _reason_against(self, config: FitConfig) -> str | None:
        head = config.model_dump_json(include={"backend", "backend_options", "shots", "diff_method"})
        circuit = config.model_dump_json(include={"num_qubits", "embedding", "entangler", "ansatz", "num_layers", "diff_method"})
        checks: tuple[tuple[str, Callable[[FitConfig], Any]], ...] = (
            (circuit, lambda config: config.head_spec),
            (head, self._open),
            (_split_key(config), self._split),
            (circuit + head + _split_key(config), lambda config: plan_fit(config, self._images[_split_key(config)], read_prices())),
        )
        for key, check in checks:
            if key not in self._reasons:
                self._reasons[key] = _reason(check, config)
            if self._reasons[key] is not None:
                return self._reasons[key]
        return None

    def _open(self, config: FitConfig) -> None:
        check_limits(config.backend, self._limits)
        resolve_diff_method(config.backend, config.shots, config.diff_method)
        if not is_installed(config.backend):
            raise BackendUnavailableError(f"backend {config.backend!r} is not installed; install it with: pip install 'hqtl[quantum]'")
        if not backend_capabilities(config.backend).paid:
            open_backend(config.backend, shots=config.shots, seed=0, options=config.backend_options).close()

    def _split(self, config: FitConfig) -> None:
        folder = str(config.data)
        if folder not in self._sources:
            self._sources[folder] = read_source(config.data, config.preprocess_spec)
        source = self._sources[folder]
        groups = group_keys(source.dataset, config.group_by)
        merged = None if groups is None else merge_identical(groups, source.hashes)
        split = divide(source.dataset, config.split_recipe, config.data_seed, merged)
        self._images[_split_key(config)] = {name: len(split.indices(name)) for name in SPLIT_NAMES}


def _split_key(config: FitConfig) -> str:
    return json.dumps([str(config.data), config.split_recipe, config.group_by, config.data_seed])


def _reason(check: Callable[[FitConfig], Any], config: FitConfig) -> str | None:
    try:
        check(config)
    except (HqtlError, OSError) as error:
        return " ".join(str(error).split())
    return None
