import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdistill.data.card import Card, Modality
from mmdistill.data.samples import Samples

SPLIT = ("train",) * 6 + ("val",) * 3 + ("test",) * 3


def lists(values):
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), values.shape[1])


@pytest.fixture
def table(tmp_path):
    """Write a table of 12 rows, 3 classes, modalities a (2 x 2) and b (3); edits replace or (None) drop."""

    def write(columns=(), card=(), *, rows=12):
        generator = np.random.default_rng(0)
        filled = {
            "x_a": lists(generator.standard_normal((rows, 4))),
            "x_b": lists(generator.standard_normal((rows, 3))),
            "label": pa.array(np.arange(rows) % 3, pa.int32()),
            "split": pa.array(list(SPLIT[:rows])).dictionary_encode(),
            "group": pa.array(np.arange(rows), pa.int32()),
        } | dict(columns)
        file = tmp_path / "tiny.parquet"
        pq.write_table(pa.table({name: array for name, array in filled.items() if array is not None}), file)
        described = {
            "name": "tiny",
            "task": "classification",
            "classes": 3,
            "modalities": {"a": {"shape": [2, 2], "column": "x_a"}, "b": {"shape": [3], "column": "x_b"}},
            "file": "tiny.parquet",
            "n_samples": rows,
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "target": "label",
        } | dict(card)
        kept = {key: value for key, value in described.items() if value is not None}
        (tmp_path / "card.json").write_text(json.dumps(kept), encoding="utf-8")
        return tmp_path / "card.json"

    return write


@pytest.fixture
def samples():
    """Return a function that makes 12 sound rows with some attributes replaced."""

    def make(**changes):
        rows = np.arange(12).astype(str)
        sound = {
            "card": Card(
                name="tiny", task="classification", classes=3, modalities={"a": Modality(shape=(2,))}
            ),
            "inputs": {"a": np.ones((12, 2), np.float32)},
            "labels": np.arange(12) % 3,
            "split": np.array(SPLIT),
            "groups": rows,
            "rows": rows,
            "fingerprint": "0" * 16,
        }
        return Samples(**(sound | changes))

    return make
