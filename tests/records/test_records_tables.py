"""The tables of a study, live and compact."""

import json
import shutil
from dataclasses import replace

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdistill.errors import StudyError
from mmdistill.records.rows import TABLES, TrialRow, arrow_table
from mmdistill.records.schema import columns, meaning
from mmdistill.records.sealed import seal, unseal
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import compact, content_hash, in_place, latest, scientific, tables


@pytest.fixture
def full(folder, final, opening_row):
    folder.put_opening([opening_row()])
    for order_id in ("o1", "o0"):
        attempt = folder.begin_attempt(order_id)
        folder.put_final(final(order_id))
        folder.end_attempt(order_id, attempt, "complete")
    return folder


def compact_bytes(folder):
    return {path.name: path.read_bytes() for path in (folder.root / "compact").glob("*.parquet")}


def test_an_empty_study_has_every_table(folder):
    live = tables(folder)
    assert list(live) == list(TABLES)
    assert {name: table.num_rows for name, table in live.items() if table.num_rows} == {"studies": 1}
    compact(folder)
    assert {name: table.schema for name, table in latest(folder).items()} == {
        name: table.schema for name, table in live.items()
    }


def test_rows_are_sorted_whatever_the_order_of_the_orders(full):
    live = tables(full)
    assert live["trials"]["trial_id"].to_pylist() == ["o0.0", "o1.0", "o0.1", "o1.1"]
    counts = {"trials": 4, "stages": 2, "epochs": 12, "predictions": 16, "attempts": 2, "studies": 1}
    assert {name: table.num_rows for name, table in live.items()} == {
        **counts,
        "matrices": 0,
        "test_openings": 1,
    }
    assert live["epochs"]["epoch"].to_pylist() == [0, 1, 2] * 4


def test_compact_tables_equal_the_live_ones(full):
    live = tables(full)
    manifest = compact(full)
    assert manifest.number == 1
    assert manifest.sources["finals"] == ["o0.json", "o1.json"]
    found = latest(StudyFolder.open(full.root))
    for name, table in live.items():
        assert found[name].equals(table, check_metadata=True), name
        assert found[name].schema.metadata[b"mmdistill.table"] == name.encode()
    assert content_hash(found) == content_hash(live)
    assert compact(full) == manifest


def test_rebuilding_gives_the_same_bytes(full):
    compact(full)
    before = compact_bytes(full)
    for name in ("compact", "manifest"):
        shutil.rmtree(full.root / name)
    assert compact(StudyFolder.open(full.root)).number == 1
    assert compact_bytes(full) == before


@pytest.mark.parametrize("news", ["final", "attempt"])
def test_what_came_after_the_manifest_is_not_missed(full, final, news):
    compact(full)
    if news == "final":
        full.put_final(final("o2"))
        assert latest(full)["trials"].num_rows == 6
    else:
        full.begin_attempt("o2")
        assert latest(full)["attempts"].num_rows == 3
    assert compact(full).number == 2


@pytest.mark.parametrize("place", ["compact/trials.parquet", "manifest/1.json"])
@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_damaged_derived_files_are_passed_over_and_mended(full, place, damage):
    compact(full)
    path = full.root / place
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    assert latest(full)["trials"].num_rows == 4
    compact(full)
    assert path.exists()
    shutil.rmtree(full.root / "finals")
    (full.root / "finals").mkdir()
    assert latest(StudyFolder.open(full.root))["trials"].num_rows == 0


def test_a_damaged_side_file_is_an_error_and_no_missing_row(full):
    path = next((full.root / "curves").iterdir())
    path.write_bytes(b"PAR1")
    with pytest.raises(StudyError, match=f"{path.name} is damaged"):
        tables(full)


def test_page_checksums_are_written(full):
    compact(full)
    path = full.root / "compact" / "predictions.parquet"
    content = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(9)
    assert column.compression == "ZSTD"
    end = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
    content[end - 1] ^= 1
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(pa.BufferReader(bytes(content)), page_checksum_verification=True)


def test_other_readers_open_the_files(full):
    compact(full)
    folder = full.root / "compact"
    for name, table in tables(full).items():
        file = str(folder / f"{name}.parquet")
        assert len(pd.read_parquet(file)) == table.num_rows
        assert pl.read_parquet(file).height == table.num_rows
        assert duckdb.sql(f"SELECT count(*) FROM '{file}'").fetchall() == [(table.num_rows,)]
    trials = str(folder / "trials.parquet")
    sql = f"""SELECT metrics.accuracy, parameters."optimiser.lr" FROM '{trials}'"""
    assert duckdb.sql(sql).fetchall()[0] == (0.9, 0.01)
    assert pl.read_parquet(trials)["metrics"].struct.field("accuracy").to_list() == [0.9] * 4
    assert pd.read_parquet(trials)["teachers"][0] == ["joint"]
    assert pl.read_parquet(trials).schema["started_at"] == pl.Datetime("us", "UTC")


