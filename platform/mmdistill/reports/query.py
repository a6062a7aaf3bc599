"""SQL over the tables of a study: copied into memory, then locked.

Guard rails against mistakes, not a sandbox: SQL is code, and strangers' SQL belongs on a machine of its own.
"""

import difflib
import re
import threading
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from mmdistill.errors import Problem, QueryError
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import latest

TIME_LIMIT_S = 30.0
RESULT_LIMIT_BYTES = 1 << 30
# In this order: nothing can be set after the lock.
_LOCK = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET python_enable_replacements = false",
    "SET temp_directory = ''",
    "SET memory_limit = '2GB'",
    "SET threads = 2",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


def query(root: Path, sql: str, *, time_limit_s: float = TIME_LIMIT_S) -> pa.Table:
    """Return the rows of one SELECT over the tables of the study in ``root``.

    Raises:
        QueryError: the statement is not one SELECT, reaches outside the tables, fails, or takes too long.
        InputError: there is no study in ``root``.
        StudyError: a record is damaged.
    """
    return query_tables(latest(StudyFolder.open(root)), sql, time_limit_s=time_limit_s)


def query_tables(tables: Mapping[str, pa.Table], sql: str, *, time_limit_s: float = TIME_LIMIT_S) -> pa.Table:
    """Return the rows of one SELECT over ``tables``; errors as in :func:`query`."""
    with duckdb.connect(":memory:") as connection:
        # A UTC timestamp is printed as such, wherever the reader sits.
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            connection.register("incoming", table)
            connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM incoming')
            connection.unregister("incoming")
        for setting in _LOCK:
            connection.execute(setting)
        _require_one_select(connection, sql, tables)
        # WITH may hide an INSERT or a DELETE from the check.
        connection.execute("BEGIN TRANSACTION READ ONLY")
        return _result(connection, sql, tables, time_limit_s)


def _require_one_select(
    connection: duckdb.DuckDBPyConnection, sql: str, tables: Mapping[str, pa.Table]
) -> None:
    try:
        statements = connection.extract_statements(sql)
    # A lone surrogate in the text is a TypeError here.
    except (duckdb.Error, TypeError) as error:
        raise _explained(error, sql, tables) from None
    if len(statements) != 1:
        rule = f"one statement is needed, but there are {len(statements)}"
        raise QueryError([Problem("SQL", rule, "give one SELECT")])
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        rule = f"only SELECT may run, but this is {kind.name}"
        raise QueryError([Problem("SQL", rule, f"write a SELECT over {', '.join(tables)}")])


def _result(
    connection: duckdb.DuckDBPyConnection, sql: str, tables: Mapping[str, pa.Table], time_limit_s: float
) -> pa.Table:
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        connection.interrupt()

    timer = threading.Timer(time_limit_s, stop)
    timer.start()
    try:
        return _bounded(connection.sql(sql).to_arrow_reader(100_000))
    # A stream reports DuckDB's errors as OSError.
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if not expired.is_set():
            raise _explained(error, sql, tables) from None
        rule = f"the query was stopped after {time_limit_s:g} s"
        raise QueryError([Problem("SQL", rule, "aggregate or filter earlier")]) from None
    finally:
        timer.cancel()


def _bounded(reader: pa.RecordBatchReader) -> pa.Table:
    batches, size = [], 0
    for batch in reader:
        batches.append(batch)
        size += batch.nbytes
        if size > RESULT_LIMIT_BYTES:
            rule = f"the result is larger than {RESULT_LIMIT_BYTES >> 20} MiB"
            raise QueryError([Problem("SQL", rule, "aggregate, or add a LIMIT")])
    return pa.Table.from_batches(batches, schema=reader.schema)


def _explained(error: Exception, sql: str, tables: Mapping[str, pa.Table]) -> QueryError:
    """Return DuckDB's first line in our form, with what the writer may have meant."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    rule = re.sub(r"^(?:\w+ )+Error: ", "", line).rstrip("!.") or "the statement fails"
    if isinstance(error, duckdb.PermissionException):
        return QueryError([Problem("SQL", rule, f"only the tables {', '.join(tables)} can be read")])
    if "read-only mode" in rule:
        return QueryError(
            [Problem("SQL", "the statement would change a table", "write a SELECT that only reads")]
        )
    return QueryError([Problem("SQL", rule, _hint(line, sql, tables))])


def _hint(line: str, sql: str, tables: Mapping[str, pa.Table]) -> str:
    table = re.search(r"Table with name (\S+)", line)
    column = re.search(r'(?:column|key|Column|named) "([^"]+)"', line)
    near: list[str] = []
    if table:
        near = difflib.get_close_matches(table[1], tables, n=2)
    elif column:
        asked = [name for name in tables if re.search(rf"\b{name}\b", sql, re.IGNORECASE)] or list(tables)
        # A field of a struct is written with its struct, and found by its last part.
        known = {name.rsplit(".", 1)[-1]: name for table in asked for name in _columns(tables[table])}
        word = column[1].rsplit(".", 1)[-1]
        near = [known[name] for name in difflib.get_close_matches(word, known, n=3, cutoff=0.7)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"tables: {', '.join(tables)}; DESCRIBE trials lists the columns of one"


def _columns(table: pa.Table) -> list[str]:
    names = []
    for field in table.schema:
        names.append(field.name)
        if pa.types.is_struct(field.type):
            names += [f"{field.name}.{_quoted(child.name)}" for child in field.type]
    return names


def _quoted(name: str) -> str:
    return name if name.isidentifier() else f'"{name}"'
