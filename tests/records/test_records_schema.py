"""Rows against their JSON and Arrow forms."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdistill.records.rows import TABLES, EpochRow, TrialRow, arrow_table, from_json, schema_text, to_json
from mmdistill.records.schema import columns, meaning
from mmdistill.records.sealed import pack, seal, unpack, unseal

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
VALUES = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), NUMBERS, st.text(), st.lists(NUMBERS))
STRATEGIES = {
    str: st.text(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: NUMBERS,
    bool: st.booleans(),
    datetime: st.datetimes(timezones=st.just(UTC)),
    list[str]: st.lists(st.text()),
    list[float]: st.lists(NUMBERS),
    dict[str, float]: st.dictionaries(st.text(min_size=1), NUMBERS, max_size=4),
    dict[str, Any]: st.dictionaries(st.text(min_size=1), VALUES, max_size=4),
}


def rows_of(kind):
    return st.builds(
        kind,
        **{c.name: STRATEGIES[c.kind] | (st.none() if c.optional else st.nothing()) for c in columns(kind)},
    )


def same(left, right):
    """Equality in which NaN equals NaN, 1 is not True, and times are equal in any spelling of UTC."""
    left, right = (
        json.dumps(pack(value), sort_keys=True, default=lambda time: time.astimezone(UTC).isoformat())
        for value in (left, right)
    )
    return left == right


@pytest.mark.parametrize("kind", TABLES.values(), ids=list(TABLES))
def test_every_row_survives_json_and_sealing(kind, tmp_path):
    @settings(max_examples=15, deadline=None)
    @given(rows_of(kind))
    def check(row):
        value = json.loads(json.dumps(to_json(row), allow_nan=False))
        for back in (from_json(kind, value), from_json(kind, unseal(tmp_path, seal({"row": value}))["row"])):
            assert same(vars(back), vars(row))

    check()


@pytest.mark.parametrize("kind", TABLES.values(), ids=list(TABLES))
def test_every_row_survives_arrow(kind):
    @settings(max_examples=10, deadline=None)
    @given(st.lists(rows_of(kind), min_size=1, max_size=3))
    def check(rows):
        table = arrow_table(kind, rows)
        plain = [c.name for c in columns(kind) if c.kind not in (dict[str, float], dict[str, Any])]
        for back, row in zip(table.select(plain).to_pylist(), rows, strict=True):
            assert same(back, {name: getattr(row, name) for name in plain})

    check()


def test_every_column_is_nullable_and_has_a_meaning():
    for name, kind in TABLES.items():
        schema = arrow_table(kind, []).schema
        assert schema.metadata[b"mmdistill.table"] == name.encode()
        assert schema.metadata[b"mmdistill.schema_version"] == b"2"
        assert schema.metadata[b"mmdistill.meaning"].decode() == meaning(kind)
        assert all(field.nullable and field.metadata[b"meaning"] for field in schema)
        assert not any(pa.types.is_dictionary(field.type) for field in schema)
        assert set(kind.order) | set(kind.varying) <= set(schema.names)


def test_the_schema_text_lists_every_column():
    text = schema_text()
    for name, kind in TABLES.items():
        assert f"## {name}\n\n{meaning(kind)}\n" in text
        assert all(f"- `{column.name}`" in text for column in columns(kind))
    assert "- `started_at`* (timestamp[us, tz=UTC]): start, UTC" in text
    assert "- `number` (int64 or null): number of the proposal" in text


def test_the_document_says_what_the_code_says():
    document = Path(__file__).parents[2] / "dashboards" / "SCHEMA.md"
    # If this fails: mmdistill schema > dashboards/SCHEMA.md
    assert document.read_text("utf-8") == schema_text()


def test_a_row_of_an_older_version_lacks_what_may_be_null(trial_row):
    written = to_json(trial_row(number=3))
    for column in ("error", "stopped_epoch"):
        del written[column]
    assert from_json(TrialRow, written) == trial_row(number=3)


def test_metrics_become_one_struct_over_the_union_of_names(trial_row):
    rows = [trial_row(metrics={"b": 1.0}), trial_row(metrics={"a": math.nan, "b": 2}), trial_row(metrics={})]
    metrics = arrow_table(TrialRow, rows)["metrics"]
    assert metrics.type == pa.struct([("a", pa.float64()), ("b", pa.float64())])
    first, second, third = metrics.to_pylist()
    assert first == {"a": None, "b": 1.0}
    assert math.isnan(second["a"])
    assert third == {"a": None, "b": None}


def test_an_empty_union_is_a_struct_with_one_null_text(trial_row):
    table = arrow_table(TrialRow, [trial_row(metrics={}, parameters={})])
    assert table["metrics"].to_pylist() == [{"none": None}]
    assert table["parameters"].type == pa.struct([("none", pa.string())])


def test_searched_values_keep_the_narrowest_common_type(trial_row):
    first = {"flag": True, "count": 1, "mixed": 1, "free": "auto", "teachers": ["a", "b"]}
    second = {"flag": False, "count": 2, "mixed": 0.5, "free": 3, "teachers": ["c"]}
    column = arrow_table(TrialRow, [trial_row(parameters=first), trial_row(parameters=second)])["parameters"]
    assert {field.name: str(field.type) for field in column.type} == {
        "flag": "bool", "count": "int64", "mixed": "double", "free": "string", "teachers": "string",
    }  # fmt: skip
    assert column.to_pylist()[0]["teachers"] == '["a", "b"]'
    assert [row["free"] for row in column.to_pylist()] == ["auto", "3"]


def test_times_are_written_in_utc(trial_row):
    row = trial_row(started_at=datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))))
    assert to_json(row)["started_at"] == "2026-01-01T00:00:00+00:00"
    assert arrow_table(TrialRow, [row])["started_at"].to_pylist() == [datetime(2026, 1, 1, tzinfo=UTC)]


def test_a_time_without_a_zone_is_refused(trial_row):
    row = trial_row(started_at=datetime(2026, 1, 1))  # noqa: DTZ001
    for convert in (to_json, lambda row: arrow_table(TrialRow, [row])):
        with pytest.raises(
            ValueError, match="`started_at` must have a time zone, but is 2026-01-01T00:00:00"
        ):
            convert(row)


def test_numbers_that_are_not_finite_are_told_from_texts():
    assert pack({"a": [math.inf, "Infinity"]}) == {"a": [{"$float": "Infinity"}, "Infinity"]}
    assert unpack(pack([-math.inf, "NaN"])) == [-math.inf, "NaN"]
    assert math.isnan(unpack({"$float": "NaN"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": None}, "`epoch` cannot be None"),
        ({"epoch": "3"}, "`epoch` cannot be '3'"),
        ({"epoch": True}, "`epoch` cannot be True"),
        ({"value": "high"}, "`value` cannot be 'high'"),
        ({"extra": 1}, "a row of `epochs` has unknown or missing columns: extra"),
    ],
)
def test_a_foreign_row_is_refused(change, message):
    good = to_json(EpochRow(trial_id="t", arm="a", phase="search", epoch=3, name="n", value=1.0))
    with pytest.raises(ValueError, match=message):
        from_json(EpochRow, {**good, **change})
    del good["name"]
    with pytest.raises(ValueError, match="missing columns: name"):
        from_json(EpochRow, good)