def test_scientific_content_has_no_times_places_and_latencies(trial_row):
    table = scientific(arrow_table(TrialRow, [trial_row()]))
    gone = {"cpu_s", "stage_cpu_s", "lanes", "device", "host", "started_at", "ended_at"}
    assert gone.isdisjoint(table.column_names)
    assert table["metrics"].to_pylist() == [{"accuracy": 0.9}]
    bare = scientific(arrow_table(TrialRow, [trial_row(metrics={"latency_ms": 1.0})]))
    assert bare["metrics"].to_pylist() == [{"none": None}]


def test_the_content_hash_sees_results_and_only_results(tmp_path, study_row, final, trial_row):
    def hash_of(name, **changes):
        study = StudyFolder.create(
            tmp_path / name, study_row(host=name, git_commit=name, package_version=name), "", {}
        )
        for _ in range(len(name)):
            study.begin_attempt("o0")
        study.put_final(replace(final(), trials=[trial_row(**changes)]))
        return content_hash(tables(study))

    base = hash_of("a")
    assert hash_of("bb", cpu_s=7.0, host="there", metrics={"accuracy": 0.9, "latency_ms": 9.0}) == base
    assert hash_of("c", metrics={"accuracy": 0.9000000000000001}) != base
    assert hash_of("d", status="diverged") != base


def test_meanings_are_in_the_files_after_compaction(full):
    compact(full)
    for path in (full.root / "compact").glob("*.parquet"):
        schema = pq.read_schema(path)
        kind = TABLES[path.stem]
        assert schema.metadata[b"mmdistill.meaning"].decode() == meaning(kind)
        assert {f.name: f.metadata[b"meaning"].decode() for f in schema} == {
            column.name: column.meaning for column in columns(kind)
        }


def test_a_study_of_an_older_schema_is_read(full, final, monkeypatch):
    for path in [full.root / "study.json", *(full.root / "finals").iterdir()]:
        body = unseal(path, path.read_bytes())
        if path.name == "study.json":
            for column in ("versions_json", "hardware_json", "environment_json"):
                del body["row"][column]
        else:
            body["schema_version"] = 1
        path.write_bytes(seal(body))
    old = StudyFolder.open(full.root)
    assert tables(old)["trials"].num_rows == 4
    assert tables(old)["studies"]["hardware_json"].to_pylist() == [None]
    monkeypatch.setattr("mmdistill.records.tables.SCHEMA_VERSION", 1)
    compact(old)
    monkeypatch.undo()
    assert in_place(old) is None
    assert latest(StudyFolder.open(full.root))["trials"].num_rows == 4
    assert compact(StudyFolder.open(full.root)).schema_version == 2
    path = next((full.root / "finals").iterdir())
    path.write_bytes(seal({**unseal(path, path.read_bytes()), "schema_version": 3}))
    with pytest.raises(StudyError, match="schema version 3"):
        tables(StudyFolder.open(full.root))


def test_compact_tables_are_found_in_place_while_they_are_whole(full):
    assert in_place(full) is None
    compact(full)
    found = in_place(full)
    assert {name: rows for name, (_, rows) in found.items()} == {
        name: table.num_rows for name, table in tables(full).items()
    }
    assert all(pq.read_metadata(path).num_rows == rows for path, rows in found.values())
    path, _ = found["epochs"]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert in_place(full) is None
    path.unlink()
    assert in_place(full) is None
    path.write_bytes(content)
    full.begin_attempt("o2")
    assert in_place(StudyFolder.open(full.root)) is None


def test_secrets_in_errors_and_settings_are_not_written(folder, final, trial_row):
    secret = "s3cr3t-Value_42"
    folder.end_attempt("o0", folder.begin_attempt("o0"), "failed", f"GET https://me:{secret}@host: 403")
    config = json.dumps({"data": {"dataset": f"https://host/x?token={secret}"}})
    row = trial_row(error=f"refused: api_key={secret}", config_json=config)
    folder.put_final(replace(final(), trials=[row]))
    found = tables(StudyFolder.open(folder.root))
    assert found["attempts"]["error"].to_pylist() == ["GET https://***@host: 403"]
    assert found["trials"]["error"].to_pylist() == ["refused: api_key=***"]
    (kept,) = found["trials"]["config_json"].to_pylist()
    assert json.loads(kept) == {"data": {"dataset": "https://host/x?token=***"}}
