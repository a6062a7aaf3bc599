"""Transport between clouds against the solver on its costs, and autograd through POT.

Axes: L lanes, N and M points, A coordinates.
"""

import math

import ot
import pytest
import torch

from mmdistill.errors import NumericsError
from mmdistill.transport.clouds import half_squared_distances, median_cost, transport_clouds
from mmdistill.transport.sinkhorn import transport_value

EXACT = {"tolerance": 1e-11, "iterations": 5_000}
EPS = torch.tensor([0.5, 1.0], dtype=torch.float64)


def clouds(points=12, other=12, dtype=torch.float64):
    X, Y = (
        torch.randn(2, n, 3, generator=torch.Generator().manual_seed(n + k), dtype=dtype)
        for k, n in enumerate((points, other))
    )
    return X.requires_grad_(), Y.requires_grad_()


def through_pot(X, Y, eps, debias):
    def value(A, B):
        cost = 0.5 * (A[:, None] - B[None]).square().sum(2)
        return ot.solve(cost, reg=eps, reg_type="KL", tol=1e-12, max_iter=50_000, grad="envelope").value

    return value(X, Y) - (0.5 * value(X, X) + 0.5 * value(Y, Y) if debias else 0.0)


@pytest.mark.parametrize("debias", [False, True])
def test_value_and_both_gradients_are_those_of_autograd_through_pot(debias):
    X, Y = clouds()
    found = transport_clouds(X, Y, eps=EPS, debias=debias, **EXACT)
    ours = torch.autograd.grad(found.value_L.sum(), (X, Y))
    slow = torch.stack([through_pot(X[k], Y[k], float(EPS[k]), debias) for k in range(2)])
    theirs = torch.autograd.grad(slow.sum(), (X, Y))
    torch.testing.assert_close(found.value_L, slow, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_gradient_agrees_with_finite_differences():
    X, Y = clouds(5, 5)
    assert torch.autograd.gradcheck(
        lambda x, y: transport_clouds(x, y, eps=EPS, **EXACT).value_L, (X, Y), atol=1e-6
    )


def test_clouds_may_differ_in_size_and_lanes_weigh_their_own_gradient():
    X, Y = clouds(6, 9)
    found = transport_clouds(X, Y, eps=EPS, debias=False, **EXACT)
    cost = half_squared_distances(X, Y)
    value, plan = transport_value(cost, eps=EPS, **EXACT)
    torch.testing.assert_close(found.value_L, value)
    torch.testing.assert_close(found.plan.plan_LNM, plan.plan_LNM)
    weights = torch.tensor([2.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((weights * found.value_L).sum(), Y),
        torch.autograd.grad((weights * value).sum(), Y),
    )


def test_infinite_eps_compares_means():
    X, Y = clouds()
    found = transport_clouds(X, Y, eps=torch.full((2,), math.inf, dtype=torch.float64))
    gap = X.mean(1) - Y.mean(1)
    torch.testing.assert_close(found.value_L, 0.5 * gap.square().sum(1))
    (gradient,) = torch.autograd.grad(found.value_L.sum(), X)
    torch.testing.assert_close(gradient, (gap / 12)[:, None].expand(2, 12, 3))


def test_a_lane_that_is_not_finite_disturbs_no_other():
    X, Y = clouds(dtype=torch.float32)
    clean = transport_clouds(X, Y, eps=EPS.float())
    broken = transport_clouds(X, torch.stack([Y[0], Y[1] * math.nan]), eps=EPS.float())
    assert broken.value_L[1].isnan()
    assert torch.equal(broken.value_L[0], clean.value_L[0])
    assert broken.converged_L.tolist() == [1.0, pytest.approx(1 / 3)]


def test_a_regularisation_that_is_not_positive_is_refused():
    X, Y = clouds()
    with pytest.raises(NumericsError, match="`eps` must be > 0, but is -1"):
        transport_clouds(X, Y, eps=torch.tensor([0.1, -1.0]))


@pytest.mark.parametrize("points", [1, 2, 5, 8])
def test_median_cost_is_the_lower_median_over_pairs(points):
    X, _ = clouds(points)
    cost = half_squared_distances(X, X).detach()
    pairs = sorted(float(cost[0, i, j]) for i in range(points) for j in range(i + 1, points))
    expected = pairs[(len(pairs) - 1) // 2] if pairs else 1.0
    assert float(median_cost(cost)[0]) == pytest.approx(expected)
    assert (median_cost(torch.zeros(2, 4, 4)) == 1e-6).all()


def test_relative_eps_counts_in_median_costs_of_the_first_cloud():
    X, Y = clouds()
    relative = transport_clouds(X, Y, eps=EPS, relative=True).value_L
    absolute = transport_clouds(X, Y, eps=EPS * median_cost(half_squared_distances(X, X).detach())).value_L
    assert torch.equal(relative, absolute)
