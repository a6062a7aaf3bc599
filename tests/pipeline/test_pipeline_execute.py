"""Orders, from settings and data to rows."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.special import softmax

import mmdistill.pipeline.fold
from mmdistill.data.datasets.planted import Planted
from mmdistill.data.opening import open_fold
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import execute, failed_final, run_order
from mmdistill.pipeline.fold import opened
from mmdistill.records.rows import arrow_table
from mmdistill.records.tables import content_hash
from mmdistill.training.runtime import LocalRuntime

HERE = LocalRuntime()
RECIPES = ["student_only", "hinton", "mt_pkdot", "amid"]


def science(final):
    """Return a hash of the scientific columns of what an order left."""
    tables = {
        name: arrow_table(type(rows[0]), rows)
        for name in ("trials", "stages", "epochs", "predictions")
        if (rows := list(getattr(final, name)))
    }
    return content_hash(tables)


def curves(final):
    return {(row.trial_id, row.name, row.epoch): row.value for row in final.epochs}


def same_curves(left, right):
    return left.keys() == right.keys() and all(
        left[key] == right[key] or (math.isnan(left[key]) and math.isnan(right[key])) for key in left
    )


@pytest.fixture
def fresh(tmp_path):
    """Return an empty cache each time."""
    count = iter(range(100))
    return lambda: StageCache(tmp_path / f"cache{next(count)}")


@pytest.fixture
def openings(monkeypatch):
    """Record which folds were opened with their test rows; only tests read it."""
    seen = []

    def watched(data, fold, *, with_test=False):
        seen.append(with_test)
        return open_fold(data, fold, with_test=with_test)

    monkeypatch.setattr(mmdistill.pipeline.fold, "open_fold", watched)
    return seen


class Folder:
    """A study folder in memory."""

    def __init__(self, finals=()):
        self.finals, self.ends, self.began = dict.fromkeys(finals), [], []

    def has_final(self, order_id):
        return order_id in self.finals

    def begin_attempt(self, order_id):
        self.began.append(order_id)
        return len(self.began)

    def end_attempt(self, order_id, attempt, outcome, error=None, cpu_s=None):
        self.ends.append((order_id, attempt, outcome, error))

    def put_final(self, final):
        self.finals[final.order_id] = final


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_search_order_leaves_a_trial_its_stages_and_its_curves(run, order, cache, recipe):
    one = run(recipe)
    final = execute(order("search", one), cache, HERE)
    (trial,) = final.trials
    assert (trial.status, trial.split, trial.phase, trial.lanes) == ("complete", "validation", "search", 1)
    assert trial.seed == 5
    assert 0 <= trial.epoch < 2
    for metric in ("accuracy", "log_loss", "brier", "ace", "ace_scaled", "macro_f1", "worst_class_accuracy"):
        assert math.isfinite(trial.metrics[metric]), metric
    assert trial.metrics["macs"] == 16 * 8 + 8 * 4
    assert trial.metrics["parameters"] == trial.metrics["macs"] + 8 + 4
    assert trial.teachers == list(one.networks())
    names = {row.name for row in final.epochs}
    assert {"term/task", "validation/log_loss", "validation/accuracy"} <= names
    assert {f"term/{name}" for name in one.active_terms()} <= names
    assert {row.epoch for row in final.epochs} == {0, 1}
    assert final.predictions == []
    kept = next(r for r in final.epochs if r.name == "validation/log_loss" and r.epoch == trial.epoch)
    assert kept.value == pytest.approx(trial.metrics["log_loss"], rel=1e-4)


def test_every_stage_that_was_asked_for_is_on_record_whatever_the_cache_had(run, order, cache):
    fresh, cached = (execute(order("search", run("mt_pkdot")), cache, HERE) for _ in range(2))
    assert [row.stage for row in fresh.stages] == ["teacher_outputs", "student"]
    assert fresh.stages[1].upstream == [fresh.stages[0].stage_key]
    assert {(row.reason, row.cache_hit) for row in fresh.stages} == {("no entry", False)}
    assert {(row.reason, row.cache_hit) for row in cached.stages} == {("hit", True)}
    assert [row.stage_key for row in cached.stages] == [row.stage_key for row in fresh.stages]


def test_the_price_of_shared_stages_is_the_same_whoever_paid_it(run, order, cache):
    (first,) = execute(order("search", run("mt_pkdot")), cache, HERE).trials
    (second,) = execute(order("search", run("mt_pkdot", epochs=3)), cache, HERE).trials
    assert first.stage_cpu_s == second.stage_cpu_s > 0
    (alone,) = execute(order("search", run("student_only")), cache, HERE).trials
    assert alone.stage_cpu_s == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_executions_give_the_same_science(run, order, fresh, recipe):
    runs = [run(recipe, seed=seed) for seed in (5, 6)]
    first, second = (execute(order("search", *runs), fresh(), HERE) for _ in range(2))
    assert science(first) == science(second)


def test_a_cached_student_gives_the_same_trial_as_a_fresh_one(run, order, cache):
    first, second = (execute(order("search", run("mt_pkdot")), cache, HERE) for _ in range(2))
    drop = {"started_at", "ended_at"}
    trials = [
        {k: v for k, v in dataclasses.asdict(final.trials[0]).items() if k not in drop}
        for final in (first, second)
    ]
    assert trials[0] == trials[1]
    assert curves(first) == curves(second)


@pytest.mark.parametrize("pattern", ["student-*.safetensors", "teacher_outputs-*.safetensors"])
def test_a_damaged_entry_is_computed_again_and_changes_nothing(run, order, cache, pattern):
    first = execute(order("search", run("mt_pkdot")), cache, HERE)
    (damaged,) = cache.root.glob(pattern)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    second = execute(order("search", run("mt_pkdot")), cache, HERE)
    (row,) = [row for row in second.stages if not row.cache_hit]
    assert row.stage == pattern.split("-")[0]
    assert row.reason.startswith("entry set aside")
    assert curves(first) == curves(second)
    content[-1] ^= 1
    assert damaged.read_bytes() == bytes(content)


@pytest.mark.parametrize("recipe", RECIPES)
def test_lanes_of_a_cohort_equal_their_solo_runs_after_fifty_steps(run, order, fresh, recipe):
    weights = dict.fromkeys(run(recipe).active_terms(), 0.3)
    runs = [
        run(
            recipe,
            epochs=10,
            seed=5 + k,
            optimiser__learning_rate=rate,
            optimiser__label_smoothing=0.05 * k,
            **{f"terms__{name}__weight": weight * (k + 1) for name, weight in weights.items()},
        )
        for k, rate in enumerate((3e-3, 1e-3, 1e-2))
    ]
    together = execute(order("search", *runs), fresh(), HERE)
    assert [trial.lanes for trial in together.trials] == [3, 3, 3]
    for k, one in enumerate(runs):
        alone = execute(order("search", one), fresh(), HERE)
        theirs = curves(alone)
        for (trial_id, name, epoch), value in curves(together).items():
            if trial_id == f"search{k}" and not name.startswith(("transport/", "selection/")):
                assert value == pytest.approx(theirs["search0", name, epoch], rel=1e-5, abs=1e-6), name


def test_lanes_that_cannot_train_together_do_not(run, order, cache):
    runs = [run("mt_pkdot"), run("mt_pkdot", terms__centroid__weight=0.0), run("mt_pkdot", seed=6)]
    final = execute(order("search", *runs), cache, HERE)
    by_trial = {trial.trial_id: trial for trial in final.trials}
    assert [by_trial[f"search{k}"].lanes for k in range(3)] == [2, 1, 2]
    names = {(row.trial_id, row.name) for row in final.epochs}
    assert ("search0", "term/centroid") in names
    assert ("search2", "term/centroid") in names
    assert ("search1", "term/centroid") not in names


def test_weight_zero_equals_absence_bit_for_bit(run, order, fresh):
    with_term = run("hinton", terms__transport={"weight": 0.0, "k": 8})
    finals = [execute(order("search", one), fresh(), HERE) for one in (with_term, run("hinton"))]
    assert curves(finals[0]) == curves(finals[1])
    assert finals[0].stages[-1].stage_key == finals[1].stages[-1].stage_key
    assert finals[0].trials[0].run_digest == finals[1].trials[0].run_digest


def test_a_teacher_that_nothing_listens_to_equals_no_teacher(run, order, fresh):
    unheard = run("amid", **{f"terms__{name}__weight": 0 for name in run("amid").terms})
    finals = [execute(order("search", one), fresh(), HERE) for one in (unheard, run("student_only"))]
    assert curves(finals[0]) == curves(finals[1])
    assert finals[0].trials[0].teachers == []


def test_shares_of_the_selection_sum_to_one(run, order, cache):
    final = execute(order("search", run("mt_pkdot")), cache, HERE)
    (trial,) = final.trials
    assert list(trial.selection) == ["audio", "decoy", "joint"]
    assert sum(trial.selection.values()) == pytest.approx(1)
    for epoch in (0, 1):
        shares = [r.value for r in final.epochs if r.name.startswith("selection/") and r.epoch == epoch]
        assert sum(shares) == pytest.approx(1)


def test_a_selection_that_is_none_is_stamped(run, order, cache):
    in_sample = {"selection__evidence": "in_sample", "selection__policy": "batch"}
    one = run("mt_pkdot", **in_sample, teachers__epochs=80, alignment__kind="none", teachers__weight_decay=0)
    (trial,) = execute(order("search", one), cache, HERE).trials
    assert trial.selection["joint"] > 0.99
    assert trial.note == "selection degenerate: equals fixed:joint"


def test_a_diverged_lane_is_a_row_and_leaves_its_neighbours_alone(run, order, fresh):
    calm, wild = run("hinton"), run("hinton", seed=6, optimiser__learning_rate=1e30)
    together = execute(order("search", calm, wild), fresh(), HERE)
    quiet = execute(order("search", calm, run("hinton", seed=6)), fresh(), HERE)
    trials = {trial.trial_id: trial for trial in together.trials}
    assert trials["search1"].status == "diverged"
    assert trials["search1"].error in {f"{n} is not finite at step 1" for n in ("task", "softened_logits")}
    assert trials["search1"].metrics == {}
    assert trials["search0"].status == "complete"

    def first(final):
        return {key: value for key, value in curves(final).items() if key[0] == "search0"}

    assert first(together) == first(quiet)


def test_a_diverged_student_stays_diverged_when_it_is_read_from_the_cache(run, order, cache):
    wild = run("mt_pkdot", optimiser__learning_rate=1e30)
    finals = [execute(order("search", wild), cache, HERE) for _ in range(2)]
    assert [final.trials[0].status for final in finals] == ["diverged"] * 2
    assert same_curves(curves(finals[0]), curves(finals[1]))
    (tested,) = execute(order("test", wild), cache, HERE).trials
    assert (tested.status, tested.metrics) == ("diverged", {})


def test_a_student_of_a_diverged_teacher_is_stamped(run, order, cache):
    (trial,) = execute(order("search", run("hinton", teachers__learning_rate=1e30)), cache, HERE).trials
    assert trial.note.startswith("teacher joint: task is not finite at step 1")


@pytest.mark.parametrize("kind", ["search", "validate", "confirm"])
def test_only_test_orders_open_test_rows(run, order, stages_order, cache, openings, kind):
    execute(stages_order("teacher", "joint", run("mt_pkdot")), cache, HERE)
    execute(stages_order("teacher_outputs", "audio,decoy,joint", run("mt_pkdot")), cache, HERE)
    final = execute(order(kind, run("mt_pkdot")), cache, HERE)
    assert openings == [False]
    assert all(trial.split == "validation" for trial in final.trials)
    execute(order("test", run("mt_pkdot")), cache, HERE)
    assert openings == [False, True]


def test_nothing_but_a_test_order_depends_on_test_rows(run, order, fresh, monkeypatch):
    quiet = [execute(order(kind, run("mt_pkdot")), fresh(), HERE) for kind in ("confirm", "test")]
    opened.cache_clear()
    original = mmdistill.pipeline.fold.open_fold

    def poisoned(data, fold, *, with_test=False):
        found = original(data, fold, with_test=with_test)
        if found.test is None:
            return found
        inputs = {name: np.full_like(x, np.nan) for name, x in found.test.inputs.items()}
        return dataclasses.replace(found, test=dataclasses.replace(found.test, inputs=inputs))

    monkeypatch.setattr(mmdistill.pipeline.fold, "open_fold", poisoned)
    cache = fresh()
    confirm, test = (execute(order(kind, run("mt_pkdot")), cache, HERE) for kind in ("confirm", "test"))
    assert science(confirm) == science(quiet[0])
    assert all(math.isnan(row.outputs[0]) for row in test.predictions)
    # Even where the test order has to train, it trains on what it would have trained on.
    retrained = execute(order("test", run("mt_pkdot")), fresh(), HERE)
    assert [r.stage_key for r in retrained.stages] == [r.stage_key for r in quiet[1].stages]
    assert [r.metrics["log_loss"] for r in retrained.stages if r.stage == "student"] == [
        r.metrics["log_loss"] for r in quiet[0].stages if r.stage == "student"
    ]


def test_a_test_order_measures_the_confirmed_weights_on_test_rows(run, order, cache):
    runs = [run("hinton", seed=seed) for seed in (5, 6)]
    execute(order("confirm", *runs), cache, HERE)
    final = execute(order("test", *runs), cache, HERE)
    assert all(row.cache_hit for row in final.stages)
    samples = Planted(rows=(120, 40, 40)).samples()
    truth = dict(zip(samples.rows, samples.labels, strict=True))
    for trial in final.trials:
        mine = [row for row in final.predictions if row.trial_id == trial.trial_id]
        assert [row.row for row in mine] == samples.rows[samples.split == "test"].tolist()
        assert [row.label for row in mine] == [float(truth[row.row]) for row in mine]
        outputs = np.array([row.outputs for row in mine])
        assert outputs.sum(axis=1) == pytest.approx(np.ones(40))
        hits = outputs.argmax(axis=1) == np.array([row.label for row in mine])
        assert trial.metrics["accuracy"] == pytest.approx(hits.mean())
        assert (trial.split, trial.phase, final.epochs) == ("test", "test", [])


def test_the_temperature_is_fitted_on_validation_rows(run, order, cache):
    one = run("hinton")
    confirm = execute(order("confirm", one), cache, HERE).trials[0]
    test = execute(order("test", one), cache, HERE)
    temperature = test.trials[0].metrics["temperature"]
    assert temperature == pytest.approx(confirm.metrics["temperature"])
    logits = np.log([row.outputs for row in test.predictions])
    p, labels = softmax(logits / temperature, axis=1), np.array([row.label for row in test.predictions])
    order_N = np.argsort(p.max(axis=1), kind="stable")
    hit = p.argmax(axis=1) == labels
    bins = np.array_split(order_N, 15)
    expected = sum(abs(p[b].max(axis=1).sum() - hit[b].sum()) for b in bins) / len(labels)
    assert test.trials[0].metrics["ace_scaled"] == pytest.approx(expected, abs=1e-6)


def test_stages_orders_prepare_what_students_read(run, order, stages_order, cache):
    runs = [run("mt_pkdot", seed=seed) for seed in (5, 6)]
    for name in ("audio", "decoy", "joint"):
        final = execute(stages_order("teacher", name, *runs), cache, HERE)
        assert [(row.stage, row.seed, row.arm) for row in final.stages] == [
            ("teacher", 5, None),
            ("teacher", 6, None),
        ]
    final = execute(stages_order("teacher_outputs", "audio,decoy,joint", *runs), cache, HERE)
    assert {(row.stage, row.cache_hit) for row in final.stages} == {
        ("alignment", False),
        ("teacher_outputs", False),
    }
    final = execute(order("search", *runs), cache, HERE)
    assert {row.stage for row in final.stages if not row.cache_hit} == {"student"}


def test_two_lanes_with_the_same_settings_are_trained_once(run, order, cache):
    final = execute(order("search", run(), run()), cache, HERE)
    assert [row.stage for row in final.stages] == ["student"]
    metrics = [{n: v for n, v in trial.metrics.items() if n != "latency_ms"} for trial in final.trials]
    assert metrics[0] == metrics[1]


def test_run_order_commits_the_result_and_the_attempt(run, order, cache):
    folder = Folder()
    assert run_order(order("search", run()), folder, cache, HERE) == "complete"
    assert list(folder.finals) == ["search-1"]
    assert folder.ends == [("search-1", 1, "complete", None)]
    assert run_order(order("search", run()), folder, cache, HERE) == "there already"
    assert folder.began == ["search-1"]


def test_run_order_writes_an_exception_down_and_raises_nothing(run, order, cache, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("mmdistill.pipeline.bench.train_students", broken)
    folder = Folder()
    assert run_order(order("search", run()), folder, cache, HERE) == "failed"
    assert folder.finals == {}
    assert folder.ends == [("search-1", 1, "failed", "RuntimeError: out of luck")]


def test_a_result_that_cannot_be_written_is_the_disks_fault(run, order, cache):
    class Full(Folder):
        def put_final(self, final):
            raise OSError(28, "No space left on device")

    folder = Full()
    assert run_order(order("search", run()), folder, cache, HERE) == "storage"
    assert folder.ends[0][2:4] == ("storage", "OSError: [Errno 28] No space left on device")


def test_another_worker_of_a_group_writes_nothing(run, order, cache):
    second = LocalRuntime()
    second.rank = 1
    folder = Folder()
    assert run_order(order("search", run()), folder, cache, second) == "complete"
    assert (folder.finals, folder.began, folder.ends) == ({}, [], [])
    assert not cache.root.exists()


def test_an_order_that_was_given_up_has_a_row_per_lane(run, order):
    final = failed_final(order("search", run("hinton"), run("hinton", seed=6)), "RuntimeError: out of luck")
    assert [(t.status, t.error, t.metrics) for t in final.trials] == [
        ("failed", "RuntimeError: out of luck", {})
    ] * 2
    assert [t.teachers for t in final.trials] == [["joint"]] * 2
