import csv
import io
import json
import os
import sys

import pytest

from mmdistill.cli.printing import plain, print_json, text_table
from mmdistill.cli.reading import MEANS_FIRST

HEAVY = "import sys; bad = {'torch', 'ray', 'optuna', 'sklearn'} & set(sys.modules); assert not bad, bad"


def test_status_counts_runs_by_arm_and_phase(call, finished):
    answer = call("status", finished)
    assert answer.code == 0
    first, header, _, *arms = answer.out.splitlines()
    assert first.startswith("tiny: 100% done, ")
    assert header.split() == ["arm", "search", "validate", "confirm", "test", "done"]
    assert [arm.split() for arm in arms] == [
        ["student_only", "2", "1", "2", "2", "100%"],
        ["hinton", "2", "1", "2", "2", "100%"],
    ]


def test_status_as_json(call, finished):
    found = call("status", finished, "--json").json
    assert found["done"] == 1.0
    assert found["arms"][0]["counts"]["search"] == {"complete": 2}
    assert found["open_attempts"] == []


def test_query_prints_aligned_columns(call, finished):
    sql = (
        "SELECT arm, count(*) AS n, NULL AS nothing FROM trials WHERE phase = 'search' GROUP BY 1 ORDER BY 1"
    )
    answer = call("query", finished, sql)
    assert answer.code == 0
    assert answer.out == (
        "arm           n  nothing\n"
        "------------  -  -------\n"
        "hinton        2        -\n"
        "student_only  2        -\n"
    )
    assert answer.err == "2 rows\n"


def test_query_as_json_has_one_object_per_row(call, finished):
    sql = "SELECT 'NaN'::DOUBLE AS x, created_at, arms_json, [1, 2] AS list FROM studies"
    (row,) = call("query", finished, sql, "--json").json
    assert row["x"] is None
    assert row["created_at"].endswith("+00:00")
    assert row["list"] == [1, 2]


def test_query_of_no_row_prints_the_header(call, finished):
    assert call("query", finished, "SELECT arm FROM trials WHERE false").out == "arm\n---\n"
    assert call("query", finished, "SELECT arm FROM trials WHERE false", "--json").json == []


def test_a_bad_query_is_one_line_below_its_place(call, finished):
    answer = call("query", finished, "SELECT phse FROM trials")
    assert answer.code == 2
    assert len(answer.lines) == 3
    assert "did you mean phase?" in answer.err


def test_table_formats_agree(call, finished):
    text = call("table", finished)
    assert text.out.startswith("# tiny: accuracy on planted (test rows)\n")
    lines = list(csv.DictReader(io.StringIO(call("table", finished, "--format", "csv").out)))
    found = call("table", finished, "--format", "json").json
    assert found == call("table", finished, "--json").json
    assert [line["arm"] for line in lines] == [arm["name"] for arm in found["arms"]]
    assert float(lines[0]["accuracy"]) == pytest.approx(found["arms"][0]["score"]["mean"])


@pytest.mark.parametrize("command", [["status"], ["table"], ["tensorboard"], ["query", "SELECT 1"]])
def test_a_folder_without_a_study_is_one_line(call, tmp_path, command):
    answer = call(command[0], tmp_path / "nothing", *command[1:])
    assert answer.code == 2
    assert answer.lines == [
        f"mmdistill: {tmp_path / 'nothing'}: no study here (there is no `study.json`); "
        "give the folder that `mmdistill run` printed"
    ]


def test_a_damaged_study_is_one_line(call, tmp_path):
    (tmp_path / "study.json").write_text("{")
    answer = call("status", tmp_path)
    assert answer.code == 1
    assert len(answer.lines) == 1
    assert "study.json" in answer.err


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("x" * 5000, "file name too long"),
        ("a\0b", "embedded null byte"),
        (__file__ + "/x", "not a directory"),
    ],
)
def test_a_path_no_system_takes_is_one_line(call, path, rule):
    answer = call("status", path)
    assert answer.code == 2
    assert len(answer.lines) == 1
    assert f"{rule}; give another path" in answer.err


def test_tensorboard_replaces_this_process(call, finished, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append((program, arguments)))
    answer = call("tensorboard", finished, "--port", "7007")
    assert answer.code == 0
    # It opens with the means of the arms.
    assert f"http://127.0.0.1:7007/{MEANS_FIRST} (" in answer.err
    assert "runFilter=%5Emeans" in MEANS_FIRST
    logdir = str(finished / "tensorboard")
    options = ["--logdir", logdir, "--host", "127.0.0.1", "--port", "7007"]
    assert started == [(sys.executable, [sys.executable, "-m", "tensorboard.main", *options])]


def test_tensorboard_refuses_a_study_without_curves(call, tmp_path, finished):
    (tmp_path / "study.json").write_bytes((finished / "study.json").read_bytes())
    answer = call("tensorboard", tmp_path)
    assert answer.code == 2
    mend = "write them with `mmdistill run`, or again with `mmdistill rebuild`"
    assert f"this study has no curves yet; {mend}" in answer.err


def test_reading_a_study_loads_neither_torch_nor_ray(python, finished):
    code = f"""
import os, sys
from mmdistill.cli.main import main
os.execv = lambda *arguments: None
study = sys.argv[1]
for command in (["status", study], ["table", study], ["query", study, "SELECT 1"], ["tensorboard", study]):
    assert main(command) == 0
{HEAVY}
"""
    done = python(code, finished)
    assert done.returncode == 0, done.stderr


def test_a_zero_has_no_sign():
    assert text_table(["R2", "x"], [[-0.0, round(-0.0004, 3)]]).splitlines()[-1].split() == ["0", "0"]


def test_text_tables_cut_long_cells_and_escape_control_characters():
    text = text_table(["name", "x"], [["a\x1b[31mb\n", 1.23456789], ["y" * 200, float("nan")]])
    assert "\x1b" not in text
    assert text.splitlines()[2].startswith("a [31mb ")
    assert text.splitlines()[3] == "y" * 79 + "…" + "      nan"


def test_plain_values_are_json(capsys, tmp_path):
    print_json({"path": tmp_path, "x": float("inf"), "set": {1}, 3: (True, None)})
    assert json.loads(capsys.readouterr().out) == {
        "path": str(tmp_path),
        "x": None,
        "set": [1],
        "3": [True, None],
    }
    assert plain("text") == "text"
