"""SQL over the tables of one study, or of every study in a folder, while it runs too."""

import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

import duckdb
import pyarrow as pa

from mmdistill.errors import QueryError
from mmdistill.reports import guard
from mmdistill.reports.named import resolved
from mmdistill.reports.sources import Source, load, sources

TIME_LIMIT_S = 30.0
# How long a query that was interrupted may take to end.
GRACE_S = 2.0
_THREAD = "mmdistill-query"
# Tables may be compacted anew while they are read, so often in a row hardly.
_TRIES = 5


def query(path: Path, sql: str, *, time_limit_s: float = TIME_LIMIT_S) -> pa.Table:
    """Return the rows of one SELECT over the tables of the study in ``path``, or of all studies below it.

    Args:
        path: folder of a study, or a folder of such folders; every table has the column ``study``.
        sql: one SELECT, or ``@name`` of a named query.
        time_limit_s: seconds after which the query is stopped, loading the tables not counted.

    Raises:
        QueryError: the statement is not one SELECT, reaches outside the tables, fails, or takes too long.
        InputError: there is no study in ``path``.
        StudyError: a record is damaged.
    """
    sql = resolved(sql)
    for tries_left in reversed(range(_TRIES)):
        found = sources(path)
        try:
            return query_sources(found, sql, time_limit_s=time_limit_s)
        except (QueryError, duckdb.IOException):
            files = [table for source in found for table in source.tables.values()]
            gone = any(isinstance(file, Path) and not file.exists() for file in files)
            if not (gone and tries_left):
                raise
    raise AssertionError("the last try returns or raises")


def query_sources(found: Sequence[Source], sql: str, *, time_limit_s: float = TIME_LIMIT_S) -> pa.Table:
    """Return the rows of one SELECT over the union of some studies; errors as in :func:`query`."""
    loaded, outcomes = threading.Event(), SimpleQueue[pa.Table | Exception]()

    def work() -> None:
        try:
            with duckdb.connect(":memory:") as connection:
                guard.lock(connection, load(connection, found))
                guard.require_one_select(connection, sql)
                connection.execute("BEGIN TRANSACTION READ ONLY")
                loaded.set()
                outcome: pa.Table | Exception = guard.answer(connection, sql, time_limit_s)
        except Exception as error:  # Raised where the query was asked.
            outcome = error
        loaded.set()
        outcomes.put(outcome)

    # DuckDB looks for an interrupt between rows: one huge value is left to itself, and ends with the process.
    thread = threading.Thread(target=work, name=_THREAD, daemon=True)
    thread.start()
    loaded.wait()
    try:
        outcome = outcomes.get(timeout=time_limit_s + GRACE_S)
    except Empty:
        raise guard.too_slow(time_limit_s) from None
    thread.join()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def is_any_left_running() -> bool:
    """Return whether a query that was given up still computes; Python cannot end in good order then."""
    return any(thread.name == _THREAD for thread in threading.enumerate())
