"""Honest questions are answered, over one study and over many, in memory and in place."""

import shutil
import subprocess
import sys

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import mmdistill
from mmdistill.errors import InputError, QueryError
from mmdistill.records.rows import TABLES
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import compact
from mmdistill.reports.query import query, query_sources
from mmdistill.reports.sources import Source


@pytest.fixture
def ask(new_study):
    """Return the rows of a statement over a study made by hand."""
    made = new_study(["student_only", "hinton"])
    for arm, hit_U in (("student_only", [True, False]), ("hinton", [True, True])):
        made.add_search(arm, [0.9, 0.8])
        for seed_index in range(2):
            made.add_test(arm, seed_index, hit_U)
    found = [Source("quick", made.tables())]
    return lambda sql, **limits: query_sources(found, sql, **limits)


def test_answers_a_question_over_struct_fields(ask):
    found = ask(
        "SELECT arm, count(*) AS runs, avg(metrics.accuracy) AS accuracy FROM trials "
        "WHERE phase = 'test' GROUP BY arm ORDER BY arm",
    )
    assert found.column_names == ["arm", "runs", "accuracy"]
    assert found["arm"].to_pylist() == ["hinton", "student_only"]
    assert found["runs"].to_pylist() == [2, 2]
    assert found["accuracy"].to_pylist() == [1.0, 0.5]


def test_search_counts_are_equal(ask):
    found = ask("SELECT DISTINCT n FROM (SELECT count(*) n FROM trials WHERE phase='search' GROUP BY arm)")
    assert found["n"].to_pylist() == [2]


@pytest.mark.parametrize(
    "statement", ["FROM trials", "DESCRIBE trials", "SHOW TABLES", "VALUES (1)", "SELECT 1;"]
)
def test_other_ways_to_ask_are_fine(statement, ask):
    assert ask(statement).num_rows > 0


def test_every_table_is_there_and_says_whose_row_it_is(ask):
    where = "database_name = 'memory' AND column_index = 1"
    first = ask(f"SELECT table_name, column_name FROM duckdb_columns() WHERE {where}")
    assert {tuple(row.values()) for row in first.to_pylist()} == {(name, "study") for name in TABLES}
    assert {row["name"] for row in ask("SHOW TABLES").to_pylist()} == set(TABLES)
    assert ask("SELECT DISTINCT study FROM trials").to_pylist() == [{"study": "quick"}]


def test_times_stay_utc(ask):
    found = ask("SELECT max(ended_at) AS t, max(ended_at)::VARCHAR AS text FROM trials")
    assert found["text"][0].as_py() == "2026-01-02 03:04:05+00"
    assert found["t"].type == pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize(
    ("statement", "hint"),
    [
        ("SELECT acuracy FROM trials", r"did you mean metrics\.accuracy\?"),
        ("SELECT metrics.acuracy FROM trials", r"did you mean metrics\.accuracy\?"),
        ("SELECT * FROM trial", r"did you mean trials"),
        ("SELECT t.pair FROM trials t", r"did you mean pair_id"),
        ("SELECT arm, count(*) FROM trials", r'"arm" must appear in the GROUP BY.*; tables: '),
        ("SELECT nothing_like_it FROM trials", r"tables: trials, stages, .*DESCRIBE trials"),
    ],
)
def test_a_misspelling_gets_a_hint(statement, hint, ask):
    with pytest.raises(QueryError, match=hint):
        ask(statement)


def test_a_refusal_names_the_kind_of_statement(ask):
    with pytest.raises(QueryError, match="only SELECT may run, but this is DROP"):
        ask("DROP TABLE trials")
    with pytest.raises(QueryError, match="the statement would change a table: DELETE; write a SELECT"):
        ask("WITH gone AS (DELETE FROM trials RETURNING *) SELECT * FROM gone")


def test_a_long_query_is_stopped(ask):
    statement = "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b"
    with pytest.raises(
        QueryError, match=r"stopped after 0\.3 s; aggregate or filter earlier, or allow more with --limit"
    ):
        ask(statement, time_limit_s=0.3)


