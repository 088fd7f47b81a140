"""A bundle with one more calibration, fitted to a backend's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hqtl_common.backends.opening import Limits, check_limits
from hqtl_common.bundle import ModelBundle
from hqtl_common.calibration import Calibration
from hqtl_common.errors import ConfigError
from hqtl_common.manifest import Manifest
from training.calibration import ThresholdRule, calibrate
from training.card import model_card
from training.console import warn
from training.evaluate import answer_subset
from training.export import check_target
from training.judges import BundleJudge

__all__ = ["recalibrate"]

_OWN_FILES = ("head.json", "head.qasm", "MODEL_CARD.md")  # that saving makes anew


def recalibrate(
    path: Path,
    folder: Path,
    out: Path,
    rule: ThresholdRule,
    *,
    backend: str = "statevector",
    shots: int | None = None,
    seed: int = 0,
    backend_options: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    subset: str = "val",
) -> tuple[Calibration, list[dict[str, str]]]:
    """Answer labelled images on a backend, fit temperature and threshold, and write the bundle with them.

    An entry of the same backend and shots is replaced; every other file of the bundle but the model card stays as it is.

    Args:
        path: The bundle.
        folder: Labelled photographs that the model was not trained on, or the folder it was trained on.
        out: The new bundle's folder, to be made.
        rule: How the threshold is chosen.
        backend: Where the head runs.
        shots: Repetitions, None = exact.
        seed: Seed of the sampling.
        backend_options: Options of the backend by its own names.
        limits: What may be spent on a paid backend.
        subset: Which images; ``val`` is that of the folder the model was trained on.

    Returns:
        The new entry, and path and message of images that could not be used.

    Raises:
        ConfigError: An option that does not fit, or ``out`` is not empty.
        InputError: The folder cannot be used.
        BundleError: The bundle cannot be used.
        BackendError: The head could not be run.
    """
    check_target(out)
    if backend == "ibm:least_busy":
        raise ConfigError("a calibration holds for one machine; name it, for example ibm:ibm_fez")
    check_limits(backend, limits)
    judge = BundleJudge(path)
    measured = answer_subset(
        judge,
        folder,
        subset,
        backend=backend,
        shots=shots,
        max_shots=None,
        seed=seed,
        backend_options=backend_options,
        limits=limits,
        purpose="calibrate",
    )
    record = measured.answers.execution
    entry = calibrate(
        measured.answers.logits,
        measured.truth,
        judge.labels,
        judge.positive,
        rule,
        backend=backend,
        shots=record.shots,
        subset=measured.subset if subset == "val" else f"{measured.subset} of {folder.name}",
        seed=record.seed,
        options=backend_options,
    )
    bundle = judge.bundle
    manifest = bundle.manifest.model_copy(update={"calibration": _with(bundle.manifest, entry)})
    files = {name: bundle.read(name) for name in bundle.manifest.files if name not in _OWN_FILES}
    ModelBundle.save(out, manifest, bundle.weights, files | {"MODEL_CARD.md": model_card(manifest).encode()})
    for note in entry.notes:
        warn(note)
    return entry, measured.errors


def _with(manifest: Manifest, entry: Calibration) -> tuple[Calibration, ...]:
    """The entries with a new one, in an order that does not depend on that of the commands."""
    others = {old.label: old for old in manifest.calibration}
    return tuple(sorted({**others, entry.label: entry}.values(), key=lambda one: (one.backend, one.shots or 0)))
