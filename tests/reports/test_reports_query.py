"""Honest questions are answered; nothing reaches outside the tables or changes them."""

import hashlib

import pyarrow as pa
import pytest

from mmdistill.errors import InputError, QueryError
from mmdistill.reports.query import query, query_tables

HOSTILE = [
    "COPY trials TO '{folder}/out.csv'",
    "COPY (SELECT 1) TO '{folder}/out.parquet' (FORMAT parquet, USE_TMP_FILE false)",
    "COPY trials FROM '{secret}'",
    "EXPORT DATABASE '{folder}/out'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{folder}/x.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "PRAGMA enable_external_access",
    "PRAGMA version",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET lock_configuration",
    "CALL pragma_version()",
    "CREATE TABLE mine AS SELECT 1",
    "CREATE OR REPLACE VIEW trials AS SELECT 1",
    "CREATE SECRET s (TYPE s3)",
    "DROP TABLE trials",
    "DELETE FROM trials",
    "UPDATE trials SET arm = 'x'",
    "INSERT INTO trials SELECT * FROM trials",
    "ALTER TABLE trials ADD COLUMN x INT",
    "TRUNCATE trials",
    "BEGIN TRANSACTION",
    "ROLLBACK; DELETE FROM trials",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE trials",
    "EXPLAIN ANALYZE SELECT 1",
    "PREPARE p AS SELECT 1",
    "VACUUM",
    "CHECKPOINT",
    "WITH gone AS (DELETE FROM trials RETURNING *) SELECT * FROM gone",
    "WITH more AS (INSERT INTO trials SELECT * FROM trials RETURNING *) SELECT * FROM more",
    "SELECT * FROM '{secret}'",
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM parquet_metadata('{secret}')",
    "SELECT * FROM read_parquet('https://example.org/x.parquet')",
    "SELECT * FROM query('COPY trials TO ''{folder}/out.csv''')",
    "SELECT * FROM local_table",
    "SELECT * FROM duckdb_secrets()",
    "SELECT getenv('HOME')",
    "SELECT * FROM sqlite_scan('{secret}', 't')",
    "SELECT '\ud800'",
    "",
    "-- nothing",
    "nonsense",
]


@pytest.fixture
def tables(new_study):
    made = new_study(["student_only", "hinton"])
    for arm, hit_U in (("student_only", [True, False]), ("hinton", [True, True])):
        made.add_search(arm, [0.9, 0.8])
        for seed_index in range(2):
            made.add_test(arm, seed_index, hit_U)
    return made.tables()


@pytest.mark.parametrize("statement", HOSTILE)
def test_refuses_what_is_not_a_question_about_the_tables(statement, tables, tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("x\n1\n")
    before = hashlib.sha256(secret.read_bytes()).hexdigest()
    local_table = pa.table({"x": [1]})
    with pytest.raises(QueryError, match=r"^SQL: .+; .+") as caught:
        query_tables(tables, statement.format(folder=tmp_path, secret=secret))
    assert "Traceback" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    assert hashlib.sha256(secret.read_bytes()).hexdigest() == before
    assert local_table.num_rows == 1


def test_answers_a_question_over_struct_fields(tables):
    found = query_tables(
        tables,
        "SELECT arm, count(*) AS runs, avg(metrics.accuracy) AS accuracy FROM trials "
        "WHERE phase = 'test' GROUP BY arm ORDER BY arm",
    )
    assert found.column_names == ["arm", "runs", "accuracy"]
    assert found["arm"].to_pylist() == ["hinton", "student_only"]
    assert found["runs"].to_pylist() == [2, 2]
    assert found["accuracy"].to_pylist() == [1.0, 0.5]


def test_search_counts_are_equal(tables):
    found = query_tables(
        tables, "SELECT DISTINCT n FROM (SELECT count(*) n FROM trials WHERE phase='search' GROUP BY arm)"
    )
    assert found["n"].to_pylist() == [2]


@pytest.mark.parametrize(
    "statement", ["FROM trials", "DESCRIBE trials", "SHOW TABLES", "VALUES (1)", "SELECT 1;"]
)
def test_other_ways_to_ask_are_fine(statement, tables):
    assert query_tables(tables, statement).num_rows > 0


def test_every_table_is_there(tables):
    names = {row["name"] for row in query_tables(tables, "SHOW TABLES").to_pylist()}
    assert names == {"trials", "stages", "epochs", "predictions", "attempts", "studies", "test_openings"}


def test_times_stay_utc(tables):
    found = query_tables(tables, "SELECT max(ended_at) AS t, max(ended_at)::VARCHAR AS text FROM trials")
    assert found["text"][0].as_py() == "2026-01-02 03:04:05+00"
    assert found["t"].type == pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize(
    ("statement", "hint"),
    [
        ("SELECT acuracy FROM trials", r"did you mean metrics\.accuracy\?"),
        ("SELECT metrics.acuracy FROM trials", r"did you mean metrics\.accuracy\?"),
        ("SELECT * FROM trial", r"did you mean trials"),
        ("SELECT t.pair FROM trials t", r"did you mean pair_id"),
        ("SELECT nothing_like_it FROM trials", r"tables: trials, stages, .*DESCRIBE trials"),
    ],
)
def test_a_misspelling_gets_a_hint(statement, hint, tables):
    with pytest.raises(QueryError, match=hint):
        query_tables(tables, statement)


def test_a_refusal_names_the_kind_of_statement(tables):
    with pytest.raises(QueryError, match="only SELECT may run, but this is DROP"):
        query_tables(tables, "DROP TABLE trials")
    with pytest.raises(QueryError, match="the statement would change a table"):
        query_tables(tables, "WITH gone AS (DELETE FROM trials RETURNING *) SELECT * FROM gone")


def test_a_long_query_is_stopped(tables):
    statement = "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b"
    with pytest.raises(QueryError, match=r"stopped after 0\.3 s; aggregate or filter earlier"):
        query_tables(tables, statement, time_limit_s=0.3)


def test_a_huge_result_is_refused(tables, monkeypatch):
    monkeypatch.setattr("mmdistill.reports.query.RESULT_LIMIT_BYTES", 1 << 20)
    with pytest.raises(QueryError, match="the result is larger than 1 MiB"):
        query_tables(tables, "SELECT * FROM range(1000000)")


def test_a_folder_without_a_study_is_named(tmp_path):
    with pytest.raises(InputError, match="no study here"):
        query(tmp_path, "SELECT 1")
