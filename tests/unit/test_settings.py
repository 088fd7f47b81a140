"""The environment of the service → settings, or one sentence that names the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from hqtl_common.errors import ConfigError
from serving.settings import DEFAULT_BACKENDS, ServiceSettings

BUNDLE = {"HQTL_BUNDLE": "some/bundle"}


def test_defaults_are_the_documented_ones() -> None:
    settings = ServiceSettings.from_environment({**BUNDLE, "PATH": "/bin", "HQTL_CACHE": "/elsewhere"})
    assert settings.bundle == Path("some/bundle")
    assert settings.backends == DEFAULT_BACKENDS == ("statevector", "pennylane:default.qubit", "aer")
    assert settings.default_backend == "statevector"
    assert (settings.max_bytes, settings.max_pixels, settings.max_images, settings.threads) == (16 * 2**20, 25_000_000, 64, None)


def test_every_variable_is_read() -> None:
    values = {
        "HQTL_BACKENDS": " aer , pennylane:lightning.qubit",
        "HQTL_MAX_BYTES": "1000",
        "HQTL_MAX_PIXELS": "2000",
        "HQTL_MAX_IMAGES": "3",
        "HQTL_MAX_BODY_BYTES": "4000",
        "HQTL_MAX_SHOTS": "5",
        "HQTL_MAX_TOTAL_SHOTS": "6",
        "HQTL_MAX_REQUESTS": "7",
        "HQTL_MAX_BATCH": "8",
        "HQTL_THREADS": "9",
        "HQTL_DEADLINE_S": "2.5",
    }
    assert set(values) | set(BUNDLE) == {f"HQTL_{name.upper()}" for name in ServiceSettings.model_fields}
    settings = ServiceSettings.from_environment({**BUNDLE, **values})
    assert settings.backends == ("aer", "pennylane:lightning.qubit")
    assert settings.default_backend == "aer"
    numbers = settings.model_dump(exclude={"bundle", "backends"})
    assert list(numbers.values()) == [1000, 2000, 3, 4000, 5, 6, 7, 8, 9, 2.5]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HQTL_BUNDLE", ""),
        ("HQTL_BACKENDS", ""),
        ("HQTL_BACKENDS", "statevector,,aer"),
        ("HQTL_BACKENDS", "statevector,statevector"),
        ("HQTL_BACKENDS", "statevector,quantum"),
        ("HQTL_MAX_BYTES", "16MB"),
        ("HQTL_MAX_BYTES", "0"),
        ("HQTL_MAX_PIXELS", "-1"),
        ("HQTL_MAX_IMAGES", "1.5"),
        ("HQTL_MAX_SHOTS", "10000001"),
        ("HQTL_THREADS", "0"),
        ("HQTL_DEADLINE_S", "nan"),
        ("HQTL_DEADLINE_S", "inf"),
        ("HQTL_DEADLINE_S", "60"),
        ("HQTL_DEADLINE_S", "soon"),
    ],
)
def test_a_wrong_value_names_the_variable_what_was_expected_and_what_came(variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServiceSettings.from_environment({**BUNDLE, variable: value})
    message = str(caught.value)
    assert message.startswith(f"{variable} must be ")
    assert f"got {value!r}" in message
    assert "\n" not in message


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"HQTL_MAX_BYTES must .*; HQTL_THREADS must "):
        ServiceSettings.from_environment({**BUNDLE, "HQTL_THREADS": "x", "HQTL_MAX_BYTES": "y"})


def test_an_unset_bundle_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"^HQTL_BUNDLE is not set; .*HQTL_BUNDLE=BUNDLE bentoml serve$"):
        ServiceSettings.from_environment({})


@pytest.mark.parametrize("typo", ["HQTL_BACKEND", "HQTL_MAX_IMAGE", "HQTL_DEADLINE"])
def test_a_misspelt_variable_is_refused(typo: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{typo} is not a setting of the service; HQTL_\w+ is"):
        ServiceSettings.from_environment({**BUNDLE, typo: "1"})


def test_settings_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ServiceSettings(bundle=Path("b")).threads = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra inputs"):
        ServiceSettings(bundle=Path("b"), cores=3)  # type: ignore[call-arg]


def test_paid_backends_are_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"HQTL_BACKENDS.*ibm:ibm_fez is paid"):
        ServiceSettings.from_environment({"HQTL_BUNDLE": "bundle", "HQTL_BACKENDS": "statevector,ibm:ibm_fez"})
