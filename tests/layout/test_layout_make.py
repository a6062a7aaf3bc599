"""The commands of a fresh clone, read without running them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def clone(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def planned(folder, *arguments):
    """Return the commands make would run."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", "-s", "-n", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("target", ["install", "study", "check", "test", "planted"])
def test_a_fresh_clone_is_set_up_once(clone, target):
    installs = [line for line in planned(clone, target) if "pip install" in line]
    assert len(installs) == 2
    assert installs[0].endswith("-c constraints.txt torch")
    assert installs[1].endswith('-c constraints.txt -e ".[dev]"')
    stamp = clone / ".venv" / "installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert not [line for line in planned(clone, target) if "pip" in line]


def test_the_study_takes_arguments(clone):
    last = planned(clone, "study", "ARGS=search.trials=1 --json")[-1]
    assert last == ".venv/bin/mmdistill run search_spaces/quickstart.toml search.trials=1 --json"


def test_testing_means_checks_and_tests(clone):
    text = "\n".join(planned(clone, "test"))
    for tool in (
        "ruff check",
        "ruff format --check",
        "mypy",
        "lint-imports",
        "OMP_NUM_THREADS=1 .venv/bin/pytest -n 2",
        "OMP_NUM_THREADS=1 .venv/bin/pytest -m alone",
    ):
        assert tool in text


def test_another_python_can_be_asked_for(clone):
    assert "python3.12 -m venv .venv" in planned(clone, "install", "PYTHON=python3.12")


def test_continuous_integration_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"
