"""AdamW over lanes, against torch's."""

import math

import pytest
import torch
from torch import nn

from mmdistill.models.network import Network, NetworkSettings
from mmdistill.training.optimiser import FlatParameters, LaneAdamW, load_lanes, schedule_scale


class Lanes(nn.Module):
    """Two parameters of three lanes, in float64."""

    def __init__(self, lanes=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(lanes, 4, 2, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(lanes, 1, 2, generator=generator, dtype=torch.float64))

    def losses(self, x, y):
        return (torch.tanh(x @ self.w + self.b) - y).square().mean(dim=(1, 2))


RATES, DECAYS = [1e-2, 3e-3, 0.1], [0.0, 0.1, 0.02]


def batches(steps):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 8, 4, generator=generator, dtype=torch.float64) for _ in range(steps)]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_every_lane_steps_as_torch_does(schedule):
    steps, ours = 12, Lanes()
    flat = FlatParameters(ours)
    adam = LaneAdamW(flat, torch.tensor(RATES).double(), torch.tensor(DECAYS).double())
    for step, (x, y) in enumerate(batches(steps)):
        flat.differentiate(ours.losses(x, y[..., :2]))
        adam.step(schedule_scale(schedule, step, steps), torch.ones(3, dtype=torch.bool))
    for k in range(3):
        theirs = Lanes()
        theirs.w = nn.Parameter(theirs.w.detach()[k : k + 1].clone())
        theirs.b = nn.Parameter(theirs.b.detach()[k : k + 1].clone())
        reference = torch.optim.AdamW(theirs.parameters(), lr=RATES[k], weight_decay=DECAYS[k])
        for step, (x, y) in enumerate(batches(steps)):
            for group in reference.param_groups:
                cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
                group["lr"] = RATES[k] * (cosine if schedule == "cosine" else 1.0)
            reference.zero_grad()
            theirs.losses(x[k : k + 1], y[k : k + 1, :, :2]).sum().backward()
            reference.step()
        torch.testing.assert_close(ours.w[k], theirs.w[0], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(ours.b[k], theirs.b[0], rtol=1e-6, atol=1e-8)


def test_a_step_has_the_bits_of_torch_with_a_group_per_lane():
    module = Lanes().float()
    flat, rate_K, decay_K = FlatParameters(module), torch.tensor(RATES), torch.tensor(DECAYS)
    theirs = [nn.Parameter(row.clone()) for row in flat.value_KP]
    reference = torch.optim.AdamW(
        [
            {"params": [row], "lr": float(rate), "weight_decay": float(decay)}
            for row, rate, decay in zip(theirs, rate_K, decay_K, strict=True)
        ],
        fused=True,
    )
    adam = LaneAdamW(flat, rate_K, decay_K)
    for step in range(5):
        gradient_KP = torch.randn(3, 10, generator=torch.Generator().manual_seed(step))
        flat.gradient_KP.copy_(gradient_KP)
        for row, gradient_P in zip(theirs, gradient_KP, strict=True):
            row.grad = gradient_P.clone()
        adam.step(1.0, torch.ones(3, dtype=torch.bool))
        reference.step()
        assert torch.equal(flat.value_KP, torch.stack(theirs).detach())
    assert adam.state.steps == 5


def test_a_dead_lane_stands_still_and_its_gradient_does_no_harm():
    module = Lanes()
    flat = FlatParameters(module)
    before = flat.value_KP.clone()
    adam = LaneAdamW(flat, torch.tensor(RATES).double(), torch.tensor(DECAYS).double())
    flat.gradient_KP.fill_(1.0)[1] = math.nan
    for _ in range(3):
        adam.step(1.0, torch.tensor([True, False, True]))
    assert torch.equal(flat.value_KP[1], before[1])
    assert flat.value_KP.isfinite().all()
    assert (flat.value_KP[[0, 2]] != before[[0, 2]]).all()


def test_flat_parameters_are_views_of_the_module():
    module = Lanes()
    flat = FlatParameters(module)
    assert flat.value_KP.shape == (3, 4 * 2 + 2)
    flat.value_KP[1] = 7.0
    assert (module.w[1] == 7).all()
    assert (module.b[1] == 7).all()
    assert (module.w[0] != 7).all()


def test_a_parameter_that_a_loss_does_not_use_gets_a_gradient_of_zero():
    module = Lanes()
    flat = FlatParameters(module)
    flat.gradient_KP.fill_(3.0)
    flat.differentiate(module.w.square().sum(dim=(1, 2)))
    torch.testing.assert_close(flat.gradient_KP[:, :8], 2 * module.w.detach().reshape(3, -1))
    assert (flat.gradient_KP[:, 8:] == 0).all()


def test_saved_lanes_can_be_loaded_in_any_cohort():
    settings = NetworkSettings(width=4, depth=1)
    network = Network({"a": 3, "b": 2}, 2, settings, [1, 2, 3])
    flat = FlatParameters(network)
    other = Network({"a": 3, "b": 2}, 2, settings, [0, 0])
    load_lanes(other, [flat.lane(2), flat.lane(0)])
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value[[2, 0]])
    flat.value_KP.zero_()
    assert any(value.abs().sum() > 0 for value in other.state_dict().values())


def test_the_cosine_falls_from_one_to_zero():
    scales = [schedule_scale("cosine", step, 10) for step in range(11)]
    assert scales[0] == 1
    assert scales[5] == pytest.approx(0.5)
    assert scales[10] == pytest.approx(0, abs=1e-12)
    assert scales == sorted(scales, reverse=True)
