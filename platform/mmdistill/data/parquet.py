"""Columns of a Parquet file as arrays, with everything that is wrong about them.

Axes: N rows, D numbers of a modality, T label columns.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmdistill.data.card import Card
from mmdistill.data.samples import SPLITS, Booleans, Floats, Labels, Strings
from mmdistill.errors import DataError, Problem

# Read from the footer before any data; a table has to fit in memory.
LARGEST_BYTES = 8 << 30
_SHOWN = 3
# What a float32 holds without loss.
_EXACT = (pa.float32(), pa.float16(), pa.int8(), pa.int16(), pa.uint8(), pa.uint16())


class Columns:
    """The columns of one Parquet file; collects what is wrong with them in ``problems``."""

    def __init__(self, path: Path, card: Card) -> None:
        self.path = path
        self.card = card
        self.problems: list[Problem] = []
        self._schema, self._rows = _footer(path)

    def __len__(self) -> int:
        return self._rows

    def strings(self, name: str) -> Strings:
        """Return a column of names or whole numbers as text; empty text where something is wrong."""
        values = self._plain(name, "names or whole numbers", _is_name)
        return np.asarray(values.to_pylist() if values is not None else [""] * len(self)).astype(np.str_)

    def split(self) -> Strings:
        """Return the column ``split``."""
        names = self.strings("split")
        for unknown in sorted(set(names.tolist()) - {*SPLITS, ""}):
            mend = f"use one of {', '.join(SPLITS)}"
            self.problems.append(Problem(f"{self.path}: split", f"the split {unknown!r} is unknown", mend))
        return names

    def labels(self) -> Labels:
        """Return int64 classes [N], or float32 targets [N, T]; zeros where something is wrong."""
        if self.card.task == "classification":
            values = self._plain("label", "whole numbers", pa.types.is_integer, _classes(self.card))
            return np.zeros(len(self), np.int64) if values is None else np.asarray(values, np.int64)
        columns = [self._plain(name, "numbers", _is_number) for name in self.card.targets]
        empty = np.zeros(len(self))
        # A target too large for float32 becomes infinite, which the check of samples refuses.
        with np.errstate(over="ignore"):
            targets = [np.asarray(empty if c is None else c).astype(np.float32) for c in columns]
        return np.stack(targets, axis=1)

    def features(self, modalities: Sequence[str], keep_N: Booleans) -> dict[str, Floats]:
        """Return float32 [N, D] of each modality at the rows to keep, reading no other feature column."""
        columns = {name: self.card.column(name) for name in modalities}
        present = {name: column for name, column in columns.items() if self._has_lists(column, name)}
        filters = None if keep_N.all() else [("split", "!=", "test")]
        table, rows = self._read(sorted(set(present.values())), filters), np.flatnonzero(keep_N)
        found = {
            name: self._matrix(column, table[column], self.card.width(name), rows)
            for name, column in present.items()
        }
        return {name: values for name, values in found.items() if values is not None}

    def _read(self, columns: list[str], filters: list[tuple[str, str, str]] | None = None) -> Any:
        try:
            return pq.read_table(self.path, columns=columns, filters=filters)
        except (pa.ArrowException, OSError) as error:
            raise DataError([_unreadable(self.path, error)]) from error

    def _has(self, column: str) -> bool:
        if column in self._schema.names:
            return True
        near = difflib.get_close_matches(column, self._schema.names, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"the file has {', '.join(self._schema.names[:12])}"
        if column == "group":
            mend += "; where rows belong together in no way, number them"
        self.problems.append(Problem(f"{self.path}: {column}", "this column is missing", mend))
        return False

    def _plain(self, column: str, kind: str, accepts: Any, mend: str = "convert the column") -> Any:
        """Return a column without nulls, or None after noting a problem."""
        if not self._has(column):
            return None
        stored = self._schema.field(column).type
        value_type = stored.value_type if pa.types.is_dictionary(stored) else stored
        where = f"{self.path}: {column}"
        if not accepts(value_type):
            rule = f"must hold {kind}, but holds {value_type}"
            self.problems.append(Problem(where, rule, mend))
            return None
        values = self._read([column])[column].combine_chunks()
        if values.null_count:
            rule = f"must have no empty value, but has {_counted(values)}"
            self.problems.append(Problem(where, rule, "fill these rows in or remove them"))
            return None
        return values.cast(value_type)

    def _has_lists(self, column: str, modality: str) -> bool:
        if not self._has(column):
            return False
        stored = self._schema.field(column).type
        lists = (
            pa.types.is_fixed_size_list(stored) or pa.types.is_list(stored) or pa.types.is_large_list(stored)
        )
        where = f"{self.path}: {column}"
        if not lists or stored.value_type not in _EXACT:
            rule = f"must hold lists of float32, but holds {stored}"
            self.problems.append(Problem(where, rule, "convert the column to fixed_size_list<float32>"))
            return False
        width = self.card.width(modality)
        if pa.types.is_fixed_size_list(stored) and stored.list_size != width:
            rule = f"a row must have {width} numbers, as the card says, but has {stored.list_size}"
            self.problems.append(Problem(where, rule, f"correct `modalities.{modality}.shape` of the card"))
            return False
        return True

    def _matrix(self, column: str, chunks: Any, width: int, rows: Any) -> Floats | None:
        where, values = f"{self.path}: {column}", chunks.combine_chunks()
        if values.null_count:
            rule = f"must have no empty list, but has {_counted(values, rows)}"
            self.problems.append(Problem(where, rule, "fill these rows in or remove them"))
            return None
        lengths = np.asarray(pc.list_value_length(values))
        if (lengths != width).any():
            first = int(np.flatnonzero(lengths != width)[0])
            found = f"row {rows[first]} has {lengths[first]}"
            rule = f"a row must have {width} numbers, as the card says, but {found}"
            self.problems.append(Problem(where, rule, "pad or cut the rows to one length"))
            return None
        flat = pc.list_flatten(values)
        if flat.null_count:
            owner = np.flatnonzero(np.asarray(flat.is_null())) // width
            rule = f"must have no empty value, but has {flat.null_count}, first in row {rows[owner[0]]}"
            self.problems.append(Problem(where, rule, "fill these values in or remove the rows"))
            return None
        return np.asarray(flat, np.float32).reshape(-1, width)


def _footer(path: Path) -> tuple[Any, int]:
    try:
        footer = pq.read_metadata(path)
        schema = footer.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise DataError([_unreadable(path, error)]) from error
    size = sum(footer.row_group(index).total_byte_size for index in range(footer.num_row_groups))
    if size > LARGEST_BYTES:
        rule = f"a table must unpack to at most {LARGEST_BYTES} bytes, but its footer says {size}"
        raise DataError([Problem(str(path), rule, "keep fewer rows or features")])
    return schema, footer.num_rows


def _unreadable(path: Path, error: Exception) -> Problem:
    return Problem(str(path), f"not a readable Parquet file: {str(error).splitlines()[0]}", "write it again")


def _classes(card: Card) -> str:
    return f"number the classes 0 to {(card.classes or 2) - 1}; -1 is a training row without a label"


def _counted(values: Any, rows: Any = None) -> str:
    empty = np.flatnonzero(np.asarray(values.is_null()))
    names = empty if rows is None else rows[empty]
    return f"{len(empty)}, first in row {', '.join(str(name) for name in names[:_SHOWN])}"


def _is_name(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind))


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
