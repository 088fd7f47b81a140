"""A comparison's file: what it may say, which runs it makes, and that nothing runs while anything is wrong."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqtl_common.backends.opening import Limits
from hqtl_common.errors import ConfigError, InputError
from training.compare.checks import RunChecker
from training.compare.grid import PlannedRun, make_runs, stacks
from training.compare.options import CompareConfig, read_config


def config(**values: Any) -> CompareConfig:
    return CompareConfig.model_validate({"data": {"path": "photographs"}, **values})


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "compare.toml"
    path.write_text(text, "utf-8")
    return path


def names(runs: list[PlannedRun]) -> list[str]:
    return [run.name for run in runs]


def test_file_with_settings(tmp_path: Path) -> None:
    path = written(tmp_path, 'seeds = 10\n[data]\npath = "a"\n[base]\nepochs = 100\n[grid]\nnum_layers = [1, 2]\n')
    read = read_config(path, ["base.epochs=1", "seeds=2", 'grid.backend=["statevector"]', "base.split=60/20/20"], [tmp_path / "b"])
    assert (read.base, read.seeds) == ({"epochs": 1, "split": "60/20/20"}, 2)
    assert read.grid == {"num_layers": [1, 2], "backend": ["statevector"]}
    assert read.data.folders == (tmp_path / "b",)
    assert read.varied == ("num_layers", "backend", "seed")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[grid]\nnum_layers = [1]", "data: Field required"),
        ("[data]\npath = 'a'\npaths = ['b']", "either path or paths"),
        ("[data]\npath = 'a'\n[grid]\nlayers = [1]", "grid has no option layers"),
        ("[data]\npath = 'a'\n[grid]\ndata = ['b']", "grid has no option data; folders belong into [data]"),
        ("[data]\npath = 'a'\n[base]\nlr = 1\n[grid]\nlr = [1]", "lr stands in base and in grid"),
        ("seeds = 2\n[data]\npath = 'a'\n[grid]\nseed = [1]", "seeds is short for"),
        ("[data]\npath = 'a'\n[grid]\nnum_layers = []", "grid.num_layers"),
        ("[data]\npath = 'a'\n[[exclude]]", "would leave out everything"),
        ("colour = 1\n[data]\npath = 'a'", "colour: Extra inputs"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        read_config(written(tmp_path, text))


def test_no_file_and_no_setting(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as TOML"):
        read_config(written(tmp_path, "a = ["))
    path = written(tmp_path, "[data]\npath = 'a'")
    for text, said in (("epochs", "TABLE.KEY=VALUE"), ("=1", "TABLE.KEY=VALUE"), ("data.path.x=1", "no table")):
        with pytest.raises(ConfigError, match=said):
            read_config(path, [text])


def test_product_with_seeds_and_exclusions() -> None:
    grid = {"num_layers": [1, 2, 3], "diff_method": ["backprop", "parameter-shift"]}
    runs = make_runs(config(grid=grid, seeds=2, exclude=[{"num_layers": [2, 3], "diff_method": "parameter-shift"}]))
    kept = [(1, "backprop"), (1, "parameter-shift"), (2, "backprop"), (3, "backprop")]
    assert [(run.config.num_layers, run.config.diff_method, run.config.seed) for run in runs] == [
        (*pair, seed) for pair, seed in itertools.product(kept, (0, 1))
    ]
    assert runs[1].name == "num_layers=1,diff_method=backprop,seed=1"
    assert runs[1].group == "num_layers=1,diff_method=backprop"


def test_runs_of_their_own_and_names_of_folders() -> None:
    chosen = config(data={"paths": ["/a/x/photos", "/a/y/photos"]}, run=[{"backend": "aer", "shots": 100}, {"num_layers": 2}], seeds=1)
    runs = make_runs(chosen)
    assert [run.varied["data"] for run in runs] == ["x/photos", "y/photos"] * 2
    assert runs[0].name.startswith("data=x_photos-")
    assert runs[0].name.endswith(",backend=aer,shots=100,seed=0")
    assert runs[3].config.data == Path("/a/y/photos")


def test_longer_lists_keep_the_names() -> None:
    short = names(make_runs(config(grid={"num_layers": [1]}, seeds=1)))
    assert set(short) < set(names(make_runs(config(grid={"num_layers": [1, 2]}, seeds=3))))


def test_what_could_not_run_can_be_left_out() -> None:
    grid = {"num_layers": [1, 9], "ansatz": ["commuting", "real_amplitudes"]}
    with pytest.raises(ConfigError, match="num_layers=9,ansatz=commuting: num_layers must be at most 2"):
        make_runs(config(grid=grid))
    left = make_runs(config(grid=grid, exclude=[{"num_layers": 9, "ansatz": "commuting", "embedding": "angle"}]))
    assert [(run.config.num_layers, run.config.ansatz) for run in left] == [
        (1, "commuting"),
        (1, "real_amplitudes"),
        (9, "real_amplitudes"),
    ]


def test_every_bad_combination_is_named_before_anything_runs() -> None:
    with pytest.raises(ConfigError) as caught:
        make_runs(config(grid={"num_layers": [0, 1], "entangler": ["pairwise", "ring"]}))
    assert str(caught.value).startswith("3 combinations cannot run")
    for name in ("num_layers=0,entangler=pairwise", "num_layers=0,entangler=ring", "num_layers=1,entangler=ring"):
        assert name in str(caught.value)
    with pytest.raises(ConfigError, match="exclude 1: leaves out nothing"):
        make_runs(config(grid={"num_layers": [1]}, exclude=[{"num_layers": 2}]))
    with pytest.raises(ConfigError, match="every combination is excluded"):
        make_runs(config(grid={"num_layers": [1]}, exclude=[{"num_layers": 1}]))
    with pytest.raises(ConfigError, match="is there 2 times"):
        make_runs(config(grid={"num_layers": [1, 1]}))


def test_checks_name_backend_method_limit_and_split(photographs: Path) -> None:
    grid = {"backend": ["statevector", "aer", "ibm:ibm_fez", "nowhere"], "diff_method": ["auto", "backprop"], "group_by": ["none", "("]}
    runs = make_runs(config(data={"path": photographs}, grid=grid, base={"shots": 100}))
    with pytest.raises(ConfigError) as caught:
        RunChecker(Limits()).check(runs)
    said = str(caught.value)
    assert said.startswith("14 combinations cannot run")  # all but auto on statevector and aer
    for reason in ("costs money", "unknown backend 'nowhere'", "backprop", "group"):
        assert reason in said
    with pytest.raises(ConfigError, match="no folder"):
        RunChecker(Limits()).check(make_runs(config()))


def test_plan_of_a_run(photographs: Path) -> None:
    (run,) = make_runs(config(data={"path": photographs}, base={"epochs": 2, "diff_method": "parameter-shift"}))
    checker = RunChecker(Limits())
    checker.check([run])
    train, val, test, rows = 28, 6, 6, 17  # 17 rows per image at L = 1
    assert checker.plan(run).counts.parameter_sets == 2 * (train * rows + val) + val + test


@given(
    st.dictionaries(
        st.sampled_from(["backend", "weights", "group_by", "positive"]),
        st.lists(st.text(min_size=1, max_size=12).filter(str.isprintable), min_size=1, max_size=3, unique=True),
        max_size=3,
    )
)
def test_names_are_folders_of_their_own(grid: dict[str, list[str]]) -> None:
    runs = make_runs(config(grid=grid))
    assert len(set(names(runs))) == len(runs)
    for name in names(runs):
        assert Path(name).name == name
        assert name not in (".", "..")
        assert name.isascii()


def test_stacks_hold_what_differs_only_in_seeds() -> None:
    runs = make_runs(config(grid={"num_layers": [1, 2], "lr": [1e-3, 1e-2]}, seeds=3))
    together = stacks(runs, 4)
    assert [len(members) for members in together] == [4, 2, 4, 2]
    assert all(len({run.config.num_layers for run in members}) == 1 for members in together)
    assert sorted(names([run for members in together for run in members])) == sorted(names(runs))
    known = [[run.name for run in together[1]], ["gone", runs[0].name]]
    again = stacks(runs, 4, known)
    assert names(again[0]) == known[0]
    assert sum(map(len, again)) == len(runs)


def test_config_survives_its_record() -> None:
    chosen = config(grid={"backend_options": [{"mitigation": "readout"}, {}]}, seeds=2, exclude=[{"seed": 1, "backend_options": [{}]}])
    read = CompareConfig.model_validate(json.loads(chosen.model_dump_json()))
    assert names(make_runs(read)) == names(make_runs(chosen))
    assert len(make_runs(read)) == 3
