"""Several runs by one command: many seeds, all folds, or both; a folder with a run folder for each, and a summary of all.

============  =====================================================================
series.json   the options that all share, the seeds and the number of folds
seed-0, …     a run folder each (``fold-1``, ``fold-1-seed-0`` with folds)
summary.json  figures of every run, and their means with intervals
curves.png    loss and accuracy per epoch, of all runs
============  =====================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqtl_common.backends.opening import Limits
from hqtl_common.errors import ConfigError, InputError
from training.config import FitConfig
from training.fit import fit_many, open_run
from training.outcome import MEASURED
from training.plots import plot_curves_together
from training.runs import read_json, write_json
from training.significance import mean_interval, pooled, range_of
from training.twins import TWINS

__all__ = ["Series", "fit_series", "is_series", "open_series", "parse_seeds", "summarize"]

_FIGURES = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "loss")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_MOST = 1000


@dataclass(frozen=True, slots=True)
class Series:
    """Runs that share all options but seed and fold.

    Args:
        path: The folder.
        members: Options by name of the run folder.
    """

    path: Path
    members: dict[str, FitConfig]

    def changed(self, options: dict[str, Any]) -> Series:
        """The same with other options of how it is trained, which do not decide what it gives."""
        return Series(self.path, {name: config.model_copy(update=options) for name, config in self.members.items()})


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from text like ``0-9`` or ``0,3,7-9``, in the order given.

    Raises:
        ConfigError: Another form, a seed twice, or more than a thousand.
    """
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or int(match[2] or match[1]) - int(match[1]) not in range(_MOST):
            raise ConfigError(f"seeds are whole numbers like 0-9 or 0,3,7-9, at most {_MOST}; got {text!r}")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(found)) != len(found) or len(found) > _MOST:
        raise ConfigError(f"each seed counts once, and at most {_MOST} are possible; got {text!r}")
    return tuple(found)


def is_series(path: Path) -> bool:
    """True if ``path`` holds several runs."""
    return (path / "series.json").is_file()


def open_series(path: Path, config: FitConfig | None, seeds: Sequence[int] | None, folds: int | None, *, resume: bool) -> Series:
    """The folder of a new series, or of one to go on with.

    Args:
        path: The folder.
        config: What all runs share; None to take everything from the folder.
        seeds: One run for each; None for the seed of ``config``.
        folds: One run for each of so many folds; None without.
        resume: Go on with a series that is there.

    Raises:
        ConfigError: The folder holds something else, or the options differ from the recorded ones.
        InputError: ``series.json`` is damaged.
    """
    recorded = read_json(path / "series.json")
    if config is None:
        if recorded is None:
            raise InputError(f"{str(path)!r} holds no series of runs: there is no series.json; make one with hqtl-train fit --seeds")
        return _members(path, recorded)
    values = {"config": json.loads(config.model_dump_json()), "seeds": None if seeds is None else list(seeds), "folds": folds}
    if recorded is None:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise ConfigError(f"{str(path)!r} exists already and is no series of runs; give another folder")
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "series.json", values)
    elif not resume:
        raise ConfigError(f"{str(path)!r} exists already; go on with it by --resume, or give another folder")
    else:
        _check_same(path, recorded, values, config)
    return _members(path, values)


def fit_series(series: Series, cache_folder: Path, *, limits: Limits | None = None, verbose: bool = False) -> dict[str, Any]:
    """Train all runs, or go on, and return what ``summary.json`` holds; see :func:`training.fit.fit_many`."""
    opened = [open_run(series.path / name, config, resume=True) for name, config in series.members.items()]
    runs = [run for run, _ in opened]
    results = fit_many([config for _, config in opened], runs, cache_folder, limits=limits, verbose=verbose)
    summary = summarize(series.members, results)
    plot_curves_together([run.metrics() for run in runs], series.path / "curves.png")
    write_json(series.path / "summary.json", summary)
    return summary


def summarize(members: dict[str, FitConfig], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all runs, and over the runs the mean of each with its interval.

    An interval over seeds on one split speaks of the training's luck, not of other images; over folds or seeds with splits of
    their own it speaks of both, and is somewhat too narrow because the training sets overlap. ``paired`` is the difference to
    each twin of the same run. Where each test image belongs to one run, as with folds, ``mcnemar`` is the test over all of them.

    Args:
        members: Options by name.
        results: What ``result.json`` of each holds.
    """
    answers: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {"hybrid": lambda result, split: result[split]}
    answers |= {twin: lambda result, split, twin=twin: result["twins"][twin][split] for twin in TWINS}  # type: ignore[misc]

    def means(contender: str) -> dict[str, Any]:
        return {split: _means([answers[contender](result, split) for result in results]) for split in MEASURED}

    paired = {
        twin: {
            name: mean_interval([result["test"][name] - result["twins"][twin]["test"][name] for result in results])
            for name in ("accuracy", "loss")
        }
        for twin in TWINS
    }
    configs = members.values()
    one_test = len({config.seed for config in configs}) == 1 and all(config.folds for config in configs)
    return {
        "runs": [_row(name, config, result) for (name, config), result in zip(members.items(), results, strict=True)],
        **means("hybrid"),
        "twins": {twin: means(twin) for twin in TWINS},
        "logistic_regression": _means([result["logistic_regression"] for result in results]),
        "paired": paired,
        "mcnemar": {twin: pooled([result["mcnemar"][twin] for result in results]) for twin in TWINS} if one_test else None,
    }


def _means(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and interval of each figure; None where a run lacks it."""
    columns = {name: [each[name] for each in figures] for name in _FIGURES}
    return {name: None if None in column else mean_interval(column, range_of(name)) for name, column in columns.items()}


def _row(name: str, config: FitConfig, result: dict[str, Any]) -> dict[str, Any]:
    kept = ("epochs", "best_epoch", "jobs", "parameter_sets", "qpu_seconds", "val", "test", "twins", "mcnemar", "logistic_regression")
    return {"run": name, "seed": config.seed, "fold": config.fold, **{key: result[key] for key in kept}}


def _members(path: Path, values: dict[str, Any]) -> Series:
    try:
        config, seeds, folds = FitConfig.parse(values["config"]), values["seeds"] or [], values["folds"] or 0
        divided = {f"fold-{i}": config.model_copy(update={"folds": folds, "fold": i}) for i in range(1, folds + 1)} or {"": config}
        named = {
            f"{name}-seed-{seed}".removeprefix("-"): each.model_copy(update={"seed": seed})
            for name, each in divided.items()
            for seed in seeds
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{str(path / 'series.json')!r} is damaged ({error}); remove the series and train again") from error
    return Series(path, named or divided)


def _check_same(path: Path, recorded: dict[str, Any], values: dict[str, Any], config: FitConfig) -> None:
    begun = [f"{key}: {recorded.get(key)} here, {values[key]} there" for key in ("seeds", "folds") if recorded.get(key) != values[key]]
    if differences := begun + FitConfig.parse(recorded["config"]).differences(config):
        raise ConfigError(
            f"{str(path)!r} was begun with other options ({'; '.join(differences)} as given now); resume it with the same, or with none"
        )
