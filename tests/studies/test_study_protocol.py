"""The protocol against made-up results: no training, no files."""

import random
import tomllib
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmdistill.cluster.proposals import propose
from mmdistill.data.folds import FoldSettings
from mmdistill.pipeline.execute import failed_final
from mmdistill.randomness import derive_seed, numpy_generator
from mmdistill.settings import Range, merged
from mmdistill.studies.file import StudyFile
from mmdistill.studies.planned import PHASES, planned
from mmdistill.studies.proposing import columns_of, criterion
from mmdistill.studies.protocol import State, StudyProtocol
from mmdistill.studies.study import assemble


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
        self.log, self.drafts, self.revisions = [], {}, {}

    def protocol(self):
        return StudyProtocol(self.study, proposer, self.revisions)

    def take(self, protocol):
        """Execute the most urgent order."""
        step = self.step(protocol)
        order = step.orders[0]
        if order.lanes:
            self.drafts[order.order_id] = step.agenda.draft(order.order_id)
        self.finish(order)

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
        protocol, flying = self.protocol(), {}
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
                protocol, flying = self.protocol(), {}
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


def told(world):
    return {row.trial_id: (row.parameters, row.metrics, row.status) for row in world.rows}


@pytest.fixture(scope="module")
def study(tiny):
    changes = {
        "search": {"trials": 7, "startup": 3, "generation": 2, "top": 3},
        "confirm": {"pairs": 5},
        "resources": {"lanes": 4},
    }
    return assemble(StudyFile.model_validate(merged(tomllib.loads(tiny), changes)), "s.toml")


@pytest.fixture(scope="module")
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


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workers=st.integers(1, 7), seed=st.integers(0, 10**6), kills=st.sampled_from([0.0, 0.1, 0.4]))
def test_workers_their_order_and_kills_change_nothing(study, played, workers, seed, kills):
    other = World(study).play(workers=workers, dice=random.Random(seed), kills=kills)
    assert other.decisions == played.decisions
    assert other.selections == played.selections
    assert set(other.finals) == set(played.finals)

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


# Folds and where winners are searched.


def folded(put_together, text, tuning, **more):
    edits = {"scheme": "stratified", "count": 2, "tuning": tuning} | more
    return put_together(text, *(f"run.data.folds.{key}={value}" for key, value in edits.items()))


@pytest.mark.parametrize(("tuning", "searched"), [("shared", 0), ("fixed_holdout", 2)])
def test_one_search_may_serve_every_fold(put_together, tiny, tuning, searched):
    study = folded(put_together, tiny, tuning)
    world = World(study, failing=0.0).play()
    folds = Counter((row.phase, row.fold) for row in world.rows)
    assert {fold for phase, fold in folds if phase in {"search", "validate"}} == {searched}
    assert {fold for phase, fold in folds if phase in {"confirm", "test"}} == {0, 1}
    assert [winner["fold"] for winner in world.selection["winners"]] == [searched] * 3
    counts = Counter((row.arm, row.phase) for row in world.rows)
    for name, plan in planned(study).items():
        assert plan.runs == {phase: counts[name, phase] for phase in PHASES}


class OneForAll(dict):
    """Prints of one division, whichever is asked for."""

    def __missing__(self, key):
        return ("first", "second")


def test_arms_with_folds_of_their_own_are_paired_among_themselves(study):
    first = study.arms[0]
    folds = FoldSettings(scheme="stratified", count=2)
    data = first.run.data.model_copy(update={"folds": folds})
    moved = replace(first, name="other", run=first.run.model_copy(update={"data": data}))
    world = World(replace(study, arms=(*study.arms, moved), prints=OneForAll())).play()
    pairs = {(row.arm == "other", row.pair_id.split("~")[1]) for row in world.rows}
    assert pairs == {(False, "fold0"), (True, "stratified-2-0")}
    assert {row.fold for row in world.rows if row.arm == "other"} == {0, 1}


# Frozen arms.


@pytest.fixture
def with_frozen(study):
    source = study.arms[1]
    paths = tuple(sorted(source.space))[:2]
    frozen = replace(study.arms[2], name="frozen", space={}, frozen=source.name, inherits=paths)
    return replace(study, arms=(frozen, *study.arms)), source.name, paths


def test_a_frozen_arm_takes_over_a_winner_and_is_confirmed_like_any_other(with_frozen):
    study, source, paths = with_frozen
    world = World(study, failing=0.0).play()
    winners = {winner["arm"]: winner for winner in world.selection["winners"]}
    taken = {path: winners[source]["parameters"][path] for path in paths}
    assert winners["frozen"] == {
        "arm": "frozen",
        "fold": 0,
        "frozen": source,
        "number": winners[source]["number"],
        "parameters": taken,
    }
    rows = [row for row in world.rows if row.arm == "frozen"]
    assert Counter(row.phase for row in rows) == {"confirm": 5, "test": 5}
    assert all(dict(row.parameters) == taken for row in rows)
    assert planned(study)["frozen"].runs == {"search": 0, "validate": 0, "confirm": 5, "test": 5}
    assert not any(name.startswith("frozen~") for name in world.decisions)


