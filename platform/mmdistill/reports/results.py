"""The Python side of `mmdistill query`: finished and running studies as Arrow, Polars or pandas."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mmdistill.errors import InputError, Problem
from mmdistill.reports.query import TIME_LIMIT_S, query
from mmdistill.reports.sources import study_folders

if TYPE_CHECKING:
    from mmdistill.reports.ablation import Ablation


class Answer:
    """The rows of a query: a ``pyarrow.Table`` with two more ways out.

    Everything a table has is here too, e.g. ``num_rows``, ``column_names``, ``to_pylist()``; whatever takes
    Arrow data (``pyarrow.table``, ``polars.DataFrame``, DuckDB) takes an answer.

    Attributes:
        table: the ``pyarrow.Table``.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    def __getitem__(self, column: str | int) -> pa.ChunkedArray:
        return self.table[column]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"{len(self)} rows of {', '.join(self.table.column_names)}"

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)

    def pl(self) -> Any:
        """Return the rows as a ``polars.DataFrame``.

        Raises:
            InputError: if Polars is not installed.
        """
        return _package("polars").from_arrow(self.table)

    def df(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``.

        Raises:
            InputError: if pandas is not installed.
        """
        _package("pandas")
        return self.table.to_pandas()


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        rule = "this package is not installed"
        raise InputError([Problem(name, rule, f"install it with `pip install {name}`")]) from None


class Results:
    """One study, or every study in a folder; nothing is read before it is asked for, nothing is kept.

    A study may still be running: every call sees its newest state.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"mmdistill.open({str(self.path)!r})"

    @property
    def studies(self) -> tuple[str, ...]:
        """Return the names of the studies, as in the column ``study``, sorted."""
        return tuple(study_folders(self.path))

    def sql(self, query_text: str, *, time_limit_s: float = TIME_LIMIT_S) -> Answer:
        """Return the rows of one SELECT, or of ``@name``, a named query.

        `mmdistill schema` lists the columns.

        Args:
            query_text: the SELECT; every table has the column ``study``.
            time_limit_s: seconds after which it is stopped.

        Raises:
            QueryError: the statement is not one SELECT, reaches outside the tables, fails, or takes too long.
            InputError: there is no study.
            StudyError: a record is damaged.
        """
        return Answer(query(self.path, query_text, time_limit_s=time_limit_s))

    def ablation(self) -> Ablation:
        """Return the ablation of the one study in the folder: arms, contrasts, verdicts, warnings.

        Raises:
            InputError: there is no study, or there are several.
            StudyError: a record is damaged.
        """
        # Statistics take a moment to import.
        from mmdistill.reports.ablation import summarise

        folders = study_folders(self.path)
        if len(folders) > 1:
            rule = f"an ablation is of one study, but there are {len(folders)}"
            mend = f"open one of {', '.join(str(root) for root in folders.values())}"
            raise InputError([Problem(str(self.path), rule, mend)])
        (root,) = folders.values()
        return summarise(root)
