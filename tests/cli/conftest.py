"""A small study on planted data, run in this process, and commands called as functions."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from mmdistill.cli import running
from mmdistill.cli.main import main
from mmdistill.cluster.inline import run_inline
from mmdistill.pipeline.cache import StageCache

ROOT = Path(__file__).parents[2]
STUDY_FILE = """
name = "tiny"
[run]
epochs = 2
batch_size = 16
teachers = { epochs = 2, out_of_fold = 2 }
[run.data]
dataset = "planted"
options = { rows = [48, 24, 24] }
student = ["face"]
privileged = ["audio"]
[[arms]]
name = "student_only"
recipe = "student_only"
[[arms]]
name = "hinton"
recipe = "hinton"
[search]
trials = 2
startup = 2
top = 1
seeds = 1
[confirm]
pairs = 2
[[contrasts]]
question = "Do privileged modalities help?"
arm = "hinton"
against = "student_only"
"""


def on_inline(session, cache, listen):
    run_inline(session, StageCache(cache), listen)


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY_FILE)
    return path


@pytest.fixture
def inline(monkeypatch):
    """Let `run` execute in this process instead of on Ray."""
    monkeypatch.setattr(running, "on_ray", on_inline)


class Answer:
    """What a command left behind."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def lines(self):
        return self.err.splitlines()

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(scope="session")
def first_run(tmp_path_factory):
    """Return what the first run of a study printed; its folder is that of ``finished``."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(STUDY_FILE)
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = running.run_study(folder / "tiny.toml", output=folder / "tiny", executor=on_inline)
    found = Answer(code, out.getvalue(), err.getvalue())
    found.folder = folder / "tiny"
    return found


@pytest.fixture(scope="session")
def finished(first_run):
    """Return the folder of a finished study; read it only. Its file lies beside it."""
    return first_run.folder


@pytest.fixture
def call(capsys):
    """Return ``call(*arguments)``: run a command in this process."""

    def _call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        found = capsys.readouterr()
        return Answer(code, found.out, found.err)

    return _call


@pytest.fixture
def python():
    """Return ``python(code, *arguments)``: run code in a fresh interpreter."""

    def _python(code, *arguments, **options):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")} | options.pop("env", {})
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False, **options
        )

    return _python
