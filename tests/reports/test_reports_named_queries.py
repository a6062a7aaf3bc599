"""What the named queries answer, on a study made by hand."""

import dataclasses
import json
from pathlib import Path

import pytest

from mmdistill.records.finals import Final
from mmdistill.records.rows import StageRow
from mmdistill.records.study import StudyFolder
from mmdistill.reports.query import query

QUERIES = Path(__file__).parents[2] / "dashboards" / "queries"


@pytest.fixture
def ask(tmp_path, new_study, new_trial):
    """Return the rows of a named query: two label fractions, a race, a killed attempt, a shared teacher."""
    arms = [{"name": f"hinton@{f}", "recipe": "hinton"} for f in (0.1, 1.0)]
    made = new_study(["student_only", *arms])
    for arm, fraction in (("hinton@0.1", 0.1), ("hinton@1.0", 1.0)):
        config = json.dumps({"epochs": 9, "data": {"label_fraction": fraction}})
        for seed in range(2):
            metrics = {"accuracy": fraction / 2 + 0.1 * seed}
            row = new_trial(arm, "test", seed_index=seed, metrics=metrics, config_json=config)
            made.trials.append(row)
        losses = enumerate([0.5, 0.6, 0.7])
        search = [
            new_trial(arm, "search", number=i, metrics={"log_loss": x}, config_json=config) for i, x in losses
        ]
        if fraction == 1.0:
            search[1] = dataclasses.replace(search[1], status="pruned", stopped_epoch=2)
            search[2] = dataclasses.replace(search[2], status="failed", metrics={})
        made.trials += search
    folder = StudyFolder.create(tmp_path / "study", made.study, "", {})
    killed = folder.begin_attempt("all")
    folder.end_attempt("all", folder.begin_attempt("all"), "complete")
    folder.put_final(Final("all", "search", trials=made.trials, stages=stages()))
    assert killed == 1

    def rows(name):
        return query(folder.root, (QUERIES / f"{name}.sql").read_text()).to_pylist()

    return rows


def stages():
    shared = {"stage_key": "k", "seed": 1, "fold": 0, "pair_id": "p", "metrics": {}, "upstream": []}
    return [
        StageRow(
            stage="teacher",
            name="joint",
            order_id=f"o{hit}",
            cache_hit=hit,
            reason="hit" if hit else "new",
            cpu_s=4.0,
            **shared,
        )
        for hit in (False, True)
    ]


def test_the_label_curve_has_the_score_of_each_recipe_at_each_fraction(ask):
    assert [(r["recipe"], r["label_fraction"], r["n"], r["score"]) for r in ask("label_curve")] == [
        ("hinton", 0.1, 2, pytest.approx(0.1)),
        ("hinton", 1.0, 2, pytest.approx(0.55)),
    ]


def test_a_killed_attempt_is_redone_work(ask):
    (row,) = ask("redone_work")
    assert (row["order_id"], row["attempt"], row["redone"]) == ("all", 1, True)
    assert 0 <= row["seconds_lost"] < 60


def test_pruned_trials_are_counted_with_their_epochs(ask):
    first, second = ask("pruned_steps")
    assert (first["pruned"], first["earliest"]) == (0, None)
    assert (second["trials"], second["pruned"], second["mean_epochs"], second["planned_epochs"]) == (
        3,
        1,
        2,
        9,
    )


def test_a_budget_is_equal_whatever_became_of_the_trials(ask):
    first, second = ask("equal_budget")
    assert first["trials"] == second["trials"] == 3
    assert (second["complete"], second["pruned"], second["failed_or_diverged"]) == (1, 1, 1)


def test_costs_tell_what_sharing_spared(ask):
    (row,) = ask("cost_by_stage")
    assert (row["stage"], row["computed"], row["from_cache"]) == ("teacher", 1, 1)
    assert (row["cpu_s_spent"], row["cpu_s_spared"]) == (4.0, 4.0)
