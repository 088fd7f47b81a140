"""What a training, an evaluation or a scoring will cost, counted before anything runs.

The paper's equation 8, N = N_forward + N_backward, per image: a forward pass is one evaluation of the circuit; the backward
pass is none with backprop, one per parameter with a forward finite difference and two with the parameter-shift rule (its
table 3). The paper counts the trained rotations only; training pre_net as well needs the angles too, and so does this module.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hqtl_common.backends.costs import MAX_EXECUTIONS, estimated_qpu_seconds
from hqtl_common.backends.mitigation import Mitigation
from hqtl_common.errors import ConfigError
from hqtl_common.shifts import SHIFT_METHODS, head_table
from hqtl_common.specs import HeadSpec

__all__ = [
    "OPEN_PLAN_SECONDS",
    "PRICES",
    "SUBMITS_PER_MINUTE",
    "Counts",
    "Plan",
    "cost_of",
    "evaluate_counts",
    "fit_counts",
    "points_per_image",
    "read_prices",
]

OPEN_PLAN_SECONDS = 600.0  # per 28 days
SUBMITS_PER_MINUTE = 5.0
# US dollars per QPU second: assumptions, not quotations. Check IBM's list and set HQTL_PRICES to a JSON file of this form.
PRICES: dict[str, float] = {"open": 0.0, "pay-as-you-go": 1.6, "flex": 1.2}

_DEPTH = 30  # of the paper's head on a machine
_NONE = Mitigation()


@dataclass(frozen=True, slots=True)
class Counts:
    """Executions of the head.

    Args:
        jobs: Calls of the backend.
        parameter_sets: Rows in all of them.
    """

    jobs: int
    parameter_sets: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.jobs + other.jobs, self.parameter_sets + other.parameter_sets)

    def times(self, factor: int) -> Counts:
        """The same ``factor`` times."""
        return Counts(self.jobs * factor, self.parameter_sets * factor)


@dataclass(frozen=True, slots=True)
class Plan:
    """Costs of some counts at some shots.

    Args:
        counts: What is executed.
        shots: Repetitions per parameter set, None = exact.
        executions: Parameter sets × shots, and what mitigation adds.
        qpu_seconds: Estimate of what IBM bills.
        wall_seconds: At least this long: the submit rate, and the QPU itself.
        open_plan_share: Part of the Open plan's 10 minutes per 28 days.
        prices: US dollars by plan.
    """

    counts: Counts
    shots: int | None
    executions: int
    qpu_seconds: float
    wall_seconds: float
    open_plan_share: float
    prices: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "jobs": self.counts.jobs,
            "parameter_sets": self.counts.parameter_sets,
            "shots": self.shots,
            "executions": self.executions,
            "qpu_seconds": self.qpu_seconds,
            "wall_seconds": self.wall_seconds,
            "open_plan_share": self.open_plan_share,
            "prices": self.prices,
        }


def points_per_image(spec: HeadSpec, diff_method: str, *, angles: bool = True) -> int:
    """Evaluations of the circuit for one image of a training step, forward and backward.

    Args:
        spec: The head.
        diff_method: A gradient method.
        angles: Count the gradient with respect to the angles too, as training pre_net needs; the paper does not.
    """
    if diff_method not in SHIFT_METHODS:
        return 1  # the simulator differentiates its own forward pass
    table = head_table(diff_method, spec, np.random.default_rng(0))
    return (table if angles else table.without(spec.num_angles)).num_points


def fit_counts(
    spec: HeadSpec,
    diff_method: str,
    images: Mapping[str, int],
    *,
    batch_size: int,
    epochs: int,
    shots: int | None,
    mitigation: Mitigation = _NONE,
) -> Counts:
    """Executions of a whole training: one per optimiser step, one per validation, one each for the final figures.

    Args:
        spec: The head.
        diff_method: A gradient method.
        images: Number of images of ``train``, ``val`` and ``test``.
        batch_size: Images per step.
        epochs: Without early stopping.
        shots: Repetitions, None = exact.
        mitigation: What is done about errors.
    """

    def call(images_of_a_call: int, points: int = 1) -> Counts:
        return _call(images_of_a_call * points, shots, mitigation)

    points = points_per_image(spec, diff_method)
    full, rest = divmod(images["train"], batch_size)
    steps = call(batch_size, points).times(full) + call(rest, points)
    return (steps + call(images["val"])).times(epochs) + call(images["val"]) + call(images["test"])


def evaluate_counts(num_images: int, shots: int | None, images_per_call: int | None = None, mitigation: Mitigation = _NONE) -> Counts:
    """Executions of an evaluation (one call) or a scoring (one call per chunk)."""
    full, rest = divmod(num_images, images_per_call or max(num_images, 1))
    return _call(images_per_call or num_images, shots, mitigation).times(full) + _call(rest, shots, mitigation)


def cost_of(counts: Counts, shots: int | None, prices: Mapping[str, float], mitigation: Mitigation = _NONE) -> Plan:
    """Costs on hardware: 2 s a job and about 253 µs an execution, at most five submits a minute.

    Args:
        counts: What is executed.
        shots: Repetitions, None = exact: nothing is billed.
        prices: US dollars per QPU second by plan; see :func:`read_prices`.
        mitigation: What is done about errors.
    """
    executions = counts.parameter_sets * (shots or 0) * len(mitigation.factors) + counts.jobs * mitigation.calibration_executions
    seconds = 0.0 if shots is None else estimated_qpu_seconds(counts.jobs, executions, _DEPTH * max(mitigation.factors))
    return Plan(
        counts=counts,
        shots=shots,
        executions=executions,
        qpu_seconds=seconds,
        wall_seconds=0.0 if shots is None else max(60 * counts.jobs / SUBMITS_PER_MINUTE, seconds),
        open_plan_share=seconds / OPEN_PLAN_SECONDS,
        prices={plan: seconds * price for plan, price in prices.items()},
    )


def _call(rows: int, shots: int | None, mitigation: Mitigation) -> Counts:
    """One call of a backend; split where a job would pass the platform's limit on executions."""
    if not rows:
        return Counts(0, 0)
    rows_of_a_job = (MAX_EXECUTIONS - mitigation.calibration_executions) // ((shots or 1) * len(mitigation.factors))
    return Counts(math.ceil(rows / max(1, rows_of_a_job)), rows)


def read_prices(path: Path | None = None) -> dict[str, float]:
    """The table of prices: ``path``, else the file named by HQTL_PRICES, else :data:`PRICES`.

    Raises:
        ConfigError: The file is not a JSON object of numbers from 0 on.
    """
    path = path or (Path(os.environ["HQTL_PRICES"]) if "HQTL_PRICES" in os.environ else None)
    if path is None:
        return dict(PRICES)
    try:
        values = json.loads(path.read_bytes())
        return {str(plan): _price(price) for plan, price in values.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{str(path)!r} must be a JSON object of US dollars per QPU second by plan; {error}") from error


def _price(value: Any) -> float:
    price = float(value)
    if not 0 <= price < math.inf:
        raise ValueError(f"{value!r} is no price")
    return price
