"""Lanes of a cohort that shrank, against the same lanes alone.

Axes: K lanes, N rows, D width, C classes, M teachers.
"""

import json
from typing import Literal, get_args, get_origin

import pytest
import torch

from mmdistill.models.network import Network, NetworkSettings
from mmdistill.settings import declared_ranges
from mmdistill.terms import TERMS, Shapes
from mmdistill.training.average import AverageNetwork
from mmdistill.training.batches import BatchOrder
from mmdistill.training.loop import Plan, Race, Snapshot, fit
from mmdistill.training.objectives import TensorPart
from mmdistill.training.race import RaceSettings
from mmdistill.training.runtime import LocalRuntime
from mmdistill.training.student import LiveTeacher, Rows, StudentObjective
from mmdistill.training.teachers import FrozenTeachers

N, D, C, M, STEPS, EPOCHS, BATCH = 60, 8, 4, 2, 4, 6, 12
SIZE = NetworkSettings(width=D, depth=2)
SHAPES = Shapes(D, D, D, "classification", C, ("a", "joint"), N, EPOCHS)
POSITIONS = (0.1, 0.35, 0.6, 0.85)
# Where a teacher that trains along changes more than whose outputs a term sees.
LIVE = [name for name, term in TERMS.items() if "teacher_gradient" in term.settings_type.model_fields]
RACE = RaceSettings(kind="halving", first=2, factor=2)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def part(seed, task):
    labels = torch.randint(C, (N,), generator=torch.Generator().manual_seed(seed))
    means = drawn(0, C, 4)
    inputs = {name: means[labels] + drawn(seed + n, N, 4) for n, name in enumerate("ab")}
    return TensorPart(inputs, means[labels] if task == "regression" else labels)


def settings_at(kind, position, **chosen):
    ranges = declared_ranges(kind.settings_type())
    values = {name: found.at(position) for name, found in ranges.items()}
    most = kind.settings_type().most(BATCH)
    return kind.settings_type(**{n: min(v, most.get(n, v)) for n, v in values.items()}, **chosen)


def cases():
    """Return every term, again with each alternative that gives it buffers or generators, frozen or live."""
    for name, kind in TERMS.items():
        for chosen in ({}, *alternatives(kind.settings_type)):
            term = kind([kind.settings_type(**chosen)], SHAPES, [0])
            if not chosen or list(term.buffers()) or term.generators:
                what = " ".join([name, *(f"{field}={option}" for field, option in chosen.items())])
                if not {"auxiliary", "average"} & kind.needs:
                    yield pytest.param(name, chosen, False, id=f"{what}, frozen teachers")
                if name in LIVE:
                    learning = {**chosen, "teacher_gradient": True}
                    yield pytest.param(name, learning, True, id=f"{what}, a teacher that trains along")


def alternatives(settings_type):
    for field, info in settings_type.model_fields.items():
        if get_origin(info.annotation) is Literal:
            yield from ({field: option} for option in get_args(info.annotation) if option != info.default)


def frozen_teachers(lanes, labelled_KN):
    features, logits = ([drawn(50 + k + shift, M, N, w) for k in lanes] for shift, w in ((0, D), (9, C)))
    evidence = torch.stack([drawn(90 + k, M, N).square() for k in lanes]) * labelled_KN[:, None]
    shapes = {"layer_0": (5,), "alone": (1, C), "without": (1, C)}
    further = {
        name: torch.stack([drawn(120 + k + shift, M, N, *shape) for k in lanes])
        for shift, (name, shape) in enumerate(shapes.items())
    }
    return FrozenTeachers(
        ("a", "joint"),
        torch.stack(features),
        torch.stack(logits),
        evidence,
        labelled_KN,
        "sample",
        further=further,
    )


def training(lanes, name, *, live, **chosen):
    """Return objective and plan of some of four lanes that differ in everything a lane may differ in."""
    kind, seeds = TERMS[name], [100 + k for k in lanes]
    task = "classification" if "classification" in kind.tasks else "regression"
    settings = [settings_at(kind, POSITIONS[k], **chosen) for k in lanes]
    term = kind(settings, SHAPES._replace(task=task), seeds)
    labelled_KN = torch.stack([drawn(30 + k, N) > -0.5 for k in lanes])
    rows = Rows(part(1, task), part(2, task), labelled_KN, task)
    frozen = None if live else frozen_teachers(lanes, labelled_KN)
    averaged = "average" in kind.needs
    widths = {"a": 4} if averaged else {"a": 4, "b": 4}
    taught = LiveTeacher(Network(widths, C, SIZE, seeds), Network({"b": 4}, C, SIZE, seeds), 0.7)
    objective = StudentObjective(
        Network({"a": 4}, C, SIZE, seeds),
        {name: term},
        rows,
        torch.tensor([0.05 * k for k in lanes]),
        LocalRuntime(),
        frozen,
        taught if live else None,
        average=AverageNetwork(Network({"a": 4}, C, SIZE, seeds), [0.9] * len(seeds)) if averaged else None,
    )
    rate = torch.tensor([(0.02, 0.002, 0.01, 0.005)[k] for k in lanes])
    decay = torch.tensor([0.1 * k for k in lanes])
    # Seven more rows than batches need, so that something is left over after each epoch.
    batches = BatchOrder([torch.arange(N - k) for k in lanes], seeds, BATCH)
    return objective, Plan(batches, EPOCHS, STEPS, rate, decay, "cosine")