def test_a_frozen_arm_without_a_winner_to_take_has_none_either(with_frozen):
    world = World(with_frozen[0], failing=1.0).play()
    assert {winner["number"] for winner in world.selection["winners"]} == {None}


# Races.


def raced(order):
    """Return made-up rows of a race: every other run of a search is stopped after two epochs."""
    final = result(order, failing=0.0)
    if order.race is None:
        return final
    trials = [
        replace(row, status="pruned", stopped_epoch=2) if place % 2 else row
        for place, row in enumerate(final.trials)
    ]
    return replace(final, trials=trials)


def test_only_a_search_races_and_its_losers_are_no_finalists(put_together, tiny):
    race = ["search.racing.kind=halving", "search.racing.first=1", "search.generation=2", "search.startup=4"]
    study = put_together(tiny.replace("trials = 3", "trials = 8").replace("top = 1", "top = 5"), *race)
    seen = []

    def watching(request):
        seen.append(request)
        return proposer(request)

    world, protocol = World(study), StudyProtocol(study, watching)
    while not (step := world.step(protocol)).is_finished:
        for order in step.orders:
            assert (order.race is None) is (order.kind != "search")
            world.finals[order.order_id] = raced(order)
    search = [row for row in world.rows if row.phase == "search"]
    stopped = {(row.arm, row.number) for row in search if row.status == "pruned"}
    assert len(stopped) == len(search) / 2
    again = {(row.arm, row.number) for row in world.rows if row.phase == "validate"}
    assert stopped.isdisjoint(again)
    assert len(again) == 3 * 4  # every run that was not stopped, fewer than `top`
    request = max((r for r in seen if len(r.space) > 3), key=lambda request: request.first)
    values = {trial.number: (trial.value, trial.stopped) for trial in request.past}
    assert len(values) == 6
    told_of = [{row.number: row for row in search if row.arm == arm} for arm in ("hinton", "several")]
    expected = [
        {
            n: (None, (2, rows[n].metrics["log_loss"]))
            if rows[n].status == "pruned"
            else (rows[n].metrics["log_loss"], None)
            for n in values
        }
        for rows in told_of
    ]
    assert values in expected


# Revisions.


def extended(study, *, arms=(), pairs=None):
    """Return a study with more arms or pairs, and with which revision each arm came."""
    confirm = study.file.confirm.model_copy(update={"pairs": pairs or study.file.confirm.pairs})
    file = study.file.model_copy(update={"confirm": confirm})
    revisions = {arm.name: 1 for arm in study.arms} | {arm.name: 2 for arm in arms}
    return replace(study, file=file, arms=(*study.arms, *arms)), revisions


def added(study):
    return replace(study.arms[1], name="added")


def go_on(world, study, revisions, **more):
    world.study, world.revisions = study, revisions
    return world.play(**more)


@pytest.mark.parametrize("what", ["arm", "pairs", "both"])
@pytest.mark.parametrize("kills", [0.0, 0.3])
def test_an_extension_computes_the_difference_and_leaves_the_rest(study, what, kills):
    world = World(study, failing=0.0).play()
    before, first = dict(world.finals), world.selection
    arms = () if what == "pairs" else (added(study),)
    later, revisions = extended(study, arms=arms, pairs=None if what == "arm" else 7)
    go_on(world, later, revisions, workers=3, kills=kills, dice=random.Random(7))
    assert world.selections[0] == first
    assert len(world.selections) == 2
    assert [w for w in world.selections[1]["winners"] if w["arm"] != "added"] == first["winners"]
    assert all(world.finals[name] is final for name, final in before.items())
    new = [row for name, final in world.finals.items() if name not in before for row in final.trials]
    old_arms = Counter(row.phase for row in new if row.arm != "added")
    assert old_arms == ({} if what == "arm" else {"confirm": 3 * 2, "test": 3 * 2})
    pairs = 5 if what == "arm" else 7
    for phase in ("confirm", "test"):
        counts = Counter(row.arm for row in world.rows if row.phase == phase)
        assert counts == {arm.name: pairs for arm in later.arms}
    for row in world.rows:
        if row.phase == "test":
            second = row.arm == "added" or row.seed_index >= 5
            assert world.drafts[row.order_id].opening == (2 if second else 1)
    blocks = [5] if what == "arm" else [5, 2]
    orders = Counter((o.lanes[0].arm, o.kind) for o in world.log if not isinstance(o, str) and o.lanes)
    for name, plan in planned(later, blocks).items():
        assert plan.orders == {phase: orders[name, phase] for phase in PHASES}


def test_an_extended_study_has_the_numbers_of_one_begun_at_once(study):
    later, revisions = extended(study, arms=(added(study),), pairs=7)
    world = go_on(World(study).play(), later, revisions)
    assert told(world) == told(World(later).play())


@pytest.mark.parametrize("ended", [3, 12, 20, 26])
def test_a_study_extended_in_the_middle_ends_the_same(study, ended):
    later, revisions = extended(study, arms=(added(study),), pairs=7)
    world, protocol = World(study), StudyProtocol(study, proposer)
    for _ in range(ended):
        world.take(protocol)
    assert told(go_on(world, later, revisions)) == told(World(later).play())


