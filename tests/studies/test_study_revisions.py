"""Folds, frozen arms, races and extended studies, against made-up results."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from mmdistill.data.folds import FoldSettings
from mmdistill.records.rows import PHASES
from mmdistill.settings import Range
from mmdistill.studies.planned import planned
from mmdistill.studies.proposing import columns_of
from mmdistill.studies.protocol import StudyProtocol

# Folds and where winners are searched.


def folded(put_together, text, tuning, **more):
    edits = {"scheme": "stratified", "count": 2, "tuning": tuning} | more
    return put_together(
        text, "run.batch_size=8", *(f"run.data.folds.{key}={value}" for key, value in edits.items())
    )


@pytest.mark.parametrize(("tuning", "searched"), [("shared", 0), ("fixed_holdout", 2)])
def test_one_search_may_serve_every_fold(made_up, put_together, tiny, tuning, searched):
    study = folded(put_together, tiny, tuning)
    world = made_up.World(study, failing=0.0).play()
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


def test_arms_with_folds_of_their_own_are_paired_among_themselves(made_up, study):
    first = study.arms[0]
    folds = FoldSettings(scheme="stratified", count=2)
    data = first.run.data.model_copy(update={"folds": folds})
    moved = replace(first, name="other", run=first.run.model_copy(update={"data": data}))
    world = made_up.World(replace(study, arms=(*study.arms, moved), prints=OneForAll())).play()
    pairs = {(row.arm == "other", row.pair_id.split("~")[1]) for row in world.rows}
    assert pairs == {(False, "fold0"), (True, "stratified-2-0")}
    assert {row.fold for row in world.rows if row.arm == "other"} == {0, 1}
    # Pairs are called the same when such an arm is added later, even before all others.
    later = replace(study, arms=(moved, *study.arms), prints=OneForAll())
    added_later = go_on(made_up.World(study).play(), later, {"other": 2})
    assert {row.trial_id: row.pair_id for row in added_later.rows} == {
        row.trial_id: row.pair_id for row in world.rows
    }


# Frozen arms.


@pytest.fixture
def with_frozen(study):
    source = study.arms[1]
    paths = tuple(sorted(source.space))[:2]
    frozen = replace(study.arms[2], name="frozen", space={}, frozen=source.name, inherits=paths)
    return replace(study, arms=(frozen, *study.arms)), source.name, paths


def test_a_frozen_arm_takes_over_a_winner_and_is_confirmed_like_any_other(made_up, with_frozen):
    study, source, paths = with_frozen
    world = made_up.World(study, failing=0.0).play()
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


def test_a_frozen_arm_without_a_winner_to_take_has_none_either(made_up, with_frozen):
    world = made_up.World(with_frozen[0], failing=1.0).play()
    assert {winner["number"] for winner in world.selection["winners"]} == {None}


# Races.


def raced(order, final):
    """Return made-up rows of a race: every other run of a search is stopped after two epochs."""
    if order.race is None:
        return final
    trials = [
        replace(row, status="pruned", stopped_epoch=2) if place % 2 else row
        for place, row in enumerate(final.trials)
    ]
    return replace(final, trials=trials)


def test_only_a_search_races_and_its_losers_are_no_finalists(made_up, put_together, tiny):
    race = ["search.racing.kind=halving", "search.racing.first=1", "search.generation=2", "search.startup=4"]
    study = put_together(tiny.replace("trials = 3", "trials = 8").replace("top = 1", "top = 5"), *race)
    seen = []

    def watching(request):
        seen.append(request)
        return made_up.propose(request)

    world, protocol = made_up.World(study), StudyProtocol(study, watching)
    while not (step := world.step(protocol)).is_finished:
        for order in step.orders:
            assert (order.race is None) is (order.kind != "search")
            world.finals[order.order_id] = raced(order, made_up.result(order, failing=0.0))
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
def test_an_extension_computes_the_difference_and_leaves_the_rest(made_up, study, what, kills):
    world = made_up.World(study, failing=0.0).play()
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


def test_an_extended_study_has_the_numbers_of_one_begun_at_once(made_up, study):
    later, revisions = extended(study, arms=(added(study),), pairs=7)
    world = go_on(made_up.World(study).play(), later, revisions)
    assert world.told == made_up.World(later).play().told


@pytest.mark.parametrize("ended", [3, 12, 20, 26])
def test_a_study_extended_in_the_middle_ends_the_same(made_up, study, ended):
    later, revisions = extended(study, arms=(added(study),), pairs=7)
    world, protocol = made_up.World(study), StudyProtocol(study, made_up.propose)
    for _ in range(ended):
        world.take(protocol)
    assert go_on(world, later, revisions).told == made_up.World(later).play().told


def test_only_what_is_new_has_coordinates_of_its_own(study):
    space = dict(study.arms[1].space) | {"new": Range(low=0.0, high=1.0)}
    later, revisions = extended(study, arms=(replace(added(study), space=space),))
    before = columns_of(study.arms, {}, 1)
    assert columns_of(later.arms, revisions, 1) == before
    assert columns_of(later.arms, revisions, 2) == (*before, ("new",))
