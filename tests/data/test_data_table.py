import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdistill.data import parquet
from mmdistill.data.datasets.table import Table
from mmdistill.data.samples import check
from mmdistill.errors import DataError


def column(*values, kind=None):
    return pa.array(list(values), kind)


def rows_with(value, at, width=3, kind=None):
    rows = [[float(i)] * width for i in range(12)]
    rows[at] = value
    return pa.array(rows, kind or pa.list_(pa.float32()))


def test_reads_what_was_written(table):
    path = table()
    samples = Table(path=str(path)).samples()
    stored = pq.read_table(path.parent / "tiny.parquet")
    np.testing.assert_array_equal(samples.inputs["a"], np.stack(stored["x_a"].to_pylist()).astype(np.float32))
    assert {name: values.dtype.name for name, values in samples.inputs.items()} == {
        "a": "float32",
        "b": "float32",
    }
    assert samples.labels.tolist() == stored["label"].to_pylist()
    assert samples.split.tolist() == stored["split"].to_pylist()
    assert samples.groups.tolist() == samples.rows.tolist() == [str(i) for i in range(12)]
    assert check(samples, "tiny") == []


def test_reads_regression_targets_in_the_order_of_the_card(table):
    columns = {"label": None, "v": column(*np.arange(12.0)), "w": column(*range(12))}
    path = table(columns, {"task": "regression", "classes": None, "targets": ["w", "v"]})
    samples = Table(path=str(path)).samples()
    assert samples.labels.dtype == np.float32
    assert samples.labels.tolist() == [[float(i), float(i)] for i in range(12)]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.int16()), pa.list_(pa.float16(), 3)]
)
def test_reads_every_list_that_loses_nothing(table, kind):
    values = pa.array([np.full(3, i, np.float16) for i in range(12)], kind)
    samples = Table(path=str(table({"x_b": values}))).samples()
    np.testing.assert_array_equal(samples.inputs["b"], np.repeat(np.arange(12.0), 3).reshape(12, 3))


def test_without_test_rows_their_features_are_not_read(table):
    broken = rows_with([np.nan] * 3, at=10)
    dataset = Table(path=str(table({"x_b": broken})))
    samples = dataset.samples(with_test=False)
    assert check(samples, "tiny", ("train", "val")) == []
    assert samples.rows.tolist() == [str(i) for i in range(9)]
    assert len(samples.inputs["b"]) == 9
    assert any("row 10" in problem.rule for problem in check(dataset.samples(), "tiny"))


def test_test_rows_between_the_others_leave_features_and_labels_aligned(table):
    split = ["train", "test", "val", "train"] * 3
    path = table({"split": column(*split), "x_b": rows_with([0.0] * 3, at=0), "label": column(*range(12))})
    samples = Table(path=str(path)).samples(with_test=False, modalities=["b"])
    assert samples.inputs["b"][:, 0].tolist() == samples.labels.tolist()
    assert samples.rows.tolist() == [str(label) for label in samples.labels]


def test_only_the_wanted_columns_are_read(table):
    path = table({"x_a": column(*"abcdefghijkl")})
    assert list(Table(path=str(path)).samples(modalities=["b"]).inputs) == ["b"]


def test_the_fingerprint_follows_the_content_not_what_is_read_or_said(table):
    dataset = Table(path=str(table()))
    whole = dataset.samples().fingerprint
    assert whole == dataset.samples(with_test=False, modalities=["b"]).fingerprint
    table(card={"title": "A new title"})
    assert dataset.samples().fingerprint == whole
    table({"label": column(*([0, 1, 2] * 3 + [0, 0, 2]))})
    assert dataset.samples().fingerprint != whole


def test_the_version_changes_with_the_file(table):
    dataset = Table(path=str(table()))
    before = dataset.version()
    assert before == dataset.version()
    table({"x_b": rows_with([1.0] * 3, at=0)})
    assert dataset.version() != before


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x_b": None}, r"tiny\.parquet: x_b: this column is missing; did you mean 'x_a'\?"),
        (
            {"label": None},
            r"tiny\.parquet: label: this column is missing; the file has x_a, x_b, split, group",
        ),
        ({"split": None}, r"tiny\.parquet: split: this column is missing"),
        (
            {"group": None},
            r"group: this column is missing; .*; where rows belong together in no way, number them",
        ),
        ({"x_b": column(*range(12))}, "x_b: must hold lists of float32, but holds int64; convert the column"),
        ({"x_b": rows_with([0.0] * 3, 0, kind=pa.list_(pa.float64()))}, "but holds list<.*double"),
        ({"x_b": pa.array([["0"] * 3] * 12)}, "x_b: must hold lists of float32, but holds list<.*string"),
        (
            {"x_b": rows_with([0.0] * 2, at=7)},
            "must have 3 numbers, as the card says, but row 7 has 2; pad or cut",
        ),
        (
            {"x_b": rows_with([0.0] * 4, at=0, width=4, kind=pa.list_(pa.float32(), 4))},
            r"must have 3 numbers, as the card says, but has 4; correct `modalities\.b\.shape`",
        ),
        ({"x_b": rows_with(None, at=5)}, "x_b: must have no empty list, but has 1, first in row 5"),
        (
            {"x_b": rows_with([1.0, None, 1.0], at=6)},
            "x_b: must have no empty value, but has 1, first in row 6",
        ),
        (
            {"label": column(*[0, 1, None] * 4)},
            "label: must have no empty value, but has 4, first in row 2, 5, 8",
        ),
        ({"label": column(*np.arange(12.0))}, "label: must hold whole numbers, but holds double"),
        (
            {"label": column(*"abcabcabcabc")},
            "but holds string; number the classes 0 to 2; -1 is a training row without a label",
        ),
        (
            {"split": column(*["train", "val", "testing"] * 4)},
            "split: the split 'testing' is unknown; use one of",
        ),
        (
            {"split": column(*["train", "val", None] * 4)},
            "split: must have no empty value, but has 4, first in row 2",
        ),
        ({"group": column(*np.arange(12.0))}, "group: must hold names or whole numbers, but holds double"),
    ],
)
def test_says_what_is_wrong_with_a_column(table, columns, message):
    with pytest.raises(DataError, match=message):
        Table(path=str(table(columns))).samples()


