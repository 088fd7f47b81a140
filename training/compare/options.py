"""The file of a comparison: TOML with a base, lists of options to combine, and what to leave out."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hqtl_common.errors import ConfigError, InputError
from training.config import FitConfig

__all__ = ["REPLICATES", "CompareConfig", "DataTable", "combinations", "read_config"]

# Options that repeat a measurement instead of changing what is measured: figures are averaged over them.
REPLICATES = ("seed", "split_seed", "fold")

_FIT_OPTIONS = frozenset(FitConfig.model_fields) - {"data"}


def _whole_path(path: Path) -> Path:
    return path.absolute()


_Folder = Annotated[Path, AfterValidator(_whole_path)]


class DataTable(BaseModel):
    """``[data]``: one folder of images, or several to compare on.

    Args:
        path: The folder.
        paths: Several folders.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: _Folder | None = None
    paths: tuple[_Folder, ...] = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> DataTable:
        if (self.path is None) == (not self.paths):
            raise ValueError("give either path or paths")
        return self

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders in the order given, each once."""
        return tuple(dict.fromkeys(self.paths or (self.path,)))  # type: ignore[arg-type]


class CompareConfig(BaseModel):
    """Everything a comparison says about its runs.

    Args:
        data: Folders of images; relative ones are taken from the current folder.
        base: Options of ``fit`` that all runs share.
        grid: Options of ``fit``, each with a list of values; every combination is a run.
        seeds: Short for ``grid.seed = [0, 1, ..., seeds - 1]``, also for ``run`` tables.
        exclude: Combinations to leave out: a run that has all values of a table (a list means any of them).
        run: Runs of their own, each a table of options over ``base``.
        stack_size: At most so many runs that differ only in seed and learning rate are trained as one program.
        threads: Of each worker. One gives the same figures everywhere; more help where a backbone is trained too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataTable
    base: dict[str, Any] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    seeds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    exclude: list[dict[str, Any]] = []
    run: list[dict[str, Any]] = []
    stack_size: Annotated[int, Field(ge=1, le=1000)] = 32
    threads: Annotated[int, Field(ge=1, le=1024)] = 1

    @model_validator(mode="after")
    def _known_options(self) -> CompareConfig:
        tables = {"base": [self.base], "grid": [self.grid], "run": self.run, "exclude": self.exclude}
        for name, entries in tables.items():
            allowed = _FIT_OPTIONS | {"data"} if name == "exclude" else _FIT_OPTIONS
            if unknown := sorted({key for table in entries for key in table} - allowed):
                hint = "; folders belong into [data]" if "data" in unknown else ""
                raise ValueError(f"{name} has no option {', '.join(unknown)}{hint}; it takes the options of hqtl-train fit")
        if twice := sorted(self.base.keys() & self.grid.keys()):
            raise ValueError(f"{', '.join(twice)} stands in base and in grid; leave it in one")
        if self.seeds is not None and any("seed" in table for table in (self.base, self.grid, *self.run)):
            raise ValueError("seeds is short for a list of seeds in the grid; give seeds or seed, not both")
        if any(not table for table in self.exclude):
            raise ValueError("an empty [[exclude]] would leave out everything")
        return self

    @property
    def varied(self) -> tuple[str, ...]:
        """Names of the options that runs may differ in, in the order of the file, replicates last.

        An option counts even if its list has one value, so that a longer list later keeps the names of the runs.
        """
        names = dict.fromkeys(itertools.chain(self.grid, *self.run, ["seed"] if self.seeds else []))
        found = sorted(names, key=lambda name: name in REPLICATES)
        return ("data", *found) if len(self.data.folders) > 1 else tuple(found)


def read_config(path: Path, overrides: Iterable[str] = (), data: Iterable[Path] = ()) -> CompareConfig:
    """Read and check a file.

    Args:
        path: TOML.
        overrides: ``TABLE.KEY=VALUE`` texts that replace values, for example ``base.epochs=1`` or ``seeds=2``.
        data: Folders that replace those of the file.

    Raises:
        InputError: The file cannot be read or is not TOML.
        ConfigError: Names each table or option that is unknown or out of range.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read as TOML: {error}") from error
    for text in overrides:
        _override(values, text)
    if folders := list(data):
        values["data"] = {"paths": folders}
    try:
        return CompareConfig.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc'])) or 'file'}: {p['msg'].removeprefix('Value error, ')}" for p in error.errors()]
        raise ConfigError(f"{str(path)!r}: {'; '.join(problems)}") from error


def combinations(config: CompareConfig) -> list[dict[str, Any]]:
    """Values of the varied options of every run: the grid's product, then the explicit runs; ``data`` always included."""
    seeds: dict[str, list[Any]] = {} if config.seeds is None else {"seed": list(range(config.seeds))}
    folders: dict[str, list[Any]] = {"data": list(config.data.folders)}
    found: list[dict[str, Any]] = []
    if config.grid or not config.run:
        found += _product(folders | config.grid | seeds)
    for table in config.run:
        found += _product(folders | {name: [value] for name, value in table.items()} | seeds)
    return found


def _product(axes: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _override(values: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    *tables, key = name.split(".")
    if not equals or not all((*tables, key)):
        raise ConfigError(f"a setting is TABLE.KEY=VALUE, for example base.epochs=1; got {text!r}")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{table!r} in {text!r} is no table of single values")
    try:
        values[key] = json.loads(value)
    except ValueError:
        values[key] = value
