"""The documents tell the truth: their commands run, every command stands in them, their links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHARED = ROOT / "../shared/data"


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def environment(workspace: Path) -> dict[str, str]:
    if not (SHARED / "torch-home").is_dir():
        pytest.skip("README's commands use ImageNet weights; ../shared/data/torch-home is absent")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TORCH_HOME": str((SHARED / "torch-home").resolve()), "HQTL_CACHE": str(workspace / "cache")}


@pytest.mark.timeout(3600)
def test_every_command_of_the_readme_runs(workspace: Path, environment: dict[str, str]) -> None:
    commands = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    assert len(commands) >= 9
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=workspace, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    (script,) = blocks(ROOT / "README.md", "python")
    done = subprocess.run([sys.executable, "-c", script], cwd=workspace, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.match(r"(crack|no_crack) 0\.\d+ \(0\.\d+, 0\.\d+\) ", done.stdout), done.stdout


def test_commands_page_is_what_help_says() -> None:
    spec = importlib.util.spec_from_file_location("make_commands", ROOT / "docs/make_commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs/commands.md").read_text() == module.render(), "run: python docs/make_commands.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]*)(?:#[^)]*)?\)", document.read_text())
    missing = [target for target in targets if target and not (document.parent / target).exists()]
    assert not missing


def test_decisions_are_five_lines() -> None:
    for page in sorted((ROOT / "docs/decisions").glob("*.md")):
        lines = page.read_text().splitlines()
        assert [line.partition(":")[0] for line in lines[2:]] == ["Context", "Decision", "Consequence"], page.name


def test_benchmarks_named_in_the_guide_exist() -> None:
    named = set(re.findall(r"benchmarks/\w+\.py", (ROOT / "docs/guide.md").read_text()))
    assert named == {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")}


def test_every_extra_of_the_readme_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"`(train|serve|quantum|all|dev)`", (ROOT / "README.md").read_text()):
        assert extra in project["optional-dependencies"]
    assert set(project["scripts"]) == {"hqtl-train", "hqtl-score", "hqtl-keys"}


def test_service_variables_stand_in_the_guide() -> None:
    from serving.settings import ServiceSettings

    guide = (ROOT / "docs/guide.md").read_text()
    for name in ServiceSettings.model_fields:
        assert f"`HQTL_{name.upper()}`" in guide, name