def test_a_target_that_is_not_a_number_is_named(table):
    path = table({"label": None, "v": column(*"abcdefghijkl")}, {"task": "regression", "targets": ["v"]})
    with pytest.raises(DataError, match="v: must hold numbers, but holds string"):
        Table(path=str(path)).samples()


def test_a_target_beyond_float32_is_refused_by_the_check(table):
    path = table({"label": None, "v": column(*[1e300] * 12)}, {"task": "regression", "targets": ["v"]})
    assert any(
        "every target must be finite" in str(p) for p in check(Table(path=str(path)).samples(), "tiny")
    )


def test_reports_every_problem_of_a_file_at_once(table):
    columns = {
        "x_a": None,
        "x_b": rows_with([0.0], at=1),
        "label": column(*np.arange(12.0)),
        "split": column(*["x"] * 12),
    }
    with pytest.raises(DataError) as caught:
        Table(path=str(table(columns, {"n_samples": 13}))).samples()
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"sha256": "0" * 64}, r"tiny\.parquet: the card promises SHA-256 000000000000…, but the file has"),
        (
            {"bytes": 7},
            r"tiny\.parquet: the card promises 7 bytes, but the file has \d+; fetch the file again",
        ),
        ({"n_samples": 13}, r"card\.json: n_samples: the card promises 13 rows, but the file has 12"),
        ({"split_counts": {"val": 4}}, r"split_counts\.val: the card promises 4 rows, but the file has 3"),
        (
            {"file": "other.parquet"},
            r"card\.json: file: there is no file 'other\.parquet' in .*correct `file`",
        ),
        (
            {"file": "../tiny.parquet"},
            r"file: the data must lie in the folder of its card, but `file` is '\.\./",
        ),
        (
            {"file": "/etc/passwd"},
            r"file: the data must lie in the folder of its card, but `file` is '/etc/passwd'",
        ),
        ({"file": "."}, r"card\.json: file: there is no file"),
    ],
)
def test_says_what_the_card_promises_and_the_file_does_not_keep(table, card, message):
    with pytest.raises(DataError, match=message):
        Table(path=str(table(card=card))).samples()


def test_a_link_out_of_the_folder_is_refused(table, tmp_path_factory):
    path = table()
    outside = tmp_path_factory.mktemp("outside") / "far.parquet"
    (path.parent / "tiny.parquet").rename(outside)
    (path.parent / "tiny.parquet").symlink_to(outside)
    with pytest.raises(DataError, match="the data must lie in the folder of its card"):
        Table(path=str(path)).samples()


@pytest.mark.parametrize("content", [b"", b"label,split\n1,train\n", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_a_file_that_is_not_parquet_is_named(table, content):
    path = table(card={"sha256": None, "bytes": None})
    (path.parent / "tiny.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"tiny\.parquet: not a readable Parquet file: .*; write it again"):
        Table(path=str(path)).samples()


def test_a_truncated_file_is_named(table):
    path = table(card={"sha256": None, "bytes": None})
    file = path.parent / "tiny.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        Table(path=str(path)).samples()


def test_damaged_pages_are_named(table):
    path = table(card={"sha256": None, "bytes": None})
    file = path.parent / "tiny.parquet"
    content = bytearray(file.read_bytes())
    content[4:200] = b"\xff" * 196
    file.write_bytes(content)
    with pytest.raises(DataError, match="not a readable Parquet file"):
        Table(path=str(path)).samples()


def test_a_file_that_unpacks_too_large_is_refused_before_it_is_read(table, monkeypatch):
    monkeypatch.setattr(parquet, "LARGEST_BYTES", 100)
    with pytest.raises(DataError, match="a table must unpack to at most 100 bytes, but its footer says"):
        Table(path=str(table())).samples()


def test_columns_are_called_after_their_modality_unless_the_card_says_otherwise(table):
    path = table(card={"modalities": {"a": {"shape": [4]}, "other": {"shape": [4], "column": "x_a"}}})
    samples = Table(path=str(path)).samples()
    np.testing.assert_array_equal(samples.inputs["a"], samples.inputs["other"])
    card = json.loads(path.read_text(encoding="utf-8"))
    del card["file"]
    path.write_text(json.dumps(card), encoding="utf-8")
    assert len(Table(path=str(path)).samples()) == 12
