"""Several runs by one command: which runs, in which folders, and what is said about all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqtl_common.errors import ConfigError, InputError
from training.config import FitConfig
from training.series import is_series, open_series, parse_seeds, summarize

CONFIG = FitConfig(data=Path("photos"), epochs=3, seed=8)


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-3", (0, 1, 2, 3)), ("7", (7,)), ("0,3, 7-9", (0, 3, 7, 8, 9)), ("5-5", (5,)), ("9,1", (9, 1))]
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,1", "0-3,2", "1-", "-1", "0..3", "1.5", "0-1000", "0-600,700-1200", "0-99999999999"])
def test_what_are_no_seeds(text: str) -> None:
    with pytest.raises(ConfigError, match="seed"):
        parse_seeds(text)


@given(seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True))
def test_any_list_of_seeds_reads_back(seeds: list[int]) -> None:
    assert list(parse_seeds(",".join(map(str, seeds)))) == seeds


def test_names_of_the_runs(tmp_path: Path) -> None:
    assert list(open_series(tmp_path / "a", CONFIG, (0, 4), None, resume=False).members) == ["seed-0", "seed-4"]
    folds = open_series(tmp_path / "b", CONFIG, None, 3, resume=False).members
    assert list(folds) == ["fold-1", "fold-2", "fold-3"]
    assert [(each.seed, each.split_recipe) for each in folds.values()] == [(8, f"fold {i} of 3") for i in (1, 2, 3)]
    both = open_series(tmp_path / "c", CONFIG, (0, 4), 3, resume=False).members
    assert list(both)[:3] == ["fold-1-seed-0", "fold-1-seed-4", "fold-2-seed-0"]
    assert {(each.seed, each.fold) for each in both.values()} == {(seed, fold) for seed in (0, 4) for fold in (1, 2, 3)}


def test_a_series_is_gone_on_with_by_what_it_recorded(tmp_path: Path) -> None:
    begun = open_series(tmp_path / "a", CONFIG, (0, 4), 3, resume=False)
    assert is_series(tmp_path / "a")
    assert open_series(tmp_path / "a", None, None, None, resume=True) == begun
    moved = CONFIG.model_copy(update={"data": Path("/elsewhere"), "device": "cpu"})
    assert open_series(tmp_path / "a", moved, (0, 4), 3, resume=True).members.keys() == begun.members.keys()
    assert {each.device for each in begun.changed({"device": "cpu"}).members.values()} == {"cpu"}


@pytest.mark.parametrize(
    ("changes", "seeds", "folds", "named"),
    [
        ({}, (0, 5), 3, r"seeds: \[0, 4\] here, \[0, 5\] there"),
        ({}, (0, 4), None, "folds: 3 here, None there"),
        ({"epochs": 4}, (0, 4), 3, "epochs: 3 here, 4 there"),
    ],
)
def test_other_options_are_refused(tmp_path: Path, changes: dict[str, Any], seeds: tuple[int, ...], folds: int | None, named: str) -> None:
    open_series(tmp_path / "a", CONFIG, (0, 4), 3, resume=False)
    with pytest.raises(ConfigError, match=named):
        open_series(tmp_path / "a", CONFIG.model_copy(update=changes), seeds, folds, resume=True)


def test_what_is_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for resume in (False, True):
        with pytest.raises(ConfigError, match="exists already and is no series of runs"):
            open_series(tmp_path, CONFIG, (0,), None, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    open_series(tmp_path / "a", CONFIG, (0,), None, resume=False)
    with pytest.raises(ConfigError, match="go on with it by --resume"):
        open_series(tmp_path / "a", CONFIG, (0,), None, resume=False)
    with pytest.raises(InputError, match=r"there is no series\.json"):
        open_series(tmp_path / "nowhere", None, None, None, resume=True)
    (tmp_path / "a" / "series.json").write_text('{"seeds": [1]}')
    with pytest.raises(InputError, match="is damaged"):
        open_series(tmp_path / "a", None, None, None, resume=True)


def result(accuracy: float, twin: float, auc: float | None = 0.5) -> dict[str, Any]:
    def figures(value: float) -> dict[str, Any]:
        return {"roc_auc": auc, **dict.fromkeys(("accuracy", "balanced_accuracy", "precision", "recall", "f1", "loss"), value)}

    test = {"only_model": 2, "only_twin": 1, "p_value": 1.0}
    return {
        **dict.fromkeys(("epochs", "best_epoch", "jobs", "parameter_sets"), 1),
        "qpu_seconds": 0.0,
        "val": figures(accuracy),
        "test": figures(accuracy),
        "twins": {name: {"val": figures(twin), "test": figures(twin)} for name in ("bottleneck", "linear")},
        "mcnemar": dict.fromkeys(("bottleneck", "linear"), test),
        "logistic_regression": figures(twin),
    }


def test_summary_is_paired(tmp_path: Path) -> None:
    """Runs that differ much, and a twin that is always a little worse: the difference is certain though the means are not."""
    members = open_series(tmp_path / "a", CONFIG, (0, 1, 2), None, resume=False).members
    summary = summarize(members, [result(0.7, 0.69), result(0.8, 0.79), result(0.9, 0.88)])
    assert summary["test"]["accuracy"]["mean"] == pytest.approx(0.8)
    low, high = summary["test"]["accuracy"]["interval"]
    assert low < summary["twins"]["linear"]["test"]["accuracy"]["mean"] < high
    paired = summary["paired"]["linear"]["accuracy"]
    assert paired["mean"] == pytest.approx(0.04 / 3)
    assert 0 > paired["interval"][0] > -0.01
    assert [row["run"] for row in summary["runs"]] == ["seed-0", "seed-1", "seed-2"]
    assert summary["mcnemar"] is None, "seeds share test images: their counts must not be added up"


def test_folds_are_tested_together(tmp_path: Path) -> None:
    folds = open_series(tmp_path / "a", CONFIG, None, 3, resume=False).members
    summary = summarize(folds, [result(0.7, 0.6), result(0.8, 0.6, None), result(0.9, 0.6)])
    assert summary["mcnemar"]["linear"] == {"only_model": 6, "only_twin": 3, "p_value": pytest.approx(0.5078125)}
    assert summary["test"]["roc_auc"] is None, "one run lacks it"
    assert [row["fold"] for row in summary["runs"]] == [1, 2, 3]
    both = open_series(tmp_path / "b", CONFIG, (0, 1), 3, resume=False).members
    assert summarize(both, [result(0.7, 0.6)] * 6)["mcnemar"] is None
