"""The loop on an objective small enough to follow by hand."""

import math

import pytest
import torch
from torch import nn

from mmdistill.training.batches import BatchOrder
from mmdistill.training.loop import Losses, Plan, fit
from mmdistill.training.runtime import LocalRuntime

STEPS = 4


class Bowl:
    """Each lane rolls its weights towards 0; ``spoil`` multiplies the loss at some (lane, step)."""

    def __init__(self, starts, spoil=None, criterion=None):
        self.modules = nn.ParameterDict({"w": nn.Parameter(torch.tensor(starts)[:, None].repeat(1, 3))})
        self.spoil, self.criterion = spoil or {}, criterion
        self.step, self.epoch, self.seen = 0, 0, []

    def losses(self, rows_KB, _epoch=0):
        self.seen.append(rows_KB)
        part_K = self.modules["w"].square().sum(dim=1)
        factor = torch.ones_like(part_K)
        for (lane, step), value in self.spoil.items():
            if step == self.step:
                factor[lane] = value
        self.step += 1
        harmless = torch.ones_like(part_K)
        return Losses(
            part_K * factor, {"task": harmless, "pull": part_K * factor}, {"step": self.step * harmless}
        )

    def validation(self):
        w_K = self.modules["w"].detach()[:, 0].clone()
        values = w_K.square() if self.criterion is None else torch.tensor(self.criterion[self.epoch])
        self.epoch += 1
        return {"criterion": values, "weight": w_K}


def plan(lanes, *, epochs=3, rate=0.1):
    rates = torch.tensor(rate if isinstance(rate, list) else [rate] * lanes)
    batches = BatchOrder([torch.arange(16)] * lanes, list(range(lanes)), 4)
    return Plan(batches, epochs, STEPS, rates, torch.zeros(lanes), "constant")


def test_curves_have_a_value_per_epoch_and_lane_averaged_over_steps():
    bowl = Bowl([1.0, 2.0])
    fitted = fit(bowl, plan(2), LocalRuntime())
    assert set(fitted.curves) == {"term/task", "term/pull", "detail/step", "validation/weight"}
    assert fitted.curves["term/task"] == [[1.0, 1.0, 1.0]] * 2
    assert fitted.curves["detail/step"] == [[2.5, 6.5, 10.5]] * 2
    assert len(bowl.seen) == 3 * STEPS
    assert fitted.diverged == {}
    assert fitted.cpu_s > 0


def test_each_lane_keeps_its_best_epoch_by_validation():
    criterion = [[3.0, 1.0, 1.0], [1.0, 2.0, 1.0], [2.0, math.nan, 0.5]]
    fitted = fit(Bowl([1.0, 1.0, 1.0], criterion=criterion), plan(3), LocalRuntime())
    assert fitted.epoch_A == [1, 0, 2]
    for lane, epoch in enumerate(fitted.epoch_A):
        assert (
            float(fitted.parameters.lane(lane)["w"][0, 0]) == fitted.curves["validation/weight"][lane][epoch]
        )


def test_of_equal_epochs_the_first_is_kept():
    fitted = fit(Bowl([1.0], criterion=[[1.0]] * 3), plan(1), LocalRuntime())
    assert fitted.epoch_A == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_lane_is_reported_and_its_neighbours_do_not_notice(value):
    quiet = fit(Bowl([1.0, 2.0, 3.0]), plan(3), LocalRuntime())
    bowl = Bowl([1.0, 2.0, 3.0], spoil={(1, 5): value})
    fitted = fit(bowl, plan(3), LocalRuntime())
    assert fitted.diverged == {1: "pull is not finite at step 5"}
    for lane in (0, 2):
        assert torch.equal(fitted.parameters.value_KP[lane], quiet.parameters.value_KP[lane])
        assert fitted.curves["term/pull"][lane] == quiet.curves["term/pull"][lane]
    # Epoch 0 was sound, so its weights are what is left.
    assert fitted.epoch_A[1] == 0
    assert torch.equal(
        fitted.parameters.value_KP[1, 0], torch.tensor(quiet.curves["validation/weight"][1][0])
    )


def test_a_dead_lane_stands_still():
    fitted = fit(Bowl([1.0, 2.0], spoil={(0, 4): math.nan}), plan(2), LocalRuntime())
    weights = fitted.curves["validation/weight"][0]
    assert weights[0] == weights[1] == weights[2]
    assert weights[0] < 1


def test_the_first_failure_is_the_one_that_is_told():
    bowl = Bowl([1.0], spoil={(0, 2): math.nan, (0, 7): math.inf})
    assert fit(bowl, plan(1), LocalRuntime()).diverged == {0: "pull is not finite at step 2"}


def test_a_lane_that_fails_before_its_first_validation_keeps_its_first_weights():
    fitted = fit(Bowl([1.5], spoil={(0, 1): math.nan}), plan(1), LocalRuntime())
    assert fitted.epoch_A == [0]
    assert (fitted.parameters.value_KP == 1.5).all()


def test_a_huge_learning_rate_is_a_result():
    fitted = fit(Bowl([1.0, 1.0], criterion=[[1.0, 1.0]] * 3), plan(2, rate=[1e30, 0.1]), LocalRuntime())
    assert fitted.diverged == {0: "pull is not finite at step 1"}


class Cliff(Bowl):
    """A loss that is finite and has a gradient that is not."""

    def losses(self, rows_KB, _epoch=0):
        w_K = self.modules["w"].sum(dim=1)
        value_K = (w_K - w_K.detach()).sqrt() + 1
        return Losses(value_K, {"task": value_K}, {})


def test_a_gradient_that_is_not_finite_is_told_as_such():
    fitted = fit(Cliff([1.0]), plan(1), LocalRuntime())
    assert fitted.diverged == {0: "gradient is not finite at step 0"}
    assert (fitted.parameters.value_KP == 1).all()


def test_a_lane_rolls_as_it_does_alone():
    together = fit(Bowl([1.0, 2.0, 3.0]), plan(3, rate=[0.1, 0.2, 0.3]), LocalRuntime())
    for lane, (start, rate) in enumerate([(1.0, 0.1), (2.0, 0.2), (3.0, 0.3)]):
        alone = fit(Bowl([start]), plan(1, rate=[rate]), LocalRuntime())
        assert torch.equal(alone.parameters.value_KP[0], together.parameters.value_KP[lane])