class Killed:
    """Keeps the snapshot of one epoch and dies."""

    def __init__(self, epoch):
        self.epoch, self.kept = epoch, None

    def load(self):
        return self.kept

    def is_due(self):
        return True

    def save(self, snapshot):
        if self.kept is None and snapshot.facts["epoch"] == self.epoch:
            tensors = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
            self.kept = Snapshot(tensors, json.loads(json.dumps(snapshot.facts)))
            raise KeyboardInterrupt


@pytest.mark.parametrize(("name", "chosen", "live"), list(cases()))
def test_a_training_that_was_cut_off_goes_on_bit_for_bit(name, chosen, live):
    found = []
    for keeper in (None, Killed(3)):
        if keeper is not None:
            objective, plan = training(range(4), name, live=live, **chosen)
            with pytest.raises(KeyboardInterrupt):
                fit(objective, plan, LocalRuntime(), Race(RACE, objective.only), keeper)
        objective, plan = training(range(4), name, live=live, **chosen)
        found.append(fit(objective, plan, LocalRuntime(), Race(RACE, objective.only), keeper))
    whole, resumed = found
    assert resumed.curves == whole.curves
    assert torch.equal(resumed.parameters.value_KP, whole.parameters.value_KP)


@pytest.mark.parametrize(("name", "chosen", "live"), list(cases()))
def test_a_lane_of_a_cohort_that_shrank_equals_its_solo_run(name, chosen, live):
    objective, plan = training(range(4), name, live=live, **chosen)
    fitted = fit(objective, plan, LocalRuntime(), Race(RACE, objective.only))
    epochs = [len(curve) for curve in fitted.curves["term/task"]]
    assert sorted(epochs) == [2, 2, 4, 6]
    assert fitted.stopped == {k: count for k, count in enumerate(epochs) if count < EPOCHS}
    assert fitted.diverged == {}
    for k in (k for k in range(4) if epochs[k] > RACE.first):
        alone = fit(*training([k], name, live=live, **chosen), LocalRuntime())
        for curve, (theirs,) in alone.curves.items():
            mine = fitted.curves[curve][k]
            if not curve.startswith(("detail/transport", "detail/selection", "validation/accuracy")):
                assert mine == pytest.approx(theirs[: epochs[k]], rel=1e-5, abs=1e-6), curve
        if epochs[k] == EPOCHS:
            assert fitted.epoch_A[k] == alone.epoch_A[0]
            torch.testing.assert_close(
                fitted.parameters.value_KP[k], alone.parameters.value_KP[0], rtol=1e-3, atol=1e-4
            )


def test_afterwards_the_modules_hold_every_lane_at_its_best_epoch():
    objective, plan = training(range(4), "softened_logits", live=False)
    fitted = fit(objective, plan, LocalRuntime(), Race(RACE, objective.only))
    seen = objective.validation()
    for k, epoch in enumerate(fitted.epoch_A):
        assert float(seen["log_loss"][k]) == pytest.approx(fitted.curves["validation/log_loss"][k][epoch])
        assert epoch < len(fitted.curves["validation/log_loss"][k])
    assert sum(fitted.share(k) for k in range(4)) == pytest.approx(fitted.cpu_s)


def test_a_race_in_which_every_lane_diverges_ends_at_once():
    objective, plan = training(range(4), "softened_logits", live=False)
    plan = plan._replace(learning_rate_K=torch.full((4,), 1e30))
    fitted = fit(objective, plan, LocalRuntime(), Race(RACE, objective.only))
    assert set(fitted.diverged) == {0, 1, 2, 3}
    assert fitted.stopped == {}
    assert [len(curve) for curve in fitted.curves["term/task"]] == [1] * 4


def test_a_diverged_lane_loses_the_race_and_keeps_its_reason():
    objective, plan = training(range(4), "softened_logits", live=False)
    rate_K = plan.learning_rate_K.clone()
    rate_K[2] = 1e30
    fitted = fit(objective, plan._replace(learning_rate_K=rate_K), LocalRuntime(), Race(RACE, objective.only))
    assert list(fitted.diverged) == [2]
    assert fitted.diverged[2].endswith("is not finite at step 1")
    assert 2 not in fitted.stopped
    assert len(fitted.curves["term/task"][2]) == RACE.first
