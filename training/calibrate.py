"""Calibrations of a run: of the exact head, and of the backend it was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hqtl_common.calibration import NOISE_FREE, Calibration
from hqtl_common.classifier import is_noise_free
from hqtl_common.errors import InputError
from training.calibration import ThresholdRule, calibrate
from training.console import warn
from training.trained import SplitFeatures, TrainedRun, split_features

__all__ = ["calibrate_run"]

_SUBSET = "val"


def calibrate_run(
    run: TrainedRun,
    rule: ThresholdRule,
    cache_folder: Path,
    device: str = "auto",
    splits: dict[str, SplitFeatures] | None = None,
    *,
    anew: bool = False,
) -> tuple[Calibration, ...]:
    """Calibrations on the validation split.

    The logits of the exact head are those that the run kept, or come from the features of the split; a run that was trained on
    a noisy or sampled head kept that one's, and gets an entry for it, too.

    Args:
        run: The run.
        rule: How the threshold is chosen.
        cache_folder: Where features are cached.
        device: torch's device for the backbone.
        splits: Features of the run's splits, where they are at hand; empty where they cannot be had.
        anew: Only from ``splits``, which another backbone gave than the logits that the run kept.

    Raises:
        ConfigError: The rule cannot be followed.
    """
    entries = []
    config, shots = run.config, run.result["shots"]
    exact = shots is None and is_noise_free(config.backend)
    kept = None if anew else _kept(run)
    if anew and not exact:
        warn(f"not calibrated for {config.backend}: the run kept its answers with another backbone; use hqtl-train calibrate")
    if (found := kept if exact and kept else _computed(run, cache_folder, device, splits)) is not None:
        entries.append(_entry(run, *found, rule, NOISE_FREE, None))
    if not exact and kept is not None:
        entries.append(_entry(run, *kept, rule, config.backend, shots))
    return tuple(entries)


def _entry(
    run: TrainedRun, logits: NDArray[np.float64], truth: NDArray[np.intp], rule: ThresholdRule, backend: str, shots: int | None
) -> Calibration:
    own = backend == run.config.backend
    return calibrate(
        logits,
        truth,
        run.data["labels"],
        run.result["positive"],
        rule,
        backend=backend,
        shots=shots,
        subset=_SUBSET,
        seed=run.config.seed if shots is not None else None,
        options=run.config.backend_options if own else None,
    )


def _kept(run: TrainedRun) -> tuple[NDArray[np.float64], NDArray[np.intp]] | None:
    if run.predictions is None:
        return None
    part = run.predictions[_SUBSET]
    return np.array(part["logits"]["hybrid"], dtype=np.float64), np.array(part["truth"], dtype=np.intp)


def _computed(
    run: TrainedRun, cache_folder: Path, device: str, splits: dict[str, SplitFeatures] | None
) -> tuple[NDArray[np.float64], NDArray[np.intp]] | None:
    if splits is None:
        try:
            splits = split_features(run, cache_folder, device)
        except InputError as error:
            warn(f"not calibrated for exact answers: {error}")
            return None
    part = splits.get(_SUBSET)
    if part is None:
        return None
    return run.logits(part.features), part.truth
