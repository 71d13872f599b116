"""The packages install with pip: their wheels hold every module."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ENVIRONMENTS = Path(__file__).parents[2] / "environments"
MODULES = ["calculator_tools", "math_reasoning", "question_answer", "reasoning_gym_tasks", "visual_tasks"]


@pytest.fixture(scope="module", params=MODULES)
def wheel(request, tmp_path_factory):
    """The module's name and its wheel, built from a copy so that the source tree stays clean."""
    folder = tmp_path_factory.mktemp(request.param)
    source = shutil.copytree(
        ENVIRONMENTS / request.param,
        folder / "source",
        ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"),
    )
    program = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True, check=True
    )
    return request.param, folder / done.stdout.split()[-1]


def test_the_wheel_holds_every_module(wheel):
    module, built = wheel
    expected = {
        str(p.relative_to(ENVIRONMENTS / module)) for p in (ENVIRONMENTS / module / module).glob("*.py")
    }
    assert f"{module}/__init__.py" in expected
    assert expected <= set(zipfile.ZipFile(built).namelist())


@pytest.mark.parametrize("module", MODULES)
def test_the_project_file(module):
    project = tomllib.loads((ENVIRONMENTS / module / "pyproject.toml").read_text())["project"]
    assert project["name"] == module.replace("_", "-")
    verifiers = next(r for r in map(Requirement, project["dependencies"]) if r.name == "verifiers")
    assert "0.3.1" in verifiers.specifier
    assert "0.4.0" not in verifiers.specifier
    assert (ENVIRONMENTS / module / project["readme"]).is_file()
