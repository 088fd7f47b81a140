"""What stands in docs/deploy fits the service: variables, packages, addresses, times and files. Nothing is built: that needs an engine."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.auth import OPEN_PATHS
from serving.settings import MAX_DEADLINE_S, ServiceSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs/deploy"
PORT = 3000
UID = 10001


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Of the Containerfile: (word, rest of the line)."""
    lines = [line for line in (DEPLOY / "Containerfile").read_text().splitlines() if not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]


@pytest.fixture(scope="module")
def image(instructions: list[tuple[str, str]]) -> dict[str, str]:
    """The variables of the image."""
    return dict(pair.split("=", 1) for word, rest in instructions if word == "ENV" for pair in shlex.split(rest))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["service"]
    return service


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    deployment, _ = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def test_what_is_copied_is_there_and_is_all_that_the_build_reads(instructions: list[tuple[str, str]]) -> None:
    sources = {source for word, rest in instructions if word == "COPY" for source in rest.split()[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert sources == {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *packages}
    assert all((ROOT / source).exists() for source in sources)


def test_the_packages_are_extras_of_the_project_and_hold_no_training(instructions: list[tuple[str, str]]) -> None:
    (extras,) = [found[1] for _, rest in instructions if (found := re.search(r"/src\[([a-z,]+)\]", rest))]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) == {"serve", "quantum"} <= set(known)


def test_every_variable_is_a_setting_with_a_value_that_can_be_used(
    image: dict[str, str], compose: dict[str, Any], pod: dict[str, Any]
) -> None:
    given = [image, compose["environment"], {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}]
    settings = {name for variables in given for name in variables if name.startswith("HQTL_")}
    assert settings <= {f"HQTL_{field.upper()}" for field in ServiceSettings.model_fields}
    for variables in given:
        ServiceSettings.from_environment(image | variables)


def test_what_must_survive_lies_on_the_volume(image: dict[str, str], compose: dict[str, Any], pod: dict[str, Any]) -> None:
    assert Path(image["HQTL_KEYS"]).parent == Path(image["HQTL_JOBS"]).parent == Path("/data")
    assert "data:/data" in compose["volumes"]
    claims = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert {mounts["/data"], mounts[image["HQTL_BUNDLE"]]} == claims


def test_bundle_and_root_are_read_only_and_nobody_is_root(
    instructions: list[tuple[str, str]], compose: dict[str, Any], pod: dict[str, Any]
) -> None:
    assert ("USER", str(UID)) in instructions
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == UID
    assert compose["read_only"]
    assert compose["volumes"][0]["read_only"]
    container = pod["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert next(mount for mount in container["volumeMounts"] if mount["name"] == "bundle")["readOnly"]


def test_probes_ask_what_is_open(instructions: list[tuple[str, str]], compose: dict[str, Any], pod: dict[str, Any]) -> None:
    (health,) = [rest for word, rest in instructions if word == "HEALTHCHECK"]
    command = json.loads(health[health.index("CMD") + 4 :])
    asked = re.search(rf"http://127\.0\.0\.1:{PORT}(/[a-z]+)'", command[-1])
    assert asked is not None
    probes = {name: probe["httpGet"]["path"] for name, probe in pod["containers"][0].items() if name.endswith("Probe")}
    assert {asked[1], *probes.values()} <= OPEN_PATHS
    assert probes["livenessProbe"] != probes["readinessProbe"]  # keys that cannot be read do not restart it
    assert ("EXPOSE", str(PORT)) in instructions
    assert pod["containers"][0]["ports"][0]["containerPort"] == PORT
    assert compose["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]


def test_a_stop_leaves_time_for_the_longest_request(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    assert int(compose["stop_grace_period"].removesuffix("s")) > MAX_DEADLINE_S
    assert pod["terminationGracePeriodSeconds"] > MAX_DEADLINE_S
