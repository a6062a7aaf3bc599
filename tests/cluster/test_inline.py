"""Whole studies in this process, small enough to take a second."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdistill.cluster.inline import run_inline
from mmdistill.errors import ConfigError
from mmdistill.pipeline import execute as execution
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import run_order
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import compact, content_hash, tables
from mmdistill.reports.ablation import summarise
from mmdistill.reports.query import query
from mmdistill.studies.session import RETRIES
from mmdistill.training.runtime import LocalRuntime


def science(root):
    return content_hash(tables(StudyFolder.open(root)))


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    root = tmp_path_factory.mktemp("studies") / "undisturbed"
    finished(root)
    return root


def test_a_study_ends_with_a_claim_for_every_contrast(undisturbed):
    ablation = summarise(undisturbed)
    assert ablation.basis == "test"
    assert [arm.name for arm in ablation.arms] == ["student_only", "hinton", "mt_pkdot"]
    assert all(arm.score.n == 2 for arm in ablation.arms)
    (claim,) = ablation.contrasts
    assert claim.verdict in {"helps", "harms", "equivalent", "cannot tell"}


def test_every_arm_searched_equally(undisturbed):
    sql = "SELECT arm, phase, count(*) AS n, count(DISTINCT number) AS numbers FROM trials GROUP BY ALL"
    found = {
        (row["arm"], row["phase"]): (row["n"], row["numbers"]) for row in query(undisturbed, sql).to_pylist()
    }
    for arm in ("student_only", "hinton", "mt_pkdot"):
        assert found[arm, "search"] == (3, 3)
        assert found[arm, "validate"] == (2, 2)
        assert found[arm, "confirm"] == found[arm, "test"] == (2, 1)


def test_teachers_are_trained_once_per_network_seed_and_fold(undisturbed):
    sql = """
        SELECT name, seed, fold, count(DISTINCT stage_key) AS keys, count(*) FILTER (NOT cache_hit) AS trained
        FROM stages WHERE stage = 'teacher' GROUP BY ALL
    """
    rows = query(undisturbed, sql).to_pylist()
    assert {row["name"] for row in rows} == {"audio", "decoy", "face", "audio+decoy+face"}
    assert len(rows) == 4 * (1 + 1 + 2)  # networks x (search, validation, confirmation seeds)
    assert all((row["keys"], row["trained"]) == (1, 1) for row in rows)


def test_the_test_split_is_opened_once_per_arm_and_pair_after_the_selection(undisturbed):
    sql = "SELECT arm, seed_index, count(*) AS n FROM test_openings GROUP BY ALL"
    assert all(row["n"] == 1 for row in query(undisturbed, sql).to_pylist())
    late = "SELECT count(*) AS n FROM test_openings, trials WHERE phase = 'confirm' AND ended_at > opened_at"
    assert query(undisturbed, late).to_pylist() == [{"n": 0}]
    sql = "SELECT count(*) AS n FROM predictions"
    assert query(undisturbed, sql).to_pylist() == [{"n": 3 * 2 * 32}]


def test_running_again_executes_nothing(begun, undisturbed):
    before = science(undisturbed)
    session = begun(undisturbed)
    attempts = session.folder.attempts()
    run_inline(session, StageCache(undisturbed / "cache"))
    assert begun(undisturbed).folder.attempts() == attempts
    assert science(undisturbed) == before


@pytest.mark.parametrize("steps", [[1], [9, 9, 2]])
def test_stopping_and_going_on_changes_no_result(begun, finished, undisturbed, tmp_path, steps):
    for most in steps:
        run_inline(begun(tmp_path), StageCache(tmp_path / "cache"), most=most)
    finished(tmp_path)
    assert science(tmp_path) == science(undisturbed)
    attempts = Counter(attempt.order_id for attempt in StudyFolder.open(tmp_path).attempts())
    assert set(attempts.values()) == {1}


def test_a_changed_study_is_refused_key_by_key(begun, undisturbed):
    with pytest.raises(ConfigError) as caught:
        begun(undisturbed, {"run": {"epochs": 3}, "seed": 4})
    found = [str(problem) for problem in caught.value.problems]
    assert len(found) == 4
    assert "study.json: arms.hinton.run.epochs: 2 -> 3; run with another --output" in found[0]
    assert found[3].endswith("study.json: seed: 3 -> 4; run with another --output, or restore the value")


class Killed(BaseException):
    """Ends the process as far as anything below it can tell."""


def every_third_time(proceed, calls):
    def fatal(*args, **more):
        calls.append(args)
        if len(calls) % 3 == 0:
            raise Killed
        return proceed(*args, **more)

    return fatal


@pytest.mark.parametrize("moment", ["before the work", "between the work and the record"])
def test_a_kill_inside_an_order_changes_no_result(finished, undisturbed, tmp_path, monkeypatch, moment):
    calls, kills = [], 0
    if moment == "before the work":
        monkeypatch.setattr(execution, "execute", every_third_time(execution.execute, calls))
    else:
        monkeypatch.setattr(StudyFolder, "put_final", every_third_time(StudyFolder.put_final, calls))
    while True:
        try:
            finished(tmp_path)
            break
        except Killed:
            kills += 1
    assert science(tmp_path) == science(undisturbed)
    unended = [attempt for attempt in StudyFolder.open(tmp_path).attempts() if attempt.outcome is None]
    assert len(unended) == kills == len(calls) // 3


def test_a_cache_filled_by_another_study_changes_no_result(finished, undisturbed, tmp_path):
    finished(tmp_path, cache=undisturbed / "cache")
    assert science(tmp_path) == science(undisturbed)


def test_the_order_of_execution_changes_no_result(begun, undisturbed, tmp_path):
    session, cache = begun(tmp_path), StageCache(tmp_path / "cache")
    while not session.is_finished:
        order = session.ready(in_flight=())[-1]
        session.ended(order, run_order(order, session.folder, cache, LocalRuntime()))
    assert science(tmp_path) == science(undisturbed)


def test_compact_tables_hold_the_same(undisturbed):
    before = science(undisturbed)
    compact(StudyFolder.open(undisturbed))
    assert query(undisturbed, "SELECT count(*) AS n FROM trials").to_pylist() == [{"n": 3 * (3 + 2 + 2 + 2)}]
    assert science(undisturbed) == before


def test_an_order_that_fails_is_tried_again_and_then_counted(begun, tmp_path, monkeypatch):
    honest = execution.execute

    def broken(order, *rest):
        if order.kind == "search" and order.lanes[0].arm == "hinton" and order.lanes[0].number == 2:
            raise ValueError("the disk is on fire")
        return honest(order, *rest)

    monkeypatch.setattr(execution, "execute", broken)
    session = begun(tmp_path)
    run_inline(session, StageCache(tmp_path / "cache"))
    assert session.failed == ["hinton: search, generation 1"]
    rows = query(
        tmp_path, "SELECT number, status, error FROM trials WHERE arm = 'hinton' AND phase = 'search'"
    )
    failed = {row["number"]: row for row in rows.to_pylist()}
    assert [failed[n]["status"] for n in range(3)] == ["complete", "complete", "failed"]
    assert "the disk is on fire" in failed[2]["error"]
    tries = query(tmp_path, "SELECT count(*) AS n FROM attempts WHERE outcome = 'failed'").to_pylist()
    assert tries == [{"n": RETRIES + 1}]
    assert "hinton" in {arm.name for arm in summarise(tmp_path).arms if arm.score.n == 2}


def test_an_executor_that_gets_nothing_says_so(begun, tmp_path, monkeypatch):
    session = begun(tmp_path)
    monkeypatch.setattr(session, "ready", lambda **_: [])
    with pytest.raises(RuntimeError, match="nothing is running and nothing is ready"):
        run_inline(session, StageCache(tmp_path / "cache"))


def test_the_teacher_combination_is_searched_like_any_setting(finished, tmp_path, tiny):
    pools = [["audio"], ["joint"], ["each", "joint"]]
    arms = [
        *tiny["arms"][:2],
        {"name": "any", "recipe": "hinton", "space": {"teachers.pool": {"choice": pools}}},
    ]
    session = finished(tmp_path, {"arms": arms, "search": {"trials": 8, "startup": 8, "top": 1}})
    assert session.study.arms[2].space["teachers.pool"].choice == tuple(pools)
    columns = "parameters['teachers.pool'] AS pool, teachers"
    sql = f"SELECT {columns} FROM trials WHERE arm = 'any' AND phase = 'search'"
    found = {row["pool"]: row["teachers"] for row in query(tmp_path, sql).to_pylist()}
    assert found == {
        '["audio"]': ["audio"],
        '["joint"]': ["joint"],
        '["each", "joint"]': ["audio", "decoy", "joint"],
    }
    winner = session.folder.selection()["winners"][2]
    assert winner["parameters"]["teachers.pool"] in pools


def test_folds_are_tuned_confirmed_and_tested_each_on_its_own(finished, tmp_path, tiny):
    data = tiny["run"]["data"] | {"folds": {"scheme": "stratified", "count": 2}}
    session = finished(tmp_path, {"run": {"data": data}, "arms": tiny["arms"][:2]})
    assert len(session.folder.selection()["winners"]) == 4
    rows = query(
        tmp_path, 'SELECT fold, count(DISTINCT "row") AS n FROM predictions GROUP BY fold'
    ).to_pylist()
    assert sum(row["n"] for row in rows) == 128
    both = 'SELECT count(*) AS n FROM predictions a JOIN predictions b USING ("row") WHERE a.fold < b.fold'
    assert query(tmp_path, both).to_pylist() == [{"n": 0}]
    assert summarise(tmp_path).scheme.replicate == "folds"


@pytest.fixture
def regression(tmp_path):
    """Return the card of a small table with two targets that both modalities know something about."""
    generator = np.random.default_rng(0)
    target_NT = generator.standard_normal((96, 2))
    columns = {}
    for name, noise in (("weak", 2.0), ("strong", 0.1)):
        x_ND = np.hstack([target_NT, target_NT]) + noise * generator.standard_normal((96, 4))
        columns[f"x_{name}"] = pa.FixedSizeListArray.from_arrays(pa.array(x_ND.ravel(), pa.float32()), 4)
    columns |= {f"t{n}": pa.array(target_NT[:, n], pa.float32()) for n in range(2)}
    columns["split"] = pa.array(["train"] * 48 + ["val"] * 24 + ["test"] * 24)
    columns["group"] = pa.array(np.arange(96), pa.int32())
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "made.parquet")
    modalities = {name: {"shape": [4]} for name in ("weak", "strong")}
    card = {"name": "made", "task": "regression", "targets": ["t0", "t1"], "modalities": modalities}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return folder / "card.json"


def test_a_regression_study_runs_from_end_to_end(finished, tmp_path, regression):
    data = {"dataset": str(regression), "student": ["weak"], "privileged": ["strong"]}
    session = finished(tmp_path / "study", data=data)
    assert session.study.score == "ccc"
    spaces = {arm.name: set(arm.space) for arm in session.study.arms}
    assert not any("optimiser.label_smoothing" in space for space in spaces.values())
    assert "terms.softened_logits.temperature" not in spaces["hinton"]
    ablation = summarise(tmp_path / "study")
    assert (ablation.score_name, ablation.basis) == ("ccc", "test")
    assert all(-1 <= arm.score.mean <= 1 for arm in ablation.arms)
    sql = "SELECT len(targets) AS t, len(outputs) AS o, count(*) AS n FROM predictions GROUP BY ALL"
    assert query(tmp_path / "study", sql).to_pylist() == [{"t": 2, "o": 2, "n": 3 * 2 * 24}]
    shares = query(tmp_path / "study", "SELECT selection FROM trials WHERE arm = 'mt_pkdot'").to_pylist()
    assert all(set(row["selection"]) == {"strong", "student", "joint"} for row in shares)
    assert all(sum(row["selection"].values()) == pytest.approx(1) for row in shares)