def test_one_huge_value_does_not_hold_the_reader(ask, monkeypatch):
    monkeypatch.setattr("mmdistill.reports.query.GRACE_S", 0.1)
    with pytest.raises(QueryError, match=r"stopped after 0\.1 s"):
        ask("SELECT length(repeat('x', 100000000))", time_limit_s=0.1)


def test_a_huge_result_is_refused(ask, monkeypatch):
    monkeypatch.setattr("mmdistill.reports.guard.RESULT_LIMIT_BYTES", 1 << 20)
    with pytest.raises(QueryError, match="the result is larger than 1 MiB"):
        ask("SELECT * FROM range(1000000)")


def test_a_folder_without_a_study_is_named(tmp_path):
    with pytest.raises(InputError, match="no study here"):
        query(tmp_path, "SELECT 1")


@pytest.mark.parametrize(
    ("statement", "number", "word"),
    [
        ("SELECT arm, acuracy FROM trials", 1, "acuracy"),
        ("SELECT 'é',\n  acuracy FROM trials", 2, "acuracy"),
        ("SELCT 1", 1, "SELCT"),
        ("SELECT * FROM trial", 1, "trial"),
        ("SELECT CAST(arm AS INT) FROM trials", 1, "CAST(arm AS INT)"),
        ("SELECT * FROM glob('*')", 1, "glob('*')"),
    ],
)
def test_an_error_points_at_its_place(statement, number, word, ask):
    with pytest.raises(QueryError) as caught:
        ask(statement)
    line = statement.split("\n")[number - 1]
    shown, carets = caught.value.excerpt.split("\n")
    assert shown == f"line {number}: {line}"
    assert carets == " " * shown.index(word) + "^" * len(word)
    assert str(caught.value).endswith(caught.value.excerpt)


def test_of_a_long_line_the_place_is_shown(ask):
    with pytest.raises(QueryError) as caught:
        ask(f"SELECT {'1, ' * 60} acuracy FROM trials")
    shown, carets = caught.value.excerpt.split("\n")
    assert shown.startswith("line 1: …")
    assert shown[len(carets) - len("acuracy") : len(carets)] == "acuracy"
    assert carets.strip() == "^^^^^^^"


def test_an_error_without_a_place_has_no_excerpt(ask):
    with pytest.raises(QueryError) as caught:
        ask("SELECT metrics.acuracy FROM trials")
    assert caught.value.excerpt == ""


def test_an_unknown_named_query_is_answered_with_near_ones(tmp_path):
    near = "^@best_per_am: no named query is called so; did you mean @best_per_arm"
    with pytest.raises(QueryError, match=near):
        query(tmp_path, "@best_per_am")
    with pytest.raises(QueryError, match="there are @attempts, @best_per_arm, "):
        query(tmp_path, "@zzzzzz")


@pytest.fixture
def studies(tmp_path, new_study, new_trial, commit):
    """Return a folder of two studies: other parameters, other metrics, one begun anew in a folder below."""
    for name, parameters, metrics in (
        ("a", {"lr": 0.1, "kind": "x"}, {"accuracy": 0.5}),
        ("deeper/b", {"lr": "auto", "width": 3}, {"ccc": 0.25, "accuracy": 0.75}),
    ):
        made = new_study(["student_only"])
        for number in range(2):
            row = new_trial("student_only", "search", number=number, parameters=parameters, metrics=metrics)
            made.trials.append(row)
        commit(tmp_path / "all" / name, made)
    return tmp_path / "all"


@pytest.fixture(params=["in memory", "in place", "half of it in place"])
def mode(request, studies, monkeypatch):
    """Read the two studies from memory, from their compact files, or one from each."""
    if request.param != "in memory":
        monkeypatch.setattr("mmdistill.reports.sources.IN_MEMORY_ROWS", 0)
        names = ["a", "deeper/b"] if request.param == "in place" else ["a"]
        for name in names:
            compact(StudyFolder.open(studies / name))
    return request.param


