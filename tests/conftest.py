"""Shared by all tests."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis.internal.conjecture import providers

from hqtl_common import ModelBundle
from tests.tiny import tiny_bundle

# The same examples in every run, whatever other tests have imported before, and no deadline: the machine is shared.
slow = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("hqtl", deadline=None, derandomize=True, print_blob=True, suppress_health_check=slow)
hypothesis.settings.load_profile("hqtl")
providers.is_local_module_file = lambda path: False  # else it draws numbers from the source of every module of ours that is loaded


@pytest.fixture(autouse=True)
def _same_numbers_whatever_ran_before() -> None:
    """Without this torch begins with another seed in every process, and all generators go on where the last test has left them."""
    random.seed(0)
    np.random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture
def open_files(tmp_path: Path) -> Callable[[], list[str]]:
    """What of ``tmp_path`` this process holds open; the number of all open files depends on what the collector closes meanwhile."""

    def found() -> list[str]:
        held = []
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # the listing itself is over
                held.append(str(entry.readlink()))
        return [path for path in held if path.startswith(str(tmp_path))]

    return found


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A bundle of a few kilobytes; read-only."""
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs and weights beside the repository; absent on most machines."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared/data of real photographs")
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 synthetic photographs with cracks so wide that a random backbone tells them apart; read-only."""
    from training.synth import SynthSpec, write_dataset

    folder = tmp_path_factory.mktemp("synthetic") / "photographs"
    write_dataset(folder, 40, seed=0, spec=SynthSpec(crack_width=(8.0, 16.0), contrast=(0.9, 1.0)))
    return folder


@pytest.fixture(scope="session")
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of features for all trainings of a session."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="session", autouse=True)
def _no_test_writes_to_the_users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HQTL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def train(photographs: Path, feature_cache: Path) -> Callable[..., dict[str, Any]]:
    """``train(run_folder, resume=False, **options)``: a training of a second or so with random weights; its result."""
    from training.config import FitConfig
    from training.fit import fit, open_run

    def train(path: Path, *, resume: bool = False, **options: Any) -> dict[str, Any]:
        config = FitConfig.parse({"data": photographs, "weights": "none", "epochs": 6, **options})
        run, config = open_run(path, config, resume=resume)
        return fit(config, run, feature_cache)

    return train


@pytest.fixture(scope="session")
def finished_run(train: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training on ``photographs``; read-only."""
    path = tmp_path_factory.mktemp("finished") / "run"
    train(path, num_layers=2)
    return path


@pytest.fixture(scope="session")
def exported_bundle(finished_run: Path, feature_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``finished_run`` as a bundle with the fused model; read-only."""
    from training.export import export_run

    return export_run(finished_run, tmp_path_factory.mktemp("exported") / "bundle", fused=True, cache_folder=feature_cache).path
