"""The tables of one study, or of every study in a folder, in a DuckDB connection.

Every table begins with the column ``study``: the folder of the study, below the folder that was asked about.
Small studies are copied into memory; large ones are read where they are, from their compact files.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from mmdistill.errors import InputError, Problem
from mmdistill.records.rows import TABLES
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import in_place, latest

# Above so many rows in all, compact tables are read in place: loading them would take longer than the answer.
IN_MEMORY_ROWS = 1_000_000
# Folders of studies are looked for so deep: a mistaken `/` must not search the whole disk.
DEEPEST = 3
_RECORD = "study.json"


class Source(NamedTuple):
    """The tables of one study: in memory, or the files that hold them.

    Attributes:
        study: what the column ``study`` says.
        tables: by name, an Arrow table or the path of a Parquet file.
    """

    study: str
    tables: Mapping[str, pa.Table | Path]


def study_folders(path: Path) -> dict[str, Path]:
    """Return the studies in ``path`` by name: itself, or those below it, sorted.

    A study alone has the name of its folder; one of several its path below ``path``.

    Raises:
        InputError: if there is none.
    """
    if (path / _RECORD).is_file():
        return {path.resolve().name: path}
    found = {root.relative_to(path).as_posix(): root for root in _below(path, DEEPEST)}
    if not found:
        rule = "no study here (there is no `study.json`)"
        raise InputError([Problem(str(path), rule, "give the folder that `mmdistill run` printed")])
    return dict(sorted(found.items()))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if depth == 0 or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        folders = [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] != "."]
    for one in folders:
        if (one / _RECORD).is_file():
            yield one
        else:
            yield from _below(one, depth - 1)


def sources(path: Path) -> list[Source]:
    """Return the newest state of every study in ``path``.

    Raises:
        InputError: if there is no study.
        StudyError: if a record is damaged.
    """
    folders = {name: StudyFolder.open(root) for name, root in study_folders(path).items()}
    compact = {name: in_place(folder) for name, folder in folders.items()}
    rows = sum(rows for files in compact.values() for _, rows in (files or {}).values())
    return [
        Source(name, {table: file for table, (file, _) in (compact[name] or {}).items()})
        if compact[name] and rows > IN_MEMORY_ROWS
        else Source(name, latest(folder))
        for name, folder in folders.items()
    ]


def load(connection: duckdb.DuckDBPyConnection, found: Sequence[Source]) -> list[Path]:
    """Make every table, the union of the studies by the names of columns; return the files to be read."""
    connection.execute("CREATE SCHEMA parts")
    for name in TABLES:
        parts = [_part(connection, f"{name}_{i}", source, name) for i, source in enumerate(found)]
        # A copy where all is in memory: what is in `parts` then goes.
        kind = "VIEW" if any(isinstance(source.tables[name], Path) for source in found) else "TABLE"
        connection.execute(f'CREATE {kind} "{name}" AS {" UNION ALL BY NAME ".join(parts)}')
        if kind == "TABLE":
            for i in range(len(found)):
                connection.execute(f'DROP TABLE parts."{name}_{i}"')
    return [table for source in found for table in source.tables.values() if isinstance(table, Path)]


def _part(connection: duckdb.DuckDBPyConnection, label: str, source: Source, name: str) -> str:
    """Return the SELECT of one table of one study; what is in memory is copied first."""
    table = source.tables[name]
    if isinstance(table, Path):
        place = f"read_parquet([{quoted(str(table))}], union_by_name = true)"
    else:
        connection.register("incoming", table)
        connection.execute(f'CREATE TABLE parts."{label}" AS SELECT * FROM incoming')
        connection.unregister("incoming")
        place = f'parts."{label}"'
    return f"SELECT {quoted(source.study)} AS study, * FROM {place}"


def quoted(text: str) -> str:
    """Return a text as SQL."""
    return "'" + text.replace("'", "''") + "'"
