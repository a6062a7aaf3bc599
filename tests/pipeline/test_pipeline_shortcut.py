"""A teacher that trains along forgets what its student cannot see, on data where that is known."""

import statistics

import pytest

from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import execute
from mmdistill.pipeline.order import Lane, Order
from mmdistill.pipeline.recipe import recipes
from mmdistill.pipeline.run import RunSettings
from mmdistill.settings import edited, merged
from mmdistill.training.runtime import LocalRuntime

# Nothing of audio is in face too, so all that a probe finds of audio is a factor that only audio sees.
BASE = {
    "data": {
        "dataset": "planted",
        "options": {"rows": [400, 200, 4], "redundant": 0.0, "student_only": 2.0, "privileged_only": 2.0},
        "student": ["face"],
        "privileged": ["audio"],
    },
    "network": {"width": 16, "depth": 1},
    "teachers": {"epochs": 15, "out_of_fold": 2},
    "optimiser": {"learning_rate": 3e-3, "weight_decay": 0.1},
    "epochs": 25,
    "batch_size": 32,
}
SEEDS = 2
NAME = "validation/teacher_auxiliary_r2"


def final_of(root, edits, recipe="amid"):
    tree = edited(merged(BASE, recipes()[recipe].run), edits)
    lanes = tuple(
        Lane(
            trial_id=f"t{seed}",
            arm="a",
            phase="search",
            number=seed,
            pair_id=f"p{seed}",
            run=RunSettings.model_validate(tree | {"seed": seed}),
        )
        for seed in range(SEEDS)
    )
    order = Order(order_id="search-1", kind="search", title="some seeds", lanes=lanes)
    return execute(order, StageCache(root), LocalRuntime())


def kept(root, **edits):
    """Return the mean R2 of every epoch; edits with `__` for the dots of a path."""
    changes = {"terms.conditional_entropy.weight": 0.0, "terms.mutual_information.weight": 1.0}
    changes |= {path.replace("__", "."): value for path, value in edits.items()}
    rows = [row for row in final_of(root, changes).epochs if row.name == NAME]
    return [
        statistics.mean(row.value for row in rows if row.epoch == epoch) for epoch in range(BASE["epochs"])
    ]


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory):
    root = tmp_path_factory.mktemp("forgetful")
    return kept(root, teachers__task_weight=0.0, terms__auxiliary_information__weight=0.0)


def test_a_teacher_without_a_task_that_only_agrees_with_its_student_forgets(forgetful):
    assert forgetful[-1] < 0.7 * forgetful[0]
    assert forgetful[-1] < 0.2


@pytest.mark.parametrize("auxiliary", ["joint", "frozen"])
def test_information_about_the_auxiliary_keeps_what_it_would_forget(auxiliary, forgetful, tmp_path):
    found = kept(
        tmp_path,
        teachers__task_weight=0.0,
        teachers__auxiliary=auxiliary,
        terms__auxiliary_information__weight=1.0,
    )
    assert found[-1] > 2 * forgetful[-1]
    assert found[-1] > 0.3


def test_a_run_whose_adversary_won_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("mmdistill.pipeline.studying.SATURATED_ACCURACY", 0.3)
    final = final_of(tmp_path, {"epochs": 18}, "amid")
    assert {trial.note for trial in final.trials} == {"adversary saturated"}
    assert all("teacher_auxiliary_r2" in trial.metrics for trial in final.trials)
