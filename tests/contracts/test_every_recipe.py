"""What every recipe keeps; a new one is found by discovery."""

import json
import math
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmdistill.errors import UnknownNameError
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import execute
from mmdistill.pipeline.order import Lane, Order
from mmdistill.pipeline.recipe import FOLDER, recipe, recipes
from mmdistill.pipeline.run import RunSettings, canonical, live_ranges, unfit_terms
from mmdistill.settings import merged
from mmdistill.terms import TERMS
from mmdistill.training.runtime import LocalRuntime

BASE = {
    "data": {
        "dataset": "digits_views",
        "student": ["rows"],
        "privileged": ["pixels", "fourier"],
        "label_fraction": 0.25,
    },
    "teachers": {"epochs": 2, "out_of_fold": 2},
    "alignment": {"epochs": 2},
    "epochs": 2,
}
ROOT = Path(__file__).parents[2]
torch.set_num_threads(1)


@pytest.fixture(params=recipes())
def name(request):
    return request.param


def run_of(name, **data):
    tree = merged(merged(BASE, {"data": data}), recipes()[name].run)
    return RunSettings.model_validate(tree)


def skip_unless_it_is_for(task, run):
    if unfit_terms(run, task, 10):
        pytest.skip(f"this recipe is not defined for {task}")


def executed(run, root):
    lane = Lane(trial_id="t", arm="a", phase="search", number=0, pair_id="p", run=run)
    order = Order(order_id="search-1", kind="search", title="one run", lanes=(lane,))
    return execute(order, StageCache(root), LocalRuntime())


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """Write a table with two targets that its first modality shows."""
    folder, generator = tmp_path_factory.mktemp("regression"), np.random.default_rng(0)
    a = generator.standard_normal((200, 4)).astype(np.float32)
    b = np.concatenate([a[:, :2], generator.standard_normal((200, 2))], axis=1).astype(np.float32)
    columns = {
        "x_a": pa.array(list(a)),
        "x_b": pa.array(list(b)),
        "valence": pa.array(a[:, 0]),
        "arousal": pa.array(a[:, 1] - a[:, 2]),
        "split": pa.array(["train"] * 120 + ["val"] * 40 + ["test"] * 40),
        "group": pa.array(np.arange(200)),
    }
    pq.write_table(pa.table(columns), folder / "mood.parquet")
    card = {
        "name": "mood",
        "task": "regression",
        "targets": ["valence", "arousal"],
        "modalities": {"a": {"shape": [4]}, "b": {"shape": [4]}},
    }
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return str(folder)


def test_says_where_it_comes_from(name):
    found = recipes()[name]
    for text in (found.title, found.source, found.provenance, found.note):
        assert text.strip()
        assert "\n" not in text
    assert found.provenance.split()[0].rstrip(",") in {"published", "control", "inferred"}


def test_what_is_inferred_is_listed_one_choice_at_a_time(name):
    found = recipes()[name]
    assert all(choice.strip() and choice[-1] != "." for choice in found.inferred)
    assert len(set(found.inferred)) == len(found.inferred)
    if "nferred" in found.provenance + found.note:
        assert found.inferred


def test_is_an_arm_of_the_study_of_all_recipes(name):
    arms = tomllib.loads((ROOT / "search_spaces" / "recipes_digits.toml").read_text("utf-8"))["arms"]
    for_digits = not unfit_terms(run_of(name), "classification", 10)
    assert arms.count({"name": name, "recipe": name}) == for_digits


def test_is_looked_up_by_the_name_of_its_file(name):
    assert recipe(name, "here") == recipes()[name]
    assert tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))["title"] == recipes()[name].title


def test_an_unknown_recipe_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match="here: no recipe is called 'hintn'; did you mean 'hinton'"):
        recipe("hintn", "here")


def test_fits_a_run_with_privileged_modalities(name):
    run = run_of(name)
    assert canonical(run).digest == canonical(run_of(name)).digest
    assert {f"optimiser.{n}" for n in ("learning_rate", "weight_decay", "label_smoothing")} <= set(
        live_ranges(run, "classification")
    )
    for term in run.active_terms():
        assert f"terms.{term}.weight" in live_ranges(run, "classification")


def test_no_two_recipes_are_the_same():
    digests = {name: canonical(run_of(name)).digest for name in recipes()}
    assert len(set(digests.values())) == len(digests)


def test_runs_and_measures(name, tmp_path):
    run = run_of(name)
    skip_unless_it_is_for("classification", run)
    final = executed(run, tmp_path)
    (trial,) = final.trials
    assert (trial.status, trial.error) == ("complete", None)
    assert all(math.isfinite(value) for value in trial.metrics.values())
    assert {"accuracy", "log_loss", "brier", "ace", "ace_scaled", "macro_f1"} <= set(trial.metrics)
    assert all(math.isfinite(row.value) for row in final.epochs)
    assert {f"term/{term}" for term in run.active_terms()} <= {row.name for row in final.epochs}
    assert trial.teachers == list(run.networks())
    if len(run.networks()) > 1:
        assert set(trial.selection) == set(run.networks())
        assert sum(trial.selection.values()) == pytest.approx(1)
    else:
        assert trial.selection == {}


@pytest.mark.parametrize(
    ("training", "pool", "unmet"),
    [
        ("frozen", ["joint"], {"auxiliary", "average"}),
        ("joint", ["joint"], {"pool", "average"}),
        ("joint", ["student"], {"pool"}),
    ],
)
def test_all_terms_go_together(training, pool, unmet, tmp_path):
    names = [n for n, term in TERMS.items() if "classification" in term.tasks and not term.needs & unmet]
    teachers = BASE["teachers"] | {"pool": pool, "training": training}
    run = RunSettings.model_validate(BASE | {"teachers": teachers, "terms": {n: {} for n in names}})
    final = executed(run, tmp_path)
    assert [trial.status for trial in final.trials] == ["complete"]
    assert {f"term/{name}" for name in names} <= {row.name for row in final.epochs}


def test_runs_on_a_regression(name, regression, tmp_path):
    run = run_of(name, dataset=regression, student=["a"], privileged=["b"], label_fraction=0.5)
    skip_unless_it_is_for("regression", run)
    (trial,) = executed(run, tmp_path).trials
    assert trial.status == "complete"
    assert {"ccc", "rmse", "ccc_valence", "pearson_arousal", "rmse_arousal"} <= set(trial.metrics)
    assert all(math.isfinite(value) for value in trial.metrics.values())
    assert trial.metrics["ccc"] > 0
