"""A network that follows the better of two.

Axes: K lanes.
"""

import torch

from mmdistill.models.network import Network, NetworkSettings
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.run import RunSettings
from mmdistill.pipeline.studying import student_objective
from mmdistill.training.average import AverageNetwork
from mmdistill.training.runtime import LocalRuntime


def network(*seeds):
    return Network({"a": 3, "b": 2}, 2, NetworkSettings(width=4, depth=2), seeds)


def test_every_lane_takes_its_step_towards_its_better_network():
    average, first, second = AverageNetwork(network(1, 2), [0.9, 0.5]), network(3, 4), network(5, 6)
    average.follow(second, first, torch.tensor([True, False]))
    before = {name: weights_K.clone() for name, weights_K in average.network.named_buffers()}
    for _ in range(2):
        average.follow(first, second, torch.tensor([True, False]))
    firsts, seconds = (dict(one.named_parameters()) for one in (first, second))
    assert before.keys() == firsts.keys()
    for name, found_K in average.network.named_buffers():
        # The first step takes all, later ones keep 1/2 and 2/3, but no more than the momentum.
        assert torch.equal(before[name][0], seconds[name][0])
        assert torch.equal(before[name][1], firsts[name][1])
        torch.testing.assert_close(found_K[0], before[name][0] / 3 + 2 * firsts[name][0] / 3)
        torch.testing.assert_close(found_K[1], before[name][1] / 4 + 3 * seconds[name][1] / 4)
    assert list(average.parameters()) == []


def test_the_mean_teacher_of_a_run_follows_whoever_has_the_lower_task_loss():
    data = {"dataset": "digits_views", "student": ["rows"], "privileged": ["pixels"]}
    tree = {"data": data, "teachers": {"pool": ["student"], "training": "joint"}}
    run = RunSettings.model_validate(tree | {"terms": {"competing_students": {"momentum": 0.0}}})
    fold = opened(run.data, 0, False, "cpu")
    objective = student_objective([run], None, fold, LocalRuntime())
    for worse in (objective.student, objective._live.teacher):
        with torch.no_grad():
            worse.head.weight_KIO.mul_(-30)
        losses = objective.losses(torch.arange(64)[None])
        ahead = bool(losses.terms["task"] <= losses.terms["teacher_task"])
        better = objective.student if ahead else objective._live.teacher
        assert (better is objective.student) == (worse is not objective.student)
        found = dict(objective._average.network.named_buffers())
        assert all(torch.equal(found[name], weights) for name, weights in better.named_parameters())
        with torch.no_grad():
            worse.head.weight_KIO.div_(-30)
