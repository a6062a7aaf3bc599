"""`mmdistill query`: one SELECT, its rows in the form that is wanted."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mmdistill.cli.printing import plain, print_json, say, text_table
from mmdistill.cli.reading import readable
from mmdistill.errors import InputError, Problem, QueryError
from mmdistill.records.store import replace_atomically
from mmdistill.reports.named import MARK, named_queries
from mmdistill.reports.query import is_any_left_running, query

Format = Literal["table", "csv", "json", "arrow", "parquet"]
# What computes on in a thread cannot be stopped, and Python cannot end in good order beside it.
WRONG_INPUT, INTERRUPTED = 2, 130
_BINARY = ("arrow", "parquet")


def show_query(path: Path, sql: str, *, layout: Format, output: Path | None, limit: float) -> int:
    """Print the rows of one SELECT, or write them to a file; `@` lists the named queries."""
    if sql.strip() == MARK:
        return _show_named(layout)
    if output is None and layout in _BINARY and sys.stdout.isatty():
        rule = f"{layout} is not for a terminal"
        raise InputError([Problem("--format", rule, "give --output FILE, or send stdout to one")])
    found = _asked(readable(path), sql, limit)
    content = _FORMS[layout](found)
    if output is not None:
        replace_atomically(readable(output), content, "query")
    else:
        sys.stdout.flush()
        _out(content, is_text=layout not in _BINARY)
    if layout == "table" or output is not None:
        where = "" if output is None else f" in {output}"
        say(f"{found.num_rows} row{'' if found.num_rows == 1 else 's'}{where}")
    return 0


def _asked(path: Path, sql: str, limit: float) -> pa.Table:
    """Return the rows of a query; an error is shown below its place in the SQL."""
    try:
        return query(path, sql, time_limit_s=limit)
    except KeyboardInterrupt:
        say("mmdistill: interrupted")
        os._exit(INTERRUPTED)
    except QueryError as error:
        if error.excerpt:
            say(error.excerpt)
        if is_any_left_running():
            say(f"mmdistill: {error.problems[0]}")
            os._exit(WRONG_INPUT)
        raise


def _out(content: bytes, *, is_text: bool) -> None:
    if is_text:
        print(content.decode(), end="")
    else:
        sys.stdout.buffer.write(content)


def _show_named(layout: Format) -> int:
    found = named_queries()
    if layout == "json":
        print_json(found)
        return 0
    for name, question in found.items():
        print(f"{MARK}{name}: {question}")
    return 0


def _rows(table: pa.Table) -> list[tuple[object, ...]]:
    # By position: two columns may have one name.
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _text(table: pa.Table) -> bytes:
    return f"{text_table(table.column_names, _rows(table))}\n".encode(errors="backslashreplace")


def _json(table: pa.Table) -> bytes:
    rows = [dict(zip(table.column_names, row, strict=True)) for row in _rows(table)]
    return f"{json.dumps(plain(rows), indent=2, allow_nan=False)}\n".encode()


def _csv(table: pa.Table) -> bytes:
    """Return CSV as RFC 4180 has it; what is nested is JSON in its cell."""
    columns = [_flat(column) if pa.types.is_nested(column.type) else column for column in table.columns]
    sink = io.BytesIO()
    pyarrow.csv.write_csv(pa.Table.from_arrays(columns, names=table.column_names), sink)
    return sink.getvalue()


def _flat(column: pa.ChunkedArray) -> pa.Array:
    cells = [None if value is None else json.dumps(plain(value)) for value in column.to_pylist()]
    return pa.array(cells, pa.string())


def _arrow(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


_FORMS: dict[Format, Callable[[pa.Table], bytes]] = {
    "table": _text,
    "csv": _csv,
    "json": _json,
    "arrow": _arrow,
    "parquet": _parquet,
}
