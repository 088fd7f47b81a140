"""Shared by all tests."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

from hqtl_common import ModelBundle
from tests.tiny import tiny_bundle

# The same examples in every run, and no deadline: the machine is shared.
hypothesis.settings.register_profile("hqtl", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("hqtl")


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
