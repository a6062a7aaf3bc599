import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmdistill

COMMANDS = ("run", "status", "query", "table", "tensorboard", "datasets", "recipes", "doctor")
START = "import sys; from mmdistill.cli.main import main; sys.exit(main())"


def test_version(call):
    assert call("--version").out == f"{mmdistill.__version__}\n"


def test_help_lists_every_command(call):
    answer = call("--help")
    assert answer.code == 0
    assert all(command in answer.out for command in COMMANDS)
    assert call().out == answer.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rn"], 'Did you mean "run"?'),
        (["table", "x", "--formt", "csv"], "Did you mean --format?"),
        (["table", "x", "--format", "cvs"], 'Did you mean "csv"?'),
        (["tensorboard", "x", "--port", "0"], "Must be >= 1"),
        (["tensorboard", "x", "--port", "many"], "Invalid value"),
        (["run"], "FILE"),
        (["query", "x"], "SQL"),
        (["status", "x", "y"], "y"),
        (["doctor", "--json=maybe"], "maybe"),
    ],
)
def test_a_wrong_call_is_one_line_and_2(call, arguments, message):
    answer = call(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert len(answer.lines) == 1
    assert answer.err.startswith("mmdistill: ")
    assert message in answer.err


WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "--json",
            "--format",
            "csv",
            "--output",
            "--cache",
            "--",
            "-",
            "-x",
            "a=b",
            "a.b=[1",
            "..",
            "/",
            "--help",
        ]
    ),
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    command=st.one_of(st.sampled_from(["run", "status", "query", "table"]), st.text(max_size=8)),
    words=st.lists(WORDS, max_size=4),
)
def test_no_arguments_give_a_traceback(call, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    answer = call(command, *words)
    assert answer.code in {0, 2}
    if answer.code == 2:
        assert answer.lines
        assert all(line.startswith("mmdistill: ") for line in answer.lines)
    assert list(tmp_path.iterdir()) == []


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    key=st.sampled_from(
        [
            "name",
            "seed",
            "arms",
            "run",
            "run.data",
            "run.data.dataset",
            "search",
            "search.space.x",
            "confirm.pairs",
        ]
    ),
    value=st.one_of(
        st.sampled_from(
            ["", "[]", "{}", "-1", "nan", "1e999", "true", "[[1]]", "{a=1}", "1979-05-27", '"x/y"']
        ),
        st.text(max_size=10),
    ),
)
def test_no_edit_gives_a_traceback(call, study_file, key, value):
    # A trial more or less is a fine edit, so the last one is always wrong.
    answer = call("run", study_file, f"{key}={value}", "margin=-1")
    assert answer.code == 2
    assert answer.lines
    assert all(line.startswith("mmdistill: ") for line in answer.lines)
    assert [path.name for path in study_file.parent.iterdir()] == ["tiny.toml"]


def test_a_reader_that_leaves_early_is_no_error(python, finished):
    code = f"""
import os, subprocess, sys
command = [sys.executable, "-c", {START!r}, "query", {str(finished)!r}, "SELECT * FROM range(200000)"]
process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
process.stdout.readline()
process.stdout.close()
err = process.stderr.read()
print(process.wait(), repr(err.replace("200000 rows", "").strip()))
"""
    assert python(code).stdout == "0 ''\n"


def test_a_terminal_that_cannot_show_a_character_is_no_error(python, finished):
    done = python(START, "table", finished, env={"PYTHONIOENCODING": "ascii"})
    # `python -c` takes what follows as arguments.
    assert done.returncode == 0, done.stderr
    assert "\\xb1" in done.stdout


def test_starts_quickly():
    environment = {**os.environ, "PYTHONPATH": str(Path(mmdistill.__file__).parents[1])}
    code = "import time, mmdistill.cli.main as m; print(time.process_time())"
    seconds = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, check=True
            ).stdout
        )
        for _ in range(3)
    ]
    # Measured: 0.12 s. Twice that means that something heavy crept in.
    assert min(seconds) < 0.3


def test_help_loads_nothing_heavy(python):
    code = """
import sys
from mmdistill.cli.main import main
assert main(["--help"]) == 0
assert not {"torch", "ray", "optuna", "numpy", "pyarrow", "duckdb", "pydantic"} & set(sys.modules)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_no_colour_when_asked(python):
    done = python(START, "--help", env={"NO_COLOR": "1", "FORCE_COLOR": ""})
    assert "\x1b[3" not in done.stdout
