"""The protocol against made-up results: no training, no files."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmdistill.pipeline.execute import failed_final
from mmdistill.randomness import derive_seed, numpy_generator
from mmdistill.studies.planned import PHASES, planned
from mmdistill.studies.proposing import criterion
from mmdistill.studies.protocol import State, StudyProtocol


def luck(*parts):
    """Return a number in [0, 1) that depends on the parts alone."""
    return derive_seed(*parts) / 2**63


def proposer(request):
    """Propose at random, in a way that depends on everything the proposer is told."""
    told = str([request.sampler, request.first, request.seed, sorted(request.columns), list(request.past)])
    generator = numpy_generator(told)
    return [
        {path: found.at(float(generator.random())) for path, found in sorted(request.space.items())}
        for _ in range(request.count)
    ]


def result(order, *, failing=0.15):
    """Return made-up rows: what a run scores depends on its settings and its seed, some fail or diverge."""
    final = failed_final(order, "made up")
    trials = []
    for row in final.trials:
        chance = luck("chance", str(dict(row.parameters)), row.seed)
        status = "failed" if chance < failing / 2 else "diverged" if chance < failing else "complete"
        value = luck("value", str(dict(row.parameters)), row.seed)
        metrics = {"log_loss": value} if status == "complete" else {}
        trials.append(replace(row, status=status, metrics=metrics, error=None))
    return replace(final, trials=trials)


class World:
    """What is on record of one study, and somebody who executes orders."""

    def __init__(self, study, *, failing=0.15):
        self.study, self.failing = study, failing
        self.decisions, self.finals, self.selections = {}, {}, []
        self.log, self.drafts = [], {}

    def step(self, protocol):
        while True:
            step = protocol.next_step(State(dict(self.decisions), dict(self.finals), list(self.selections)))
            for decision in step.decisions:
                assert decision.name not in self.decisions
                self.decisions[decision.name] = decision.value
                self.log.append(decision.name)
            if step.selection is not None:
                self.selections.append(step.selection)
                self.log.append("selection")
            if not step.decisions and step.selection is None:
                return step

    def finish(self, order):
        assert order.order_id not in self.finals
        self.finals[order.order_id] = result(order, failing=self.failing)
        self.log.append(order)

    def play(self, *, workers=1, dice=None, kills=0.0):
        """Execute until the study is finished: some orders in flight, ending in any order, some killed."""
        dice = dice or random.Random(0)
        protocol, flying = StudyProtocol(self.study, proposer), {}
        for _ in range(10_000):
            step = self.step(protocol)
            if step.is_finished:
                assert not flying
                return self
            waiting = list(step.agenda.ready(flying))
            assert {order.order_id for order in waiting}.isdisjoint(flying)
            lanes = [order for order in waiting if order.lanes]
            self.drafts |= {order.order_id: step.agenda.draft(order.order_id) for order in lanes}
            while waiting and len(flying) < workers:
                order = waiting.pop(dice.randrange(len(waiting)))
                flying[order.order_id] = order
            assert flying, "nothing is running and nothing is ready"
            if dice.random() < kills:
                protocol, flying = StudyProtocol(self.study, proposer), {}
                continue
            self.finish(flying.pop(dice.choice(sorted(flying))))
        raise AssertionError("the protocol does not come to an end")

    @property
    def selection(self):
        (only,) = self.selections
        return only

    @property
    def rows(self):
        return [row for final in self.finals.values() for row in final.trials]


@pytest.fixture
def study(put_together, tiny):
    text = (
        tiny.replace("trials = 3", "trials = 7")
        .replace("top = 1", "top = 3")
        .replace("pairs = 2", "pairs = 5")
    )
    return put_together(text, "search.startup=3", "search.generation=2", "resources.lanes=4")


@pytest.fixture
def played(study):
    return World(study).play()


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


def test_a_generation_sees_all_of_those_before_it_and_nothing_else(study):
    seen = {}

    def watching(request):
        seen.setdefault((request.seed, request.first), [past.number for past in request.past])
        return proposer(request)

    world = World(study)
    protocol = StudyProtocol(study, watching)
    while not (step := world.step(protocol)).is_finished:
        world.finish(step.orders[-1])
    assert {(first, tuple(numbers)) for (_, first), numbers in seen.items()} == {
        (0, ()),
        (3, (0, 1, 2)),
        (5, (0, 1, 2, 3, 4)),
    }
    assert len(seen) == 9  # 3 arms x 3 generations, each with a seed of its own


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workers=st.integers(1, 7), seed=st.integers(0, 10**6), kills=st.sampled_from([0.0, 0.1, 0.4]))
def test_workers_their_order_and_kills_change_nothing(study, played, workers, seed, kills):
    other = World(study).play(workers=workers, dice=random.Random(seed), kills=kills)
    assert other.decisions == played.decisions
    assert other.selections == played.selections
    assert set(other.finals) == set(played.finals)

    def told(world):
        return {row.trial_id: (row.parameters, row.metrics, row.status) for row in world.rows}

    assert told(other) == told(played)


def test_nothing_is_asked_twice_and_the_end_stays_the_end(played, study):
    ids = [order.order_id for order in played.log if not isinstance(order, str)]
    assert len(ids) == len(set(ids))
    trials = [row.trial_id for row in played.rows]
    assert len(trials) == len(set(trials))
    assert played.step(StudyProtocol(study, proposer)).is_finished


def test_test_orders_come_after_the_selection_and_every_confirmation(played):
    kinds = [entry if isinstance(entry, str) else entry.kind for entry in played.log]
    selected = kinds.index("selection")
    assert {"search", "validate"}.isdisjoint(kinds[selected:])
    assert {"confirm", "test"}.isdisjoint(kinds[:selected])
    assert kinds.index("test") > max(n for n, kind in enumerate(kinds) if kind == "confirm")


def test_stages_come_before_the_lanes_that_read_them(played, study):
    book = StudyProtocol(study, proposer).book
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


def test_an_arm_that_always_fails_is_counted_and_left_out(study):
    world = World(study, failing=1.0).play()
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


def test_the_plan_counts_the_runs_and_the_orders_with_lanes(study):
    world = World(study, failing=0.0).play()
    counted = Counter((o.lanes[0].arm, o.kind) for o in world.log if not isinstance(o, str) and o.lanes)
    runs = Counter((row.arm, row.phase) for row in world.rows)
    for name, plan in planned(study).items():
        assert plan.orders == {phase: counted[name, phase] for phase in PHASES}
        assert plan.runs == {phase: runs[name, phase] for phase in PHASES}


def test_an_order_is_the_same_after_a_restart(study):
    first, second = World(study), World(study)
    (one,), (other,) = (world.step(StudyProtocol(study, proposer)).orders[:1] for world in (first, second))
    assert one == other


def test_folds_are_searched_each_on_its_own(put_together, tiny):
    study = put_together(tiny, "run.data.folds.scheme=stratified", "run.data.folds.count=2")
    world = World(study, failing=0.0).play()
    counts = Counter((row.arm, row.fold) for row in world.rows if row.phase == "search")
    assert counts == {(arm.name, fold): 3 for arm in study.arms for fold in range(2)}
    assert {(w["arm"], w["fold"]) for w in world.selection["winners"]} == set(counts)
    first, second = ({row.pair_id for row in world.rows if row.fold == fold} for fold in range(2))
    assert first.isdisjoint(second)
