"""Every coupling and value of the structural transport keeps what the term promises.

Axes: L lanes, B batch, D width.
"""

import math

import pytest
import torch

from mmdistill.errors import NumericsError
from mmdistill.losses.structural import structural_transport

K, B = 3, 20
OBJECTIVES = [
    {"coupling": "entropic"},
    {"coupling": "entropic", "value": "linear"},
    {"coupling": "identity"},
    {"coupling": "exact"},
    {"coupling": "unbalanced"},
    {"coupling": "gromov"},
    {"coupling": "fused_gromov"},
]


@pytest.fixture(params=OBJECTIVES, ids=lambda o: "-".join(o.values()))
def objective(request):
    return request.param


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(dtype=torch.float32):
    """Return a student that is on its way to the teacher."""
    teacher = draw(K, B, 6, dtype=dtype)
    return (teacher + 0.7 * draw(K, B, 6, seed=1, dtype=dtype)).requires_grad_(), teacher


def loss(student, teacher, objective, **options):
    return structural_transport(student, teacher, **{"k": 8} | objective | options)


def gradient(student, teacher, objective):
    value, _ = loss(student, teacher, objective)
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


def test_the_gradient_is_that_of_the_value(objective):
    student, teacher = pair(torch.float64)
    exact = {"tolerance": 1e-12, "iterations": 20_000, "eps_rel": 0.5}
    value, details = loss(student, teacher, objective, **exact)
    assert (details["converged"] == 1).all()
    (found,) = torch.autograd.grad(value.sum(), student)
    direction = draw(*student.shape, seed=2, dtype=torch.float64)
    step = 1e-5
    up, down = (
        loss(student.detach() + s * step * direction, teacher, objective, **exact)[0].sum() for s in (1, -1)
    )
    assert (found * direction).sum().item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-5)


def test_it_is_least_at_the_teacher_and_a_step_goes_there(objective):
    student, teacher = pair()
    torch.testing.assert_close(loss(teacher, teacher, objective)[0], torch.zeros(K), atol=2e-5, rtol=0)
    before, found = gradient(student, teacher, objective)
    assert (before > 1e-4).all()
    step = 1e-3 * found / found.square().mean(dim=(1, 2), keepdim=True).sqrt()
    assert (loss(student.detach() - step, teacher, objective)[0] < before).all()


def test_the_order_of_rows_does_not_matter(objective):
    student, teacher = pair(torch.float64)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(3))
    shuffled, _ = loss(student[:, order], teacher[:, order], objective)
    torch.testing.assert_close(loss(student, teacher, objective)[0], shuffled, rtol=1e-4, atol=1e-7)


def test_lanes_are_as_if_alone_and_one_that_is_not_finite_is_nan(objective):
    student, teacher = pair()
    settings = {"k": torch.tensor([5, 8, 15]), "eps_rel": torch.tensor([0.1, 0.5, 2.0])}
    together = loss(student, teacher, objective, **settings)[0]
    for lane in range(K):
        own = {name: setting[lane] for name, setting in settings.items()}
        alone = loss(student[lane], teacher[lane], objective, **own)[0]
        torch.testing.assert_close(alone, together[lane], rtol=1e-4, atol=1e-6)
    spoiled = torch.where(torch.arange(K)[:, None, None] == 1, math.nan, student)
    found, details = loss(spoiled, teacher, objective, **settings)
    assert found[1].isnan()
    torch.testing.assert_close(found[[0, 2]], together[[0, 2]], rtol=1e-5, atol=1e-7)
    assert objective["coupling"] == "identity" or details["converged"][1] < 1


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_values_and_gradients_are_finite_at_extremes(objective, scale):
    student, teacher = pair()
    spread = (student.detach() * scale).requires_grad_()
    for given in (teacher, teacher * scale):
        value, found = gradient(spread, given, objective)
        assert value.isfinite().all()
        assert found.isfinite().all()


def test_a_gromov_part_alone_is_the_gromov_coupling_and_none_the_exact_one():
    student, teacher = pair()
    whole = loss(student, teacher, {"coupling": "fused_gromov", "structure": 1.0})[0]
    torch.testing.assert_close(whole, loss(student, teacher, {"coupling": "gromov"})[0])
    none = loss(student, teacher, {"coupling": "fused_gromov", "structure": 0.0})[0]
    torch.testing.assert_close(8 * none, loss(student, teacher, {"coupling": "exact"})[0])


def test_a_high_price_of_marginals_is_the_balanced_transport_and_infinite_eps_compares_means():
    student, teacher = pair(torch.float64)
    exact = {"tolerance": 1e-9, "iterations": 3000, "eps_rel": 0.5}
    balanced = loss(student, teacher, {"coupling": "entropic"}, **exact)[0]
    priced = loss(student, teacher, {"coupling": "unbalanced", "penalty_rel": 1e3}, **exact)[0]
    torch.testing.assert_close(priced, balanced, rtol=2e-2, atol=0)
    means = [loss(student, teacher, {"coupling": c}, eps_rel=math.inf)[0] for c in ("entropic", "unbalanced")]
    torch.testing.assert_close(*means)


@pytest.mark.parametrize(
    ("objective", "rule"),
    [
        ({"coupling": "unbalanced", "penalty_rel": 0.0}, "`penalty_rel` must be > 0, but is 0"),
        ({"coupling": "unbalanced", "eps_rel": -1.0}, "`eps_rel` must be > 0, but is -1"),
        ({"coupling": "fused_gromov", "structure": 1.5}, r"`structure` must be in \[0, 1\], but is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(objective, rule):
    with pytest.raises(NumericsError, match=rule):
        loss(*pair(), objective)
