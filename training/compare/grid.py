"""From the file to runs with names, grouped into what is trained together."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqtl_common.errors import ConfigError
from training.compare.options import REPLICATES, CompareConfig, combinations
from training.config import FitConfig

__all__ = ["PlannedRun", "make_runs", "refuse", "stacks"]

_STACKED = {"seed", "lr", "split_seed", "fold"}  # what the runs of one stack may differ in
_MAX_SHOWN = 20
_MAX_VALUE = 40
_DEFAULTS = {name: field.default for name, field in FitConfig.model_fields.items()}


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One training to be done.

    Args:
        name: Of its folder; depends on the varied options only.
        config: All options.
        varied: The options that runs of this comparison differ in, as given (a folder by its short name).
    """

    name: str
    config: FitConfig
    varied: dict[str, Any]

    @property
    def group(self) -> str:
        """The name without the replicates: runs of one group measure the same."""
        return _name({key: value for key, value in self.varied.items() if key not in REPLICATES})


def make_runs(config: CompareConfig) -> list[PlannedRun]:
    """The runs of a comparison, in order.

    Raises:
        ConfigError: Lists the combinations whose options are out of range or that are there twice, and the exclusions that
            match nothing; or nothing is left to run.
    """
    labels = _folder_labels(config.data.folders)
    runs: list[PlannedRun] = []
    problems: list[tuple[str, str]] = []
    used: set[int] = set()
    for values in combinations(config):
        varied = {key: labels[values[key]] if key == "data" else values[key] for key in config.varied if key in values}
        name, given = _name(varied), {**config.base, **values}
        folder = {"data": labels[values["data"]]}
        excluded = {number for number, table in enumerate(config.exclude, 1) if _matches(table, {**_DEFAULTS, **given, **folder})}
        used |= excluded
        if excluded:  # also one that could not run: leaving it out is the way to have its neighbours
            continue
        try:
            runs.append(PlannedRun(name, FitConfig.parse(given), varied))
        except ConfigError as error:
            problems.append((name, str(error)))
    problems += [(f"exclude {n}", "leaves out nothing") for n in range(1, len(config.exclude) + 1) if n not in used and not problems]
    problems += [(name, f"is there {count} times") for name, count in Counter(run.name for run in runs).items() if count > 1]
    refuse(problems)
    if not runs:
        raise ConfigError("every combination is excluded; nothing is left to run")
    return runs


def stacks(runs: Sequence[PlannedRun], size: int, known: Iterable[Sequence[str]] = ()) -> list[list[PlannedRun]]:
    """Runs that differ only in seeds, fold and learning rate, together.

    Args:
        runs: All runs.
        size: At most so many together.
        known: Names of runs that were put together earlier and stay so: what they have drawn on a sampled backend is shared.
    """
    by_name = {run.name: run for run in runs}
    kept = [[by_name.pop(name) for name in names] for names in known if all(name in by_name for name in names)]
    alike: dict[str, list[PlannedRun]] = {}
    for run in by_name.values():
        alike.setdefault(run.config.model_dump_json(exclude=_STACKED), []).append(run)
    return kept + [members[start : start + size] for members in alike.values() for start in range(0, len(members), size)]


def refuse(problems: Sequence[tuple[str, str]]) -> None:
    """Raise one error that lists all problems, (run, reason), those with one reason together.

    Raises:
        ConfigError: There is a problem.
    """
    if not problems:
        return
    by_reason: dict[str, list[str]] = {}
    for name, reason in problems:
        by_reason.setdefault(reason, []).append(name)
    lines = [f"{_some(names)}: {reason}" for reason, names in by_reason.items()]
    more = f"; and {len(lines) - _MAX_SHOWN} reasons more" if len(lines) > _MAX_SHOWN else ""
    raise ConfigError(
        f"{len(problems)} combinations cannot run; mend them or leave them out by [[exclude]]: {'; '.join(lines[:_MAX_SHOWN])}{more}"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _matches(table: dict[str, Any], values: dict[str, Any]) -> bool:
    return all(values[key] in wanted if isinstance(wanted, list) else values[key] == wanted for key, wanted in table.items())


def _name(varied: dict[str, Any]) -> str:
    return ",".join(f"{key}={_word(value)}" for key, value in varied.items()) or "run"


def _word(value: Any) -> str:
    """A value as part of a file name: itself where it can be one, otherwise cleaned and with a hash of the whole."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    clean = re.sub(r"[^A-Za-z0-9.+-]+", "_", text)[:_MAX_VALUE].strip("._")
    return clean if clean == text else f"{clean}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _folder_labels(folders: Iterable[Path]) -> dict[Path, str]:
    """A short name per folder: its own, with as many parents as it takes to tell the folders apart."""
    paths = list(folders)
    for depth in range(1, max(len(path.absolute().parts) for path in paths) + 1):
        labels = {path: "/".join(path.absolute().parts[-depth:]) for path in paths}
        if len(set(labels.values())) == len(paths):
            break
    return labels
