"""Options of a training: checked at the edge, recorded whole, compared on resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqtl_common import HeadSpec, PreprocessSpec
from hqtl_common.errors import ConfigError
from training.config import FitConfig

WHOLE = {
    "data": Path("photos"),
    "backbone": "vgg16",
    "weights": "none",
    "num_qubits": 3,
    "embedding": "reuploading",
    "entangler": "circular",
    "num_layers": 3,
    "epochs": 7,
    "batch_size": 2,
    "lr": 0.01,
    "weight_decay": 0.0,
    "patience": 2,
    "split": "60/20/20",
    "split_seed": 8,
    "group_by": "source",
    "backend": "aer",
    "diff_method": "spsa",
    "shots": 100,
    "seed": 5,
    "positive": "crack",
    "device": "cpu",
    "tensorboard": True,
}


def config(**options: Any) -> FitConfig:
    return FitConfig.parse({"data": "photos", **options})


def test_defaults_are_those_of_the_documents() -> None:
    documented = {
        "backbone": "resnet18",
        "weights": "imagenet",
        "num_qubits": 4,
        "embedding": "angle",
        "entangler": "pairwise",
        "ansatz": "real_amplitudes",
        "num_layers": 1,
        "epochs": 100,
        "batch_size": 4,
        "lr": 4e-4,
        "weight_decay": 2e-3,
        "patience": None,
        "split": "70/15/15",
        "folds": None,
        "fold": None,
        "split_seed": None,
        "group_by": "none",
        "backend": "statevector",
        "diff_method": "auto",
        "shots": None,
        "seed": 0,
        "positive": None,
        "device": "auto",
    }
    assert {name: config().model_dump()[name] for name in documented} == documented
    assert config().head_spec == HeadSpec()
    spec = HeadSpec(num_qubits=3, embedding="angle_rx", entangler="linear", num_layers=4)
    assert config(num_qubits=3, embedding="angle_rx", entangler="linear", num_layers=4).head_spec == spec
    assert config(ansatz="commuting").head_spec == HeadSpec(ansatz="commuting")
    assert config().preprocess_spec == PreprocessSpec()


@given(
    values=st.fixed_dictionaries(
        {"data": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)},
        optional={
            "lr": st.floats(1e-300, 1, exclude_min=True),
            "weight_decay": st.floats(0, 1),
            "seed": st.integers(0, 2**63 - 1),
            "split_seed": st.none() | st.integers(0, 2**63 - 1),
            "patience": st.none() | st.integers(1, 10**6),
            "shots": st.none() | st.integers(1, 10**7),
            "positive": st.none() | st.text(),
            "group_by": st.text(),
        },
    )
)
def test_json_round_trip(values: dict[str, Any]) -> None:
    found = FitConfig.parse(values)
    assert FitConfig.parse(json.loads(found.model_dump_json())) == found
    assert not found.differences(FitConfig.parse(json.loads(found.model_dump_json())))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_layers", 0),
        ("num_layers", 1001),
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("lr", 0),
        ("lr", -1e-3),
        ("lr", float("nan")),
        ("lr", 1e300),  # overflows torch's float
        ("weight_decay", -1e-9),
        ("weight_decay", float("inf")),
        ("weight_decay", 1e300),
        ("patience", 0),
        ("shots", 0),
        ("shots", 10**7 + 1),
        ("seed", -1),
        ("seed", 2**64),  # more than torch's generator takes
        ("split_seed", -1),
        ("num_qubits", 1),
        ("folds", 2),
        ("fold", 0),
        ("device", "tpu"),
        ("learning_rate", 1e-3),
        ("data", "undecodable \udcff"),
        ("weights", "undecodable \udcff"),
    ],
)
def test_what_is_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{option}: .*; got ") as caught:
        config(**{option: value})
    assert repr(value) in str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"epochs: .*; lr: "):
        config(epochs=0, lr=-1)


@pytest.mark.parametrize(("folds", "fold"), [(5, None), (None, 1), (5, 6)])
def test_a_fold_is_one_of_the_folds(folds: int | None, fold: int | None) -> None:
    with pytest.raises(ConfigError, match=rf"fold: one of 1 to the number of folds, and both or none; got fold {fold} of {folds}"):
        config(folds=folds, fold=fold)


@pytest.mark.parametrize(("option", "value"), [("embedding", "basis"), ("entangler", "ring"), ("ansatz", "brick")])
def test_heads_that_there_are_not_are_refused_at_once(option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option} must be one of .*; got '{value}'"):
        config(**{option: value})


def test_what_divides_the_images() -> None:
    assert (config(seed=3).split_recipe, config(seed=3).data_seed) == ("70/15/15", 3)
    assert (config(seed=3, split_seed=0, folds=5, fold=2).split_recipe, config(seed=3, split_seed=0).data_seed) == ("fold 2 of 5", 0)


def test_it_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("option", sorted(WHOLE))
def test_differences_name_each_option(option: str) -> None:
    mine, theirs = FitConfig.parse(WHOLE), FitConfig.parse({**WHOLE, option: config(data="elsewhere").model_dump()[option]})
    found = mine.differences(theirs)
    if option in ("data", "device", "tensorboard"):
        assert found == []
    else:
        other = config().model_dump()[option]
        assert found == [f"{option}: {WHOLE[option]!r} here, {other!r} there"]


def test_training_record_is_json_without_places(tmp_path: Path) -> None:
    record = config(data=tmp_path, weights=str(tmp_path / "mine.pth"), device="cpu").training_record()
    assert str(tmp_path) not in json.dumps(record)
    assert record["weights"] == "mine.pth"
    assert config().training_record()["weights"] == "imagenet"
    assert set(record) == set(FitConfig.model_fields) - {"data", "device", "tensorboard"}


def test_where_things_lie_does_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run resumed from another folder must find its data again."""
    monkeypatch.chdir(tmp_path)
    found = FitConfig.parse({"data": "photos", "weights": "mine.pth"})
    assert found.data == tmp_path / "photos"
    assert found.weights == str(tmp_path / "mine.pth")
    assert config(weights="none").weights == "none"
