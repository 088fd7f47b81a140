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
        "HQTL_PROVIDERS": "cuda, cpu",
        "HQTL_PRELOAD": "aer",
        "HQTL_DECODERS": "10",
        "HQTL_DECODE_TIMEOUT_S": "1.5",
        "HQTL_DEADLINE_S": "2.5",
        "HQTL_KEYS": "/etc/hqtl/keys.json",
        "HQTL_INSECURE_NO_AUTH": "0",
        "HQTL_JOBS": "/var/lib/hqtl/jobs.sqlite",
        "HQTL_MODEL_NAME": "cracks-2",
        "HQTL_UI": "1",
        "HQTL_JOBS_KEEP_DAYS": "11.5",
        "HQTL_JOBS_POLL_S": "12.5",
        "HQTL_JOBS_SETTLE_S": "13.5",
        "HQTL_MAX_WAITING_JOBS": "14",
        "HQTL_MAX_RUNNING_JOBS": "15",
        "HQTL_MAX_QPU_SECONDS_PER_DAY": "15.25",
        "HQTL_MAX_PAID_JOBS_PER_DAY": "15",
        "HQTL_WEBHOOK_HOSTS": "Hooks.example.org, other.example.org:8443",
        "HQTL_WEBHOOK_SECRET": "a secret of some length",
        "HQTL_WEBHOOK_PRIVATE": "1",
        "HQTL_WEBHOOK_CA": "/etc/ssl/own.pem",
        "HQTL_HEADER_TIMEOUT_S": "15.75",
        "HQTL_MAX_INSPECT_BYTES": "16",
        "HQTL_MAX_INSPECT_PIXELS": "17",
        "HQTL_MAX_TILES": "18",
    }
    assert set(values) | set(BUNDLE) == {f"HQTL_{name.upper()}" for name in ServiceSettings.model_fields}
    settings = ServiceSettings.from_environment({**BUNDLE, **values})
    assert settings.backends == ("aer", "pennylane:lightning.qubit")
    assert settings.default_backend == "aer"
    assert (settings.providers, settings.preload) == (("cuda", "cpu"), ("aer",))
    assert (settings.keys, settings.insecure_no_auth) == (Path("/etc/hqtl/keys.json"), False)
    assert (settings.jobs, settings.webhook_private) == (Path("/var/lib/hqtl/jobs.sqlite"), True)
    assert settings.webhook_hosts == ("hooks.example.org", "other.example.org:8443")
    numbers = [value for value in settings.model_dump().values() if isinstance(value, int | float) and not isinstance(value, bool)]
    assert numbers == [1000, 2000, 3, 4000, 5, 6, 7, 8, 9, 10, 1.5, 2.5, 11.5, 12.5, 13.5, 14, 15, 15.25, 15, 15.75, 16, 17, 18]
    assert "a secret" not in f"{settings} {settings!r} {settings.model_dump_json()}"


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
        ("HQTL_PROVIDERS", "cpu,gpu"),
        ("HQTL_PROVIDERS", "cpu,cpu"),
        ("HQTL_PRELOAD", "nonsense"),
        ("HQTL_DECODE_TIMEOUT_S", "0"),
        ("HQTL_KEYS", ""),
        ("HQTL_INSECURE_NO_AUTH", "maybe"),
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


def test_keys_and_no_authentication_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="HQTL_KEYS and HQTL_INSECURE_NO_AUTH exclude each other"):
        ServiceSettings.from_environment({**BUNDLE, "HQTL_KEYS": "k", "HQTL_INSECURE_NO_AUTH": "1"})


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


@pytest.mark.parametrize("more", [{}, {"HQTL_JOBS": "jobs.sqlite", "HQTL_INSECURE_NO_AUTH": "1"}])
def test_paid_backends_need_a_file_for_what_they_spend_and_keys(more: dict[str, str]) -> None:
    paid = {**BUNDLE, "HQTL_BACKENDS": "statevector,ibm:ibm_fez"}
    with pytest.raises(ConfigError, match=r"ibm:ibm_fez of HQTL_BACKENDS is paid: it needs HQTL_JOBS"):
        ServiceSettings.from_environment({**paid, **more})
    assert ServiceSettings.from_environment({**paid, "HQTL_JOBS": "jobs.sqlite"}).backends[1] == "ibm:ibm_fez"


@pytest.mark.parametrize(
    "more",
    [
        {"HQTL_WEBHOOK_SECRET": "x" * 16},
        {"HQTL_JOBS": "j"},
        {"HQTL_JOBS": "j", "HQTL_WEBHOOK_SECRET": "short-secret"},
        {"HQTL_JOBS": "j", "HQTL_WEBHOOK_SECRET": "x" * 16, "HQTL_WEBHOOK_HOSTS": "https://hooks.example.org/"},
        {"HQTL_JOBS": "j", "HQTL_WEBHOOK_SECRET": "x" * 16, "HQTL_WEBHOOK_HOSTS": "hooks.example.org,*"},
    ],
)
def test_web_hooks_need_jobs_a_secret_and_plain_hosts(more: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="HQTL_WEBHOOK_HOSTS") as caught:
        ServiceSettings.from_environment({**BUNDLE, "HQTL_WEBHOOK_HOSTS": "hooks.example.org", **more})
    assert "short-secret" not in str(caught.value)


def test_only_what_is_offered_is_loaded_ahead() -> None:
    with pytest.raises(ConfigError, match="HQTL_PRELOAD names fake_lima, which HQTL_BACKENDS does not offer"):
        ServiceSettings.from_environment({**BUNDLE, "HQTL_PRELOAD": "aer,fake_lima"})
