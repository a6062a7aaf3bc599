"""SQL that means harm: nothing outside the study is read, nothing is written, and it ends."""

import time

import pyarrow as pa
import pytest

from mmdistill.errors import QueryError
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import SNAPSHOTS, compact
from mmdistill.reports.query import query_sources
from mmdistill.reports.sources import sources

LIMIT_S = 0.3
CANARY = "canary-4711"
# {out}: a new file. {secret}: a text file with the canary. {parquet}: a Parquet file with it. {store}: a file
# of the study itself.
HOSTILE = """
COPY trials TO '{out}'
COPY (SELECT 1) TO '{store}' (FORMAT parquet, USE_TMP_FILE false)
WITH x AS (COPY trials TO '{out}') SELECT 1
WITH x AS (COPY (SELECT 1) TO '{store}' (FORMAT parquet, USE_TMP_FILE false)) SELECT 1
SELECT (WITH x AS (COPY trials TO '{out}') SELECT 1)
SELECT * FROM query('WITH x AS (COPY trials TO ''{out}'') SELECT 1')
SELECT * FROM query('COPY trials TO ''{out}''')
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{secret}'')'))
SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_path = '{out}')
SELECT * FROM arrow_scan(1, 2, 3)
SELECT * FROM python_arrow_scan(1, 2, 3)
SELECT * FROM checkpoint()
COPY trials FROM '{secret}'
EXPORT DATABASE '{out}'
IMPORT DATABASE '{out}'
ATTACH '{out}'
INSTALL httpfs
LOAD httpfs
PRAGMA enable_external_access
PRAGMA enable_profiling
SET enable_external_access = true
SET lock_configuration = false
SET profile_output = '{out}'
RESET lock_configuration
CALL pragma_version()
CREATE TABLE mine AS SELECT 1
CREATE OR REPLACE VIEW trials AS SELECT 1
CREATE SECRET s (TYPE s3)
DROP TABLE trials
DELETE FROM trials
UPDATE trials SET arm = 'x'
INSERT INTO trials SELECT * FROM trials
ALTER TABLE trials ADD COLUMN x INT
TRUNCATE trials
BEGIN TRANSACTION
ROLLBACK; DELETE FROM trials
SELECT 1; DROP TABLE trials
EXPLAIN ANALYZE SELECT 1
PREPARE p AS SELECT 1
VACUUM
WITH gone AS (DELETE FROM trials RETURNING *) SELECT * FROM gone
WITH more AS (INSERT INTO trials SELECT * FROM trials RETURNING *) SELECT * FROM more
SELECT * FROM '{secret}'
SELECT * FROM '{parquet}'
SELECT * FROM read_csv('{secret}')
SELECT * FROM read_text('{secret}')
SELECT * FROM read_blob('{secret}')
SELECT * FROM read_text('/proc/self/environ')
SELECT * FROM read_parquet('{parquet}')
SELECT * FROM read_parquet('{store}')
SELECT * FROM parquet_metadata('{parquet}')
SELECT * FROM glob('/*')
SELECT * FROM sniff_csv('{secret}')
SELECT * FROM read_parquet('https://example.org/x.parquet')
SELECT * FROM local_table
SELECT * FROM duckdb_secrets()
SELECT getenv('HOME')
SELECT * FROM sqlite_scan('{secret}', 't')
FROM (PIVOT trials ON arm USING count(*))
SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b
WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT max(i) FROM r
SELECT list(range) FROM range(1000000000)
SELECT '\ud800'
-- nothing
nonsense
"""


@pytest.fixture
def folder(tmp_path, made, commit):
    commit(tmp_path / "studies" / "quick", made)
    (tmp_path / "secret.csv").write_text(f"x\n{CANARY}\n")
    pa.parquet.write_table(pa.table({"x": [CANARY]}), tmp_path / "secret.parquet")
    return tmp_path


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["in memory", "in place"])
def test_nothing_is_read_or_written_and_it_ends(place, folder, monkeypatch):
    study = folder / "studies" / "quick"
    if place == "in place":
        monkeypatch.setattr("mmdistill.reports.sources.IN_MEMORY_ROWS", 0)
    compact(StudyFolder.open(study))
    (store,) = (study / SNAPSHOTS).glob("trials-*.parquet")
    before, found = content(folder), sources(folder)
    local_table = pa.table({"x": [CANARY]})
    statements = [line for line in HOSTILE.split("\n") if line]
    for line in ["", *statements]:
        statement = line.format(
            out=folder / "out.csv",
            secret=folder / "secret.csv",
            parquet=folder / "secret.parquet",
            store=store,
        )
        start = time.monotonic()
        with pytest.raises(QueryError, match=r"^SQL: .+; .+") as caught:
            query_sources(found, statement, time_limit_s=LIMIT_S)
        assert time.monotonic() - start <= 5, statement
        assert CANARY not in str(caught.value)
        assert "Traceback" not in str(caught.value)
    assert len(statements) >= 40
    assert content(folder) == before
    assert local_table.num_rows == 1