def test_studies_are_united_by_the_names_of_their_columns(studies, mode):
    found = query(
        studies, "SELECT study, parameters.lr, parameters.width, metrics.ccc FROM trials ORDER BY ALL"
    )
    assert found["study"].to_pylist() == ["a", "a", "deeper/b", "deeper/b"]
    assert [str(value) for value in found["lr"].to_pylist()] == ["0.1", "0.1", "auto", "auto"]
    assert found["width"].to_pylist() == [None, None, 3, 3]
    assert found["ccc"].to_pylist() == [None, None, 0.25, 0.25]
    assert query(studies / "a", "SELECT DISTINCT study FROM trials").to_pylist() == [{"study": "a"}]
    assert query(studies, "SELECT avg(metrics.accuracy) AS x FROM trials")["x"].to_pylist() == [0.625]
    with pytest.raises(QueryError, match=r"did you mean metrics\.accuracy\?"):
        query(studies, "SELECT acuracy FROM trials")


def test_a_study_is_read_while_it_grows(studies, mode, new_study, commit):
    before = query(studies, "SELECT count(*) AS n FROM trials")["n"][0].as_py()
    made = new_study(["student_only"])
    made.add_search("student_only", [0.5])
    commit(studies / "a", made, "later")
    after = query(studies, "SELECT count(*) AS n, count(DISTINCT study) AS s FROM trials").to_pylist()
    assert after == [{"n": before + 1, "s": 2}]


def test_files_that_go_while_they_are_asked_are_looked_for_anew(studies, monkeypatch):
    monkeypatch.setattr("mmdistill.reports.sources.IN_MEMORY_ROWS", 0)
    compact(StudyFolder.open(studies / "a"))
    from mmdistill.reports import query as asked

    load, calls = asked.load, []

    def slow(connection, found):
        files = load(connection, found)
        if not calls:
            shutil.rmtree(studies / "a" / "compact")
        calls.append(len(files))
        return files

    monkeypatch.setattr(asked, "load", slow)
    assert query(studies, "SELECT count(*) AS n FROM trials")["n"].to_pylist() == [4]
    assert calls == [len(TABLES), 0]


def test_answers_are_arrow_polars_and_pandas(studies):
    results = mmdistill.open(str(studies))
    assert results.studies == ("a", "deeper/b")
    answer = results.sql("SELECT study, count(*) AS n FROM trials GROUP BY study ORDER BY study")
    rows = [{"study": "a", "n": 2}, {"study": "deeper/b", "n": 2}]
    assert answer.to_pylist() == rows
    assert answer.table.equals(pa.table(answer))
    assert (len(answer), answer.num_rows, repr(answer)) == (2, 2, "2 rows of study, n")
    assert answer["n"].to_pylist() == [2, 2]
    assert isinstance(answer.pl(), pl.DataFrame)
    assert answer.pl().to_dicts() == pl.DataFrame(answer).to_dicts() == rows
    assert isinstance(answer.df(), pd.DataFrame)
    assert answer.df().to_dict("records") == rows
    assert results.sql("@equal_budget").num_rows == 2
    assert repr(results) == f"mmdistill.open({str(studies)!r})"


def test_a_package_that_is_missing_is_named(studies, monkeypatch):
    answer = mmdistill.open(studies).sql("SELECT 1 AS x")
    for name, convert in (("polars", answer.pl), ("pandas", answer.df)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=f"^{name}: this package is not installed; install it with `pip"):
            convert()


def test_an_ablation_is_of_one_study(studies):
    assert mmdistill.open(studies / "a").ablation().study == "quick"
    with pytest.raises(InputError, match="an ablation is of one study, but there are 2; open one of "):
        mmdistill.open(studies).ablation()


def test_opening_loads_nothing():
    code = "import mmdistill as m, sys; m.open; assert not {'pyarrow', 'duckdb'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
