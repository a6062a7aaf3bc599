"""The protocol against made-up results: no training, no files."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmdistill.records.rows import PHASES
from mmdistill.studies.planned import planned
from mmdistill.studies.proposing import criterion
from mmdistill.studies.protocol import StudyProtocol


def test_every_arm_has_the_same_number_of_search_trials(played, study):
    counts = Counter(row.arm for row in played.rows if row.phase == "search")
    assert counts == {arm.name: 7 for arm in study.arms}
    for arm in counts:
        assert sorted(r.number for r in played.rows if r.phase == "search" and r.arm == arm) == list(range(7))


def test_only_live_settings_are_proposed(played, study):
    spaces = {arm.name: set(arm.space) for arm in study.arms}
    for row in played.rows:
        assert set(row.parameters) == spaces[row.arm]


def test_generations_are_as_long_as_the_file_says(played):
    sizes = {name: len(value["trials"]) for name, value in played.decisions.items()}
    assert {n: size for n, size in sizes.items() if n.startswith("hinton~")} == {
        "hinton~fold0~generation0": 3,
        "hinton~fold0~generation1": 2,
        "hinton~fold0~generation2": 2,
    }


def test_a_generation_sees_all_of_those_before_it_and_nothing_else(made_up, study):
    seen = {}

    def watching(request):
        seen.setdefault((request.seed, request.first), [past.number for past in request.past])
        return made_up.propose(request)

    world = made_up.World(study)
    protocol = StudyProtocol(study, watching)
    while not (step := world.step(protocol)).is_finished:
        world.finish(step.orders[-1])
    assert {(first, tuple(numbers)) for (_, first), numbers in seen.items()} == {
        (0, ()),
        (3, (0, 1, 2)),
        (5, (0, 1, 2, 3, 4)),
    }
    assert len(seen) == 9  # 3 arms x 3 generations, each with a seed of its own


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workers=st.integers(1, 7), seed=st.integers(0, 10**6), kills=st.sampled_from([0.0, 0.1, 0.4]))
def test_workers_their_order_and_kills_change_nothing(made_up, study, played, workers, seed, kills):
    other = made_up.World(study).play(workers=workers, dice=random.Random(seed), kills=kills)
    assert other.decisions == played.decisions
    assert other.selections == played.selections
    assert set(other.finals) == set(played.finals)

    assert other.told == played.told


def test_nothing_is_asked_twice_and_the_end_stays_the_end(made_up, played, study):
    ids = [order.order_id for order in played.log if not isinstance(order, str)]
    assert len(ids) == len(set(ids))
    trials = [row.trial_id for row in played.rows]
    assert len(trials) == len(set(trials))
    assert played.step(StudyProtocol(study, made_up.propose)).is_finished


def test_test_orders_come_after_the_selection_and_every_confirmation(played):
    kinds = [entry if isinstance(entry, str) else entry.kind for entry in played.log]
    selected = kinds.index("selection")
    assert {"search", "validate"}.isdisjoint(kinds[selected:])
    assert {"confirm", "test"}.isdisjoint(kinds[:selected])
    assert kinds.index("test") > max(n for n, kind in enumerate(kinds) if kind == "confirm")


def test_stages_come_before_the_lanes_that_read_them(made_up, played, study):
    book = StudyProtocol(study, made_up.propose).book
    done = set()
    for order in (entry for entry in played.log if not isinstance(entry, str)):
        if order.lanes:
            needed = book.shared_stages(played.drafts[order.order_id])
            assert {shared.outputs.order_id for shared in needed} <= done
        if order.kind == "stages" and order.stages[0].kind == "teacher_outputs":
            teachers = {request.name for before in played.log if not isinstance(before, str)
                        for request in before.stages if before.order_id in done}  # fmt: skip
            assert set(order.stages[0].name.split(",")) <= teachers
        done.add(order.order_id)


def test_no_teacher_is_asked_for_twice(played):
    asked = [
        (request.name, request.pair_id)
        for order in played.log
        if not isinstance(order, str)
        for request in order.stages
        if request.kind == "teacher"
    ]
    assert len(asked) == len(set(asked))


def test_three_finalists_meet_every_validation_seed(played, study):
    for arm in study.arms:
        search = [row for row in played.rows if (row.arm, row.phase) == (arm.name, "search")]
        complete = sorted((r for r in search if r.status == "complete"), key=lambda r: r.metrics["log_loss"])
        finalists = {row.number for row in complete[:3]}
        again = Counter(r.number for r in played.rows if (r.arm, r.phase) == (arm.name, "validate"))
        assert again == dict.fromkeys(finalists, study.file.search.seeds)


def test_the_winner_has_the_lowest_mean_and_no_failure(played, study):
    for winner in played.selection["winners"]:
        means = {}
        rows = [r for r in played.rows if (r.arm, r.phase) == (winner["arm"], "validate")]
        for number in {row.number for row in rows}:
            mine = [row for row in rows if row.number == number]
            if all(row.status == "complete" for row in mine):
                means[number] = sum(row.metrics["log_loss"] for row in mine) / len(mine)
        if not means:
            assert winner["number"] is None
            continue
        assert winner["number"] == min(means, key=means.get)
        assert winner["criterion"] == pytest.approx(min(means.values()))
        confirmed = [r for r in played.rows if (r.arm, r.phase) == (winner["arm"], "confirm")]
        assert all(row.parameters == winner["parameters"] for row in confirmed)


def test_arms_share_seeds_and_pairs_and_phases_do_not(played, study):
    seeds = {}
    for row in played.rows:
        seeds.setdefault((row.phase, row.pair_id), set()).add(row.seed)
        assert row.pair_id.startswith("planted~fold0~")
    assert all(len(found) == 1 for found in seeds.values())
    assert {pair: seeds["test", pair] for phase, pair in seeds if phase == "test"} == {
        pair: seeds["confirm", pair] for phase, pair in seeds if phase == "confirm"
    }
    drawn = [seed for (phase, _), (seed,) in seeds.items() if phase != "test"]
    assert len(drawn) == len(set(drawn)) == 1 + study.file.search.seeds + 5


def test_an_arm_that_always_fails_is_counted_and_left_out(made_up, study):
    world = made_up.World(study, failing=1.0).play()
    assert Counter(row.phase for row in world.rows) == {"search": 21}
    assert [winner["number"] for winner in world.selection["winners"]] == [None] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_run_without_a_finite_criterion_never_wins(study, played, value):
    row = next(row for row in played.rows if row.status == "complete")
    metrics = {} if value is None else {"log_loss": value}
    assert criterion(row, study.task) == row.metrics["log_loss"]
    assert criterion(replace(row, metrics=metrics), study.task) is None
    assert criterion(replace(row, status="diverged"), study.task) is None


def test_concordance_is_ranked_the_other_way_round(played):
    row = next(row for row in played.rows if row.status == "complete")
    assert criterion(replace(row, metrics={"ccc": 0.75}), "regression") == 0.25


def test_the_plan_counts_the_runs_and_the_orders_with_lanes(made_up, study):
    world = made_up.World(study, failing=0.0).play()
    counted = Counter((o.lanes[0].arm, o.kind) for o in world.log if not isinstance(o, str) and o.lanes)
    runs = Counter((row.arm, row.phase) for row in world.rows)
    for name, plan in planned(study).items():
        assert plan.orders == {phase: counted[name, phase] for phase in PHASES}
        assert plan.runs == {phase: runs[name, phase] for phase in PHASES}


def test_an_order_is_the_same_after_a_restart(made_up, study):
    first, second = made_up.World(study), made_up.World(study)
    (one,), (other,) = (
        world.step(StudyProtocol(study, made_up.propose)).orders[:1] for world in (first, second)
    )
    assert one == other


def test_folds_are_searched_each_on_its_own(made_up, put_together, tiny):
    study = put_together(tiny, "run.data.folds.scheme=stratified", "run.data.folds.count=2")
    world = made_up.World(study, failing=0.0).play()
    counts = Counter((row.arm, row.fold) for row in world.rows if row.phase == "search")
    assert counts == {(arm.name, fold): 3 for arm in study.arms for fold in range(2)}
    assert {(w["arm"], w["fold"]) for w in world.selection["winners"]} == set(counts)
    first, second = ({row.pair_id for row in world.rows if row.fold == fold} for fold in range(2))
    assert first.isdisjoint(second)
