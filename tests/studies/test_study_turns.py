"""Whose turn it is, what waits, and that a protocol keeps nothing but what it read."""

from collections import Counter

from mmdistill.cluster.proposals import propose
from mmdistill.studies.protocol import State, StudyProtocol

# Whose turn it is.


def test_a_new_protocol_gives_the_same_step_as_one_that_saw_it_all(made_up, study):
    world, protocol = made_up.World(study), StudyProtocol(study, made_up.propose)
    for _ in range(200):
        step = world.step(protocol)
        fresh = world.step(StudyProtocol(study, made_up.propose))
        assert step.is_finished == fresh.is_finished
        assert [order.order_id for order in step.orders] == [order.order_id for order in fresh.orders]
        if step.is_finished:
            return
        world.finish(step.orders[len(world.log) % len(step.orders)])
    raise AssertionError("the protocol does not come to an end")


def test_the_protocol_told_what_ended_needs_to_look_at_nothing_else(made_up, study, played):
    world, protocol, ended = made_up.World(study), StudyProtocol(study, made_up.propose), None
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
    assert world.told == played.told


def test_stages_that_most_wait_for_come_first_and_then_arms_take_turns(made_up, put_together, tiny):
    study = put_together(tiny.replace("trials = 3", "trials = 8"), "search.startup=8", "resources.lanes=1")
    world, protocol = made_up.World(study), StudyProtocol(study, made_up.propose)
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


def test_orders_that_need_a_stage_in_flight_wait_for_it(made_up, study):
    world, protocol, flying = made_up.World(study), StudyProtocol(study, made_up.propose), {}
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


def test_an_order_given_up_while_it_waited_is_no_more(made_up, study):
    world, protocol = made_up.World(study), StudyProtocol(study, made_up.propose)
    agenda = world.step(protocol).agenda
    waiting = next(name for name in agenda.ids() if name.startswith("search-"))
    world.finish(protocol.book.order(agenda.draft(waiting)))
    assert waiting not in world.step(protocol).agenda.ids()


def test_equal_proposals_have_one_place_among_the_finalists(made_up, put_together, tiny):
    text = tiny.replace("trials = 3", "trials = 6").replace("top = 1", "top = 3")
    rate = "search.space.optimiser.learning_rate={low=0.001, high=0.01, log=true, steps=2}"
    fixed = [f"search.space.{path}=false" for path in (
        "optimiser.weight_decay",
        "optimiser.label_smoothing",
        "terms.softened_logits.weight",
        "terms.softened_logits.temperature",
    )]  # fmt: skip
    study = put_together(text, "search.startup=6", "search.sampler=grid", rate, *fixed)
    world, protocol = made_up.World(study, failing=0.0), StudyProtocol(study, propose)
    while not (step := world.step(protocol)).is_finished:
        world.finish(step.orders[0])
    for arm in study.arms:
        found = [r.parameters for r in world.rows if (r.arm, r.phase) == (arm.name, "validate")]
        assert len(found) == 2 * 2
        assert {p["optimiser.learning_rate"] for p in found} == {0.001, 0.01}