def test_only_what_is_new_has_coordinates_of_its_own(study):
    space = dict(study.arms[1].space) | {"new": Range(low=0.0, high=1.0)}
    later, revisions = extended(study, arms=(replace(added(study), space=space),))
    before = columns_of(study.arms, {}, 1)
    assert columns_of(later.arms, revisions, 1) == before
    assert columns_of(later.arms, revisions, 2) == (*before, ("new",))


# Whose turn it is.


def test_a_new_protocol_gives_the_same_step_as_one_that_saw_it_all(study):
    world, protocol = World(study), StudyProtocol(study, proposer)
    for _ in range(200):
        step = world.step(protocol)
        fresh = world.step(StudyProtocol(study, proposer))
        assert step.is_finished == fresh.is_finished
        assert [order.order_id for order in step.orders] == [order.order_id for order in fresh.orders]
        if step.is_finished:
            return
        world.finish(step.orders[len(world.log) % len(step.orders)])
    raise AssertionError("the protocol does not come to an end")


def test_the_protocol_told_what_ended_needs_to_look_at_nothing_else(study, played):
    world, protocol, ended = World(study), StudyProtocol(study, proposer), None
    while True:
        step = protocol.next_step(State(world.decisions, world.finals, world.selections), ended)
        ended = set()
        world.decisions |= {decision.name: decision.value for decision in step.decisions}
        world.selections += [step.selection] if step.selection else []
        if step.is_finished:
            break
        if step.agenda is not None:
            order = step.orders[0]
            world.finish(order)
            ended = {order.order_id}
    assert told(world) == told(played)


def test_stages_that_most_wait_for_come_first_and_then_arms_take_turns(put_together, tiny):
    study = put_together(tiny.replace("trials = 3", "trials = 8"), "search.startup=8", "resources.lanes=1")
    world, protocol = World(study), StudyProtocol(study, proposer)
    orders = world.step(protocol).orders
    # Both sets of teachers have the joint one.
    assert [order.kind for order in orders[:3]] == ["stages"] * 3
    assert orders[0].title == "teacher joint for search"
    while orders[0].kind == "stages":
        world.finish(orders[0])
        orders = world.step(protocol).orders
    names = [arm.name for arm in study.arms]
    turns = [order.lanes[0].arm for order in orders]
    assert all(sorted(turns[n : n + 3]) == sorted(names) for n in range(0, 24, 3))
    flying = [order.order_id for order in orders if order.lanes[0].arm == "student_only"][:2]
    next_four = list(world.step(protocol).agenda.ready(flying))[:4]
    assert Counter(order.lanes[0].arm for order in next_four) == {"hinton": 2, "several": 2}


def test_orders_that_need_a_stage_in_flight_wait_for_it(study):
    world, protocol, flying = World(study), StudyProtocol(study, proposer), {}
    agenda = world.step(protocol).agenda
    while (order := next(agenda.ready(flying), None)) is not None:
        flying[order.order_id] = order
    teachers = {order.stages[0].name: order for order in flying.values() if order.kind == "stages"}
    assert sorted(teachers) == ["audio", "decoy", "joint"]
    # Neither the outputs of these teachers nor what reads them can start.
    assert len(flying) == 3 + 1
    assert {order.lanes[0].arm for order in flying.values() if order.lanes} == {"student_only"}
    world.finish(flying.pop(teachers["joint"].order_id))
    (after,) = world.step(protocol).agenda.ready(flying)
    assert (after.stages[0].kind, after.stages[0].name) == ("teacher_outputs", "joint")


def test_an_order_given_up_while_it_waited_is_no_more(study):
    world, protocol = World(study), StudyProtocol(study, proposer)
    agenda = world.step(protocol).agenda
    waiting = next(name for name in agenda.ids() if name.startswith("search-"))
    world.finish(protocol.book.order(agenda.draft(waiting)))
    assert waiting not in world.step(protocol).agenda.ids()


def test_equal_proposals_have_one_place_among_the_finalists(put_together, tiny):
    text = tiny.replace("trials = 3", "trials = 6").replace("top = 1", "top = 3")
    rate = "search.space.optimiser.learning_rate={low=0.001, high=0.01, log=true, steps=2}"
    fixed = [f"search.space.{path}=false" for path in (
        "optimiser.weight_decay",
        "optimiser.label_smoothing",
        "terms.softened_logits.weight",
        "terms.softened_logits.temperature",
    )]  # fmt: skip
    study = put_together(text, "search.startup=6", "search.sampler=grid", rate, *fixed)
    world, protocol = World(study, failing=0.0), StudyProtocol(study, propose)
    while not (step := world.step(protocol)).is_finished:
        world.finish(step.orders[0])
    for arm in study.arms:
        found = [r.parameters for r in world.rows if (r.arm, r.phase) == (arm.name, "validate")]
        assert len(found) == 2 * 2
        assert {p["optimiser.learning_rate"] for p in found} == {0.001, 0.01}
