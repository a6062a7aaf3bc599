"""Races inside an order, and runs that train alone."""

import pytest

from mmdistill.pipeline.execute import execute
from mmdistill.pipeline.stages import Pipeline, raced
from mmdistill.pipeline.studying import cohort_key
from mmdistill.terms import TERMS
from mmdistill.training.race import RaceSettings
from mmdistill.training.runtime import LocalRuntime

HERE = LocalRuntime()
HALVING = RaceSettings(kind="halving", first=1, factor=2)


@pytest.fixture
def race(run, order):
    """Return an order over four lanes of different learning rates, which race."""

    def build(race=HALVING, **edits):
        rates = (0.01, 0.0001, 0.005, 0.001)
        runs = [run("hinton", epochs=4, optimiser__learning_rate=rate, **edits) for rate in rates]
        return order("search", *runs).model_copy(update={"race": race})

    return build


def curve(final, trial, name):
    return [row.value for row in final.epochs if (row.trial_id, row.name) == (trial, name)]


def test_a_lane_that_a_race_stopped_is_a_row_with_its_best_epoch_so_far(race, cache):
    final = execute(race(), cache, HERE)
    stopped = {trial.trial_id: trial.stopped_epoch for trial in final.trials}
    assert sorted(stopped.values(), key=str) == [1, 1, 2, None]
    for trial in final.trials:
        log_loss = curve(final, trial.trial_id, "validation/log_loss")
        assert len(log_loss) == (trial.stopped_epoch or 4)
        assert trial.status == ("complete" if trial.stopped_epoch is None else "pruned")
        assert trial.epoch == log_loss.index(min(log_loss))
        assert trial.metrics["log_loss"] == pytest.approx(min(log_loss), rel=1e-4)
        assert trial.error is None
    (winner,) = [name for name, epochs in stopped.items() if epochs is None]
    first = {name: curve(final, name, "validation/log_loss")[0] for name in stopped}
    assert sorted(first, key=first.get).index(winner) < 2


def test_the_schedule_stays_that_of_all_epochs_and_epochs_before_a_stop_are_as_without_a_race(
    race, cache, tmp_path
):
    with_race = execute(race(), cache, HERE)
    without = execute(race(race=None), cache, HERE)
    for trial in with_race.trials:
        for name in ("term/task", "validation/log_loss"):
            mine, full = (curve(final, trial.trial_id, name) for final in (with_race, without))
            assert len(full) == 4
            assert mine == pytest.approx(full[: len(mine)], rel=1e-5)
    assert {trial.status for trial in without.trials} == {"complete"}
    assert {trial.stopped_epoch for trial in without.trials} == {None}


def test_cpu_seconds_are_shared_by_the_epochs_trained(race, cache):
    trials = execute(race(), cache, HERE).trials
    per_epoch = {round(trial.cpu_s / (trial.stopped_epoch or 4), 9) for trial in trials}
    assert len(per_epoch) == 1


def test_a_race_that_is_read_from_the_cache_is_the_same(race, cache):
    first, again = (execute(race(), cache, HERE) for _ in range(2))
    assert {row.cache_hit for row in again.stages} == {True}
    for one, other in zip(first.trials, again.trials, strict=True):
        assert (one.status, one.stopped_epoch, one.metrics) == (
            other.status,
            other.stopped_epoch,
            other.metrics,
        )


def test_what_becomes_of_a_lane_depends_on_its_neighbours_and_its_key_says_so(run):
    students = [Pipeline(run(seed=seed), "data").student for seed in (1, 2, 3)]
    keys = [stage.key for stage in raced(students, HALVING)]
    assert not set(keys) & {stage.key for stage in students}
    assert [stage.key for stage in raced(students, HALVING)] == keys
    assert raced(students[:2], HALVING)[0].key != keys[0]
    assert raced(students, HALVING.model_copy(update={"first": 2}))[0].key != keys[0]
    assert raced([students[1], students[0], students[2]], HALVING)[1].key != keys[0]
    assert [stage.key for stage in raced([*students, students[0]], HALVING)] == [*keys, keys[0]]


def test_runs_of_a_term_that_cannot_be_stacked_train_alone(run, order, cache, monkeypatch):
    runs = [run("hinton", seed=seed) for seed in (5, 6)]
    assert len({cohort_key(one) for one in runs}) == 1
    monkeypatch.setattr(TERMS["softened_logits"], "solo", "its solver looks at one lane at a time")
    assert len({cohort_key(one) for one in runs}) == 2
    assert cohort_key(run("student_only")) == cohort_key(run("student_only", seed=6))
    final = execute(order("search", *runs), cache, HERE)
    assert [trial.lanes for trial in final.trials] == [1, 1]


def test_teachers_of_several_seeds_are_one_cohort(run, stages_order, cache, monkeypatch):
    from mmdistill.pipeline import bench

    seen, original = [], bench.train_teachers
    monkeypatch.setattr(
        bench, "train_teachers", lambda runs, *rest: seen.append(len(runs)) or original(runs, *rest)
    )
    execute(stages_order("teacher", "joint", run("hinton"), run("hinton", seed=6)), cache, HERE)
    assert seen == [2]
