"""From frozen dataclasses to Arrow schemas and to JSON, and back.

A column is a dataclass field annotated ``Annotated[type, "unit and meaning"]``; nothing else states a schema.
"""

import dataclasses
import json
import types
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from mmdistill.records.sealed import pack, unpack

# Raise when a column is added, removed, or changes its type or meaning. Records of an older version are read:
# a column that was added since must be one that may be null.
SCHEMA_VERSION = 2
OLDEST_VERSION = 1

_ARROW_TYPES = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
    list[str]: pa.list_(pa.string()),
    list[float]: pa.list_(pa.float64()),
}
_ACCEPTED = {str: (str,), int: (int,), float: (float, int), bool: (bool,)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Base of the row types.

    Attributes:
        table: name of the table.
        order: columns by which the rows of the table are sorted.
        varying: columns that may differ between two runs of one study (times, places, luck of the cache).
    """

    table: ClassVar[str]
    order: ClassVar[tuple[str, ...]]
    varying: ClassVar[tuple[str, ...]] = ()


AnyRow = TypeVar("AnyRow", bound=Row)


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        name: the name of the field and of the column.
        kind: the Python type of a value that is present.
        optional: whether a row may lack it.
        meaning: unit and meaning.
    """

    name: str
    kind: Any
    optional: bool
    meaning: str


_columns: dict[str, tuple[Column, ...]] = {}


def columns(kind: type[Row]) -> tuple[Column, ...]:
    """Return the columns of a table, in the order of the fields."""
    if kind.table not in _columns:
        hints = get_type_hints(kind, include_extras=True)
        found = [_column(field.name, hints[field.name]) for field in dataclasses.fields(kind)]
        _columns[kind.table] = tuple(found)
    return _columns[kind.table]


def _column(name: str, hint: Any) -> Column:
    bare, meaning = get_args(hint)
    if get_origin(bare) in (Union, types.UnionType):
        (present,) = (part for part in get_args(bare) if part is not types.NoneType)
        return Column(name, present, True, meaning)
    return Column(name, bare, False, meaning)


def arrow_table(kind: type[AnyRow], rows: Sequence[AnyRow]) -> pa.Table:
    """Return the rows as an Arrow table, in the order given.

    Every column is nullable: null means not measured, NaN is a value. A column of numbers or values by name
    is a struct whose fields are the union over the rows, sorted; an empty union is a struct with the single
    null field ``none``. In a column of values by name, a field holds booleans, integers or numbers where all
    its values are such; otherwise texts, and what is not a text is written as JSON.
    The schema's metadata name the table, what its rows are and the schema version, those of a field its
    meaning.

    Raises:
        ValueError: if a time has no time zone.
    """
    arrays, fields = [], []
    for column in columns(kind):
        array = _array(column, [getattr(row, column.name) for row in rows])
        arrays.append(array)
        fields.append(pa.field(column.name, array.type, metadata={"meaning": column.meaning}))
    metadata = {
        "mmdistill.table": kind.table,
        "mmdistill.schema_version": str(SCHEMA_VERSION),
        "mmdistill.meaning": meaning(kind),
    }
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))


def _array(column: Column, values: list[Any]) -> pa.Array:
    if column.kind == dict[str, float]:
        return _struct(values, lambda inner: pa.array(inner, pa.float64()))
    if column.kind == dict[str, Any]:
        return _struct(values, _array_of_any)
    if column.kind is datetime:
        values = [None if value is None else _utc(column.name, value) for value in values]
    return pa.array(values, _ARROW_TYPES[column.kind])


def _struct(values: list[Mapping[str, Any]], build: Callable[[list[Any]], pa.Array]) -> pa.Array:
    names = sorted({name for value in values for name in value})
    if not names:
        return pa.StructArray.from_arrays([pa.nulls(len(values), pa.string())], names=["none"])
    return pa.StructArray.from_arrays([build([value.get(name) for value in values]) for name in names], names)


def _array_of_any(values: list[Any]) -> pa.Array:
    found = {type(value) for value in values if value is not None}
    for accepted, arrow_type in (({bool}, pa.bool_()), ({int}, pa.int64()), ({int, float}, pa.float64())):
        if found and found <= accepted:
            return pa.array(values, arrow_type)
    return pa.array([None if value is None else as_text(value) for value in values], pa.string())


def as_text(value: Any) -> str:
    """Return a searched value as text: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(pack(value), sort_keys=True)


def meaning(kind: type[Row]) -> str:
    """Return what one row of a table is."""
    return (kind.__doc__ or "").strip().split("\n")[0]


def type_text(column: Column) -> str:
    """Return the Arrow type of a column in words."""
    if column.kind == dict[str, float]:
        return "struct<name: double, ...>"
    if column.kind == dict[str, Any]:
        return "struct<name: bool | int64 | double | string, ...>"
    return str(_ARROW_TYPES[column.kind])


def to_json(row: Row) -> dict[str, Any]:
    """Return a row as plain JSON values.

    Times are ISO-8601 in UTC. A number that is not finite is ``{"$float": "NaN"}``, ``"Infinity"`` or
    ``"-Infinity"`` in the same form, so it cannot be taken for a text.

    Raises:
        ValueError: if a time has no time zone.
    """
    return {column.name: _encoded(column.name, getattr(row, column.name)) for column in columns(type(row))}


def _encoded(name: str, value: Any) -> Any:
    return _utc(name, value).isoformat() if isinstance(value, datetime) else pack(value)


def _utc(name: str, value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError(f"`{name}` must have a time zone, but is {value.isoformat()}")
    return value.astimezone(UTC)


def from_json(kind: type[AnyRow], value: Mapping[str, Any]) -> AnyRow:
    """Return the row that :func:`to_json` wrote, now or with an older version of the schema.

    A column that may be null and is not there was added since: it is null.

    Raises:
        ValueError: if a column is unknown, missing, or holds a value of another type.
    """
    known = {column.name: column for column in columns(kind)}
    added = {column.name: None for column in known.values() if column.optional}
    value = {**added, **value}
    if set(value) != set(known):
        odd = ", ".join(sorted(set(value) ^ set(known)))
        raise ValueError(f"a row of `{kind.table}` has unknown or missing columns: {odd}")
    return kind(**{name: _decoded(known[name], entry) for name, entry in value.items()})


def _decoded(column: Column, value: Any) -> Any:
    if value is None and column.optional:
        return None
    if column.kind is datetime:
        return datetime.fromisoformat(value)
    value = unpack(value)
    accepted = _ACCEPTED.get(column.kind) or (get_origin(column.kind),)
    if not isinstance(value, accepted) or (isinstance(value, bool) and column.kind is not bool):
        raise ValueError(f"`{column.name}` cannot be {value!r}")
    return value
