"""Guard rails around one question in SQL: what may run, how long, and what an error says.

Guard rails against mistakes, not a sandbox: SQL is code, and strangers' SQL belongs on a machine of its own.
"""

import difflib
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from mmdistill.errors import Problem, QueryError
from mmdistill.records.rows import TABLES
from mmdistill.reports.sources import quoted

RESULT_LIMIT_BYTES = 1 << 30
# Set before the lock: nothing can be set after it. A UTC timestamp is printed as such, wherever one reads.
_LOCK = (
    "SET TimeZone = 'UTC'",
    "SET errors_as_json = true",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET python_enable_replacements = false",
    "SET temp_directory = ''",
    "SET memory_limit = '2GB'",
    f"SET threads = {min(4, os.cpu_count() or 1)}",
)
# What a SELECT is made of. In a WITH there may also be INSERT, UPDATE, DELETE and COPY.
_READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
# All others read files, memory at an address, SQL in a text, or switch something on.
_FUNCTIONS = {
    "duckdb_columns",
    "duckdb_functions",
    "generate_series",
    "json_each",
    "json_tree",
    "pragma_table_info",
    "range",
    "unnest",
}


def lock(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> None:
    """Take from a connection everything but its tables and the files that they are read from."""
    for setting in _LOCK:
        connection.execute(setting)
    if files:
        connection.execute(f"SET allowed_paths = [{', '.join(quoted(str(file)) for file in files)}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def require_one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise QueryError unless ``sql`` is one SELECT that only reads tables."""
    try:
        statements = connection.extract_statements(sql)
    # A lone surrogate in the text is a TypeError here.
    except (duckdb.Error, TypeError) as error:
        raise explained(connection, error, sql) from None
    if len(statements) != 1:
        raise _refused(f"one statement is needed, but there are {len(statements)}", "give one SELECT")
    if statements[0].type != duckdb.StatementType.SELECT:
        rule = f"only SELECT may run, but this is {statements[0].type.name}"
        raise _refused(rule, f"write a SELECT over {', '.join(TABLES)}")
    (text,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()[0]
    tree = json.loads(text)
    if tree["error"]:
        # PIVOT over values that are not given makes a type first.
        raise _refused("this form of SELECT cannot be checked", "say it with GROUP BY and FILTER")
    for node in _nodes(tree):
        _check_node(node, sql)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a syntax tree, whatever its depth."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield found
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def _check_node(node: dict[str, Any], sql: str) -> None:
    kind = str(node.get("type", ""))
    if kind.endswith("_NODE") and kind not in _READING:
        what = kind.removesuffix("_NODE").removesuffix("_QUERY")
        raise _refused(f"the statement would change a table: {what}", "write a SELECT that only reads")
    if kind == "TABLE_FUNCTION":
        name = str(node["function"]["function_name"]).lower()
        if name not in _FUNCTIONS:
            place = (node["query_location"], node["query_location_length"])
            mend = f"only the tables {', '.join(TABLES)} can be read"
            raise _refused(f"the table function {name} may not run", mend, _excerpt(sql, *place))


def _refused(rule: str, mend: str, excerpt: str = "") -> QueryError:
    return QueryError([Problem("SQL", rule, mend)], excerpt)


def answer(connection: duckdb.DuckDBPyConnection, sql: str, time_limit_s: float) -> pa.Table:
    """Return the rows of a SELECT; errors as QueryError, also where it takes too long or gives too much."""
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        connection.interrupt()

    timer = threading.Timer(time_limit_s, stop)
    timer.daemon = True
    timer.start()
    try:
        return _bounded(connection.sql(sql).to_arrow_reader(100_000))
    # A stream reports DuckDB's errors as OSError.
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if not expired.is_set():
            raise explained(connection, error, sql) from None
        raise too_slow(time_limit_s) from None
    finally:
        timer.cancel()


def too_slow(time_limit_s: float) -> QueryError:
    """Return the error of a query that took too long."""
    rule = f"the query was stopped after {time_limit_s:g} s"
    return _refused(rule, "aggregate or filter earlier, or allow more with --limit")


def _bounded(reader: pa.RecordBatchReader) -> pa.Table:
    batches, size = [], 0
    for batch in reader:
        batches.append(batch)
        size += batch.nbytes
        if size > RESULT_LIMIT_BYTES:
            rule = f"the result is larger than {RESULT_LIMIT_BYTES >> 20} MiB"
            raise _refused(rule, "aggregate, or add a LIMIT")
    return pa.Table.from_batches(batches, schema=reader.schema)


def explained(connection: duckdb.DuckDBPyConnection, error: Exception, sql: str) -> QueryError:
    """Return DuckDB's first line in our form, its place in the SQL and what may have been meant."""
    told = _told(error)
    if "location" not in told and isinstance(error, duckdb.Error):
        # Only a statement that is executed tells the place; EXPLAIN executes nothing.
        told = _located(connection, sql) or told
    line = next((line.strip() for line in told["exception_message"].splitlines() if line.strip()), "")
    rule = re.sub(r"^(?:\w+ )+Error: ", "", line).rstrip("!.") or "the statement fails"
    excerpt = _excerpt(sql, *json.loads(told["location"])) if "location" in told else ""
    if isinstance(error, duckdb.PermissionException):
        return _refused(rule, f"only the tables {', '.join(TABLES)} can be read", excerpt)
    return _refused(rule, _hint(connection, line, sql), excerpt)


def _told(error: Exception) -> dict[str, str]:
    """Return what DuckDB says of an error: ``exception_message``, and ``location`` where it knows it."""
    text = str(error)
    try:
        told: dict[str, str] = json.loads(text[text.index("{") :])
        return {"exception_message": "", **told}
    except ValueError:
        return {"exception_message": text or type(error).__name__}


def _located(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, str] | None:
    prefix = "EXPLAIN "
    try:
        connection.rollback()
        connection.execute(prefix + sql)
    except duckdb.Error as error:
        told = _told(error)
        if "location" in told:
            start, length = json.loads(told["location"])
            return {**told, "location": json.dumps([max(start - len(prefix), 0), length])}
    return None


def _excerpt(sql: str, start: int, length: int) -> str:
    """Return the line of the SQL that holds the byte ``start``, with carets below the next ``length``."""
    before = sql.encode()[:start].decode(errors="ignore")
    word = sql.encode()[start : start + length].decode(errors="ignore").split("\n")[0]
    number, column = before.count("\n"), len(before) - before.rfind("\n") - 1
    line = sql.split("\n")[number]
    first = max(0, column - 60)
    shown = "".join(c if c.isprintable() else " " for c in line[first : first + 100])
    carets = "^" * max(1, min(len(word), 100 - (column - first)))
    head = f"line {number + 1}: " + ("…" if first else "")
    return f"{head}{shown}\n{' ' * (len(head) + column - first)}{carets}"


def _hint(connection: duckdb.DuckDBPyConnection, line: str, sql: str) -> str:
    table = re.search(r"Table with name (\S+)", line)
    column = re.search(r'(?:column|key|Column|named) "([^"]+)"', line)
    near: list[str] = []
    if table:
        near = difflib.get_close_matches(table[1], TABLES, n=2)
    elif column:
        asked = [name for name in TABLES if re.search(rf"\b{name}\b", sql, re.IGNORECASE)] or list(TABLES)
        # A field of a struct is written with its struct, and found by its last part.
        known = {name.rsplit(".", 1)[-1]: name for table in asked for name in _columns(connection, table)}
        word = column[1].rsplit(".", 1)[-1]
        # A column that is there was not misspelt.
        if known.get(word) != column[1]:
            near = [known[name] for name in difflib.get_close_matches(word, known, n=3, cutoff=0.7)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"tables: {', '.join(TABLES)}; DESCRIBE trials lists the columns of one"


def _columns(connection: duckdb.DuckDBPyConnection, table: str) -> list[str]:
    found = connection.table(table)
    names = []
    for name, kind in zip(found.columns, found.types, strict=True):
        names.append(name)
        if kind.id == "struct":
            names += [f"{name}.{_identifier(child)}" for child, _ in kind.children]
    return names


def _identifier(name: str) -> str:
    return name if name.isidentifier() else f'"{name}"'
