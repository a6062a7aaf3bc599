"""`mmdistill query`, `schema` and `merge`, as they are typed."""

import csv
import io
import json
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdistill.records.rows import TABLES, schema_text

SQL = """
    SELECT study, arm, count(*) AS n, list(DISTINCT phase ORDER BY phase) AS phases
    FROM trials GROUP BY ALL ORDER BY arm
"""
ROWS = [
    {"study": "tiny", "arm": arm, "n": 7, "phases": ["confirm", "search", "test", "validate"]}
    for arm in ("hinton", "student_only")
]


class Bytes(io.TextIOWrapper):
    """Stands for stdout, and keeps what was written."""

    def __init__(self, *, is_terminal):
        self.kept = io.BytesIO()
        super().__init__(self.kept)
        self.isatty = lambda: is_terminal


@pytest.fixture
def into(call, finished, monkeypatch):
    """Return ``into(layout, terminal)``: the bytes that a query sends to stdout."""

    def _into(layout, *, is_terminal=False):
        stdout = Bytes(is_terminal=is_terminal)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            code = call_main(["query", str(finished), SQL, "--format", layout])
        return code, stdout.kept.getvalue()

    from mmdistill.cli.main import main as call_main

    return _into


def test_every_form_has_the_same_rows(call, finished, into):
    assert call("query", finished, SQL, "--format", "json").json == ROWS
    assert call("query", finished, SQL, "--json").json == ROWS
    rows = list(csv.DictReader(io.StringIO(call("query", finished, SQL, "--format", "csv").out)))
    assert [{**row, "n": int(row["n"]), "phases": json.loads(row["phases"])} for row in rows] == ROWS
    for layout, read in (
        ("arrow", lambda b: pa.ipc.open_stream(b).read_all()),
        ("parquet", lambda b: pq.read_table(io.BytesIO(b))),
    ):
        code, content = into(layout)
        assert code == 0
        assert read(content).to_pylist() == ROWS


def test_what_is_not_text_is_not_sent_to_a_terminal(into, capsys):
    assert into("parquet", is_terminal=True) == (2, b"")
    assert (
        "parquet is not for a terminal; give --output FILE, or send stdout to one" in capsys.readouterr().err
    )


def test_rows_are_written_to_a_file(call, finished, tmp_path):
    file = tmp_path / "new" / "rows.parquet"
    answer = call("query", finished, SQL, "--format", "parquet", "--output", file)
    assert (answer.code, answer.out, answer.lines) == (0, "", [f"2 rows in {file}"])
    assert pq.read_table(file).to_pylist() == ROWS


def test_a_named_query_is_run_by_its_name(call, finished):
    rows = call("query", finished, "@best_per_arm", "--json").json
    assert [row["arm"] for row in rows] == ["hinton", "student_only"]
    listed = call("query", finished, "@")
    assert "@best_per_arm: What was the best proposal of every arm" in listed.out
    assert set(call("query", finished, "@", "--json").json) >= {"best_per_arm", "seeds"}
    wrong = call("query", finished, "@best_per_ram")
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean @best_per_arm" in wrong.err


def test_an_error_is_shown_below_its_place(call, finished):
    answer = call("query", finished, "SELECT arm,\n  phse FROM trials")
    assert answer.code == 2
    assert answer.lines[:2] == ["line 2:   phse FROM trials", " " * 10 + "^^^^"]
    assert answer.lines[2].startswith("mmdistill: SQL: ")
    assert "did you mean phase" in answer.lines[2]


def test_the_time_limit_is_the_users(call, finished):
    answer = call(
        "query",
        finished,
        "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b",
        "--limit",
        "0.2",
    )
    assert answer.code == 2
    assert (
        "the query was stopped after 0.2 s; aggregate or filter earlier, or allow more with --limit"
        in answer.err
    )


@pytest.mark.parametrize("limit", ["0", "nan", "1e10", "inf"])
def test_a_time_limit_beyond_a_day_or_below_a_moment_is_refused(call, finished, limit):
    answer = call("query", finished, "SELECT 1", "--limit", limit)
    assert (answer.code, answer.out) == (2, "")
    (line,) = answer.lines
    assert re.match(r"mmdistill: Invalid value .* for --limit\. Must be (> 0|<= 86400)\.", line)


def test_the_schema_is_printed(call):
    assert call("schema").out == schema_text()
    found = call("schema", "--json").json
    assert set(found["tables"]) == set(TABLES)
    (column,) = [one for one in found["tables"]["trials"]["columns"] if one["name"] == "number"]
    assert column == {
        "name": "number",
        "type": "int64",
        "nullable": True,
        "meaning": "number of the proposal inside the arm, from 0",
    }


def test_merged_studies_are_asked_together_and_one_by_one(call, finished, tmp_path):
    output = tmp_path / "all"
    answer = call("merge", output, finished)
    assert answer.code == 0
    assert answer.out.startswith(f"{output / 'tiny'}: copied from {finished} (begun on ")
    assert answer.lines == [f"Ask all of them with: mmdistill query {output} @best_per_arm"]
    assert call("query", output, SQL, "--json").json == ROWS
    assert call("table", output / "tiny").out == call("table", finished).out
    again = call("merge", output, finished)
    assert (again.code, again.lines) == (
        2,
        [f"mmdistill: {output}: there is something here already; give a new folder"],
    )
    assert call("merge", tmp_path / "b", finished, "--json").json["studies"][0]["study"] == "tiny"


def test_a_query_that_cannot_be_stopped_ends_with_its_process(python, finished):
    code = """
import sys
import mmdistill.reports.query as asked
from mmdistill.cli.main import main
asked.GRACE_S = 0.1
sys.exit(main(["query", sys.argv[1], "SELECT length(repeat('x', 300000000))", "--limit", "0.1"]))
"""
    done = python(code, finished)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("mmdistill: SQL: the query was stopped after 0.1 s; aggregate or filter")
