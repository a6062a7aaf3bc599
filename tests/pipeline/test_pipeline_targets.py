"""Targets of a regression: their unit decides nothing."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import execute
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.forecast import forecast
from mmdistill.training.runtime import LocalRuntime

ROWS = 160


@pytest.fixture
def measured(tmp_path):
    """Return ``measured(shift, factor)``: the path of one data set, its targets in another unit."""

    def write(shift, factor):
        rng = np.random.default_rng(0)
        x_ND = rng.standard_normal((ROWS, 6)).astype(np.float32)
        targets_NT = np.stack([x_ND @ rng.standard_normal(6), x_ND @ rng.standard_normal(6)], axis=1)
        targets_NT = (targets_NT + rng.standard_normal((ROWS, 2)) / 2).astype(np.float32)
        targets_NT = shift + factor * targets_NT.astype(np.float64)
        columns = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(x.ravel(), pa.float32()), 3)
            for name, x in {"x_a": x_ND[:, :3].copy(), "x_b": x_ND[:, 3:].copy()}.items()
        }
        columns |= {"v": pa.array(targets_NT[:, 0]), "w": pa.array(targets_NT[:, 1])}
        columns["split"] = pa.array(["train", "train", "val", "test"] * (ROWS // 4))
        columns["group"] = pa.array(np.arange(ROWS))
        folder = tmp_path / f"{factor:g}"
        folder.mkdir()
        pq.write_table(pa.table(columns), folder / "one.parquet")
        card = {
            "name": "one",
            "task": "regression",
            "targets": ["v", "w"],
            "modalities": {m: {"shape": [3], "column": f"x_{m}"} for m in "ab"},
            "file": "one.parquet",
        }
        (folder / "card.json").write_text(json.dumps(card))
        return str(folder)

    return write


def one_run(run, dataset):
    data = {"dataset": dataset, "options": {}, "student": ["a"], "privileged": ["b"]}
    return run("hinton", **{f"data__{key}": value for key, value in data.items()}, epochs=8)


def test_metrics_do_not_hang_on_the_unit_and_rmse_is_in_it(run, order, measured, tmp_path):
    found = []
    for factor in (1.0, 100.0):
        one = one_run(run, measured(1000.0 * (factor > 1), factor))
        (trial,) = execute(
            order("search", one), StageCache(tmp_path / f"cache{factor:g}"), LocalRuntime()
        ).trials
        found.append(trial.metrics)
    plain, large = found
    assert plain["ccc_v"] > 0.1
    for name in ("ccc", "ccc_v", "ccc_w", "pearson_v"):
        assert large[name] == pytest.approx(plain[name], abs=0.01)
    assert large["rmse"] == pytest.approx(100 * plain["rmse"], rel=0.01)


def test_networks_learn_targets_of_mean_0_and_spread_1_and_speak_in_units(run, measured):
    fold = opened(one_run(run, measured(1000.0, 100.0)).data, 0, with_test=False, device="cpu")
    seen_NT = fold.train.labels.double().numpy()
    assert seen_NT.mean(axis=0) == pytest.approx(0, abs=1e-4)
    assert seen_NT.std(axis=0) == pytest.approx(1, abs=1e-4)
    assert fold.in_units(seen_NT) == pytest.approx(fold.arrays.train.labels, rel=1e-5)


def test_so_does_the_forecast(run, measured):
    found = []
    for factor in (1.0, 100.0):
        one = one_run(run, measured(1000.0 * (factor > 1), factor))
        found.append(forecast(one, opened(one.data, 0, with_test=False, device="cpu"), 0))
    plain, large = found
    assert large.beyond_label == pytest.approx(plain.beyond_label, abs=0.01)
    assert large.student_score == pytest.approx(plain.student_score, abs=0.01)
