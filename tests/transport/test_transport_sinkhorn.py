"""The solver against definitions, limits and POT.

Axes: L lanes, N rows, M columns.
"""

import math

import numpy as np
import ot
import pytest
import torch

from mmdistill.errors import NumericsError
from mmdistill.transport import sinkhorn
from mmdistill.transport.sinkhorn import solve, transport_value

EXACT = {"tolerance": 1e-11, "iterations": 5_000}


@pytest.fixture(params=["kernel", "torch"], autouse=True)
def _backend(request, monkeypatch):
    """Solve every problem here twice: by the compiled kernel, and as on a device that has none."""
    if request.param == "torch":
        monkeypatch.setattr(sinkhorn, "_with_kernel", sinkhorn._with_torch)


def costs(*shape, seed=0, dtype=torch.float64, scale=4.0):
    return scale * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clouds(lanes, points, seed=0, dtype=torch.float64):
    """Return half the squared distances between clouds in the plane, C(X, Y) and C(X, X)."""
    X, Y = torch.randn(2, lanes, points, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return 0.5 * torch.cdist(X, Y).square(), 0.5 * torch.cdist(X, X).square()


def pot_plan(cost_NM, eps, a=None, b=None):
    rows, columns = cost_NM.shape
    a = np.full(rows, 1 / rows) if a is None else a
    b = np.full(columns, 1 / columns) if b is None else b
    cost = cost_NM.double().numpy()
    return ot.bregman.sinkhorn_log(a, b, cost, eps, stopThr=1e-12, numItermax=50_000, warn=False)


@pytest.mark.parametrize("eps", [0.05, 0.2, 1.0, 30.0])
@pytest.mark.parametrize("shape", [(9, 9), (6, 11), (1, 5)])
def test_agrees_with_pot(eps, shape):
    cost = costs(*shape)
    plan = solve(cost, eps=eps, **EXACT)
    assert plan.converged_L
    np.testing.assert_allclose(plan.plan_LNM, pot_plan(cost, eps), rtol=1e-7, atol=1e-12)


def test_agrees_with_pot_for_general_marginals_that_need_not_sum_to_one():
    cost = costs(7, 5)
    a, b = costs(7, seed=1) + 0.1, costs(5, seed=2) + 0.1
    plan = solve(cost, eps=0.3, row_weights=a, column_weights=b, **EXACT)
    theirs = pot_plan(cost, 0.3, (a / a.sum()).numpy(), (b / b.sum()).numpy())
    np.testing.assert_allclose(plan.plan_LNM, theirs, rtol=1e-8, atol=1e-13)


def test_weights_may_differ_between_lanes():
    cost, a = costs(3, 6, 4), costs(3, 6, seed=1) + 1.0
    together = solve(cost, eps=0.5, row_weights=a, **EXACT).plan_LNM
    alone = torch.stack([solve(cost[i], eps=0.5, row_weights=a[i], **EXACT).plan_LNM for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-13)


def test_value_is_cost_plus_eps_times_divergence_from_independence():
    cost = costs(8, 8)
    value, plan = transport_value(cost, eps=0.2, **EXACT)
    P = pot_plan(cost, 0.2)
    kl = (P * np.log(P * 64)).sum()
    assert plan.cost_L.item() == pytest.approx((P * cost.numpy()).sum(), rel=1e-9)
    assert plan.kl_L.item() == pytest.approx(kl, rel=1e-8)
    assert value.item() == pytest.approx((P * cost.numpy()).sum() + 0.2 * kl, rel=1e-9)
    theirs = ot.solve(cost.numpy(), reg=0.2, reg_type="KL", tol=1e-12, max_iter=50_000)
    assert value.item() == pytest.approx(theirs.value, rel=1e-8)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_a_value_stopped_early_is_a_lower_bound_off_by_the_square_of_the_marginal_error(symmetric, tolerance):
    cost = clouds(20, 30)[symmetric]
    exact, _ = transport_value(cost, eps=1.0, symmetric=symmetric, **EXACT)
    early, plan = transport_value(cost, eps=1.0, symmetric=symmetric, tolerance=tolerance)
    assert (early <= exact + 1e-10).all()
    # The inverse curvature of the dual is about eps over a mass, here 30.
    assert (exact - early <= 60 * plan.error_L.square() + 1e-10).all()
    plain = plan.cost_L + plan.kl_L
    assert (exact - early).mean() < 0.2 * (exact - plain).abs().mean()


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradient_is_that_of_the_value(symmetric):
    between, within = clouds(1, 6)
    cost = (within if symmetric else between)[0].requires_grad_()
    value, plan = transport_value(cost, eps=0.3, symmetric=symmetric, **EXACT)
    (gradient,) = torch.autograd.grad(value, cost)
    torch.testing.assert_close(gradient, plan.plan_LNM)
    direction = costs(6, 6, seed=4)
    direction = direction + direction.mT
    step = 1e-5
    up, down = (
        transport_value(cost.detach() + s * step * direction, eps=0.3, **EXACT)[0] for s in (1.0, -1.0)
    )
    assert (gradient * direction).sum().item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-7)


def test_gradient_agrees_with_pot():
    X, Y = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = []
    for solver in ("ours", "pot"):
        y = Y.clone().requires_grad_()
        cost = 0.5 * (X[:, None] - y[None]).square().sum(2)
        if solver == "ours":
            value, _ = transport_value(cost, eps=0.5, **EXACT)
        else:
            value = ot.solve(cost, reg=0.5, reg_type="KL", tol=1e-12, max_iter=50_000, grad="envelope").value
        gradients.append(torch.autograd.grad(value, y)[0])
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10)


def test_small_eps_approaches_unregularised_transport():
    cost = costs(12, 12)
    plan = solve(cost, eps=1e-3, tolerance=1e-6, iterations=20_000)
    exact = ot.emd2(ot.unif(12), ot.unif(12), cost.numpy())
    assert exact - 1e-5 <= plan.cost_L.item() <= exact + 1e-3 * math.log(12)


def test_infinite_eps_gives_the_product_of_the_marginals_and_no_penalty():
    cost = costs(2, 4, 8, dtype=torch.float32).requires_grad_()
    value, plan = transport_value(cost, eps=torch.tensor([math.inf, 0.5]))
    assert torch.equal(plan.plan_LNM[0], torch.full((4, 8), 1 / 32))
    torch.testing.assert_close(value[0], cost[0].mean())
    assert plan.kl_L[0] == 0
    assert plan.converged_L[0]
    value.sum().backward()
    torch.testing.assert_close(cost.grad[0], torch.full((4, 8), 1 / 32))


def test_large_eps_approaches_infinite_eps():
    cost = costs(5, 5)
    value, _ = transport_value(cost, eps=1e8)
    assert value.item() == pytest.approx(cost.mean().item(), rel=1e-7)


def test_every_lane_is_solved_as_if_alone():
    cost, _ = clouds(6, 20, dtype=torch.float32)
    eps = torch.tensor([0.01, 0.03, 0.1, 0.3, 1.0, math.inf])
    together, plan = transport_value(cost, eps=eps)
    for lane in range(6):
        alone, own = transport_value(cost[lane], eps=float(eps[lane]))
        assert alone.item() == pytest.approx(together[lane].item(), rel=1e-5)
        torch.testing.assert_close(own.plan_LNM, plan.plan_LNM[lane], rtol=2e-3, atol=1e-6)


def test_any_number_of_leading_axes():
    cost = costs(2, 3, 4, 5)
    plan = solve(cost, eps=torch.tensor([0.2, 0.5, 1.0]), **EXACT)
    assert plan.plan_LNM.shape == cost.shape
    assert plan.cost_L.shape == plan.kl_L.shape == plan.converged_L.shape == plan.error_L.shape == (2, 3)
    np.testing.assert_allclose(plan.plan_LNM[1, 2], pot_plan(cost[1, 2], 1.0), rtol=1e-8)


@pytest.mark.parametrize("eps", [0.005, 0.05, 0.5])
def test_symmetric_solver_agrees_with_the_general_one(eps):
    _, cost = clouds(3, 15)
    fast = solve(cost, eps=eps, symmetric=True, tolerance=1e-12, iterations=200)
    slow = solve(cost, eps=eps, tolerance=1e-9, iterations=2_000)
    assert fast.converged_L.all()
    assert fast.iterations <= 60
    torch.testing.assert_close(fast.plan_LNM, slow.plan_LNM, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_lane_that_is_not_finite_does_not_touch_the_others(poison, symmetric):
    _, clean = clouds(3, 10, dtype=torch.float32)
    cost = clean.clone()
    cost[1, 2, 2] = poison
    cost.requires_grad_()
    value, plan = transport_value(cost, eps=0.1, symmetric=symmetric)
    reference = solve(clean[[0, 2]], eps=0.1, symmetric=symmetric)
    assert value[1].isnan()
    assert plan.converged_L.tolist() == [True, False, True]
    assert plan.iterations == reference.iterations
    torch.testing.assert_close(plan.plan_LNM[[0, 2]], reference.plan_LNM)
    value.sum().backward()
    assert cost.grad[[0, 2]].isfinite().all()


def test_all_lanes_not_finite_is_an_answer_too():
    plan = solve(torch.full((2, 3, 3), math.nan), eps=0.1)
    assert not plan.converged_L.any()
    assert plan.iterations == 0


def test_a_single_problem_that_is_not_finite_is_refused():
    with pytest.raises(NumericsError, match="`cost` must be finite"):
        solve(torch.tensor([[0.0, math.nan]]), eps=0.1)


@pytest.mark.parametrize(
    "eps", [0.0, -1.0, math.nan, torch.tensor([0.1, 0.0]), torch.tensor([math.nan, 1.0])]
)
def test_eps_that_is_not_positive_is_refused(eps):
    with pytest.raises(NumericsError, match=r"`eps` must be > 0, but is (0|-1|nan)$"):
        solve(costs(2, 3, 3), eps=eps)


@pytest.mark.parametrize("name", ["row_weights", "column_weights"])
@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan, math.inf])
def test_masses_that_are_not_positive_are_refused(name, bad):
    weights = torch.tensor([0.5, bad, 0.5])
    with pytest.raises(NumericsError, match=f"`{name}` must be finite and > 0, but contains"):
        solve(costs(3, 3), eps=0.1, **{name: weights})


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_only_the_ratio_of_cost_and_eps_matters(scale):
    cost = costs(2, 10, 10, dtype=torch.float32)
    torch.testing.assert_close(
        solve(cost * scale, eps=0.1 * scale).plan_LNM, solve(cost, eps=0.1).plan_LNM, rtol=1e-3, atol=1e-6
    )


def test_constants_added_to_rows_and_columns_do_not_change_the_plan():
    cost = costs(8, 9)
    shifted = cost + costs(8, 1, seed=1, scale=50.0) - costs(1, 9, seed=2, scale=50.0)
    torch.testing.assert_close(
        solve(shifted, eps=0.2, **EXACT).plan_LNM, solve(cost, eps=0.2, **EXACT).plan_LNM
    )


def test_error_is_the_norm_of_the_row_sums_and_unconverged_is_said():
    cost, _ = clouds(4, 30)
    plan = solve(cost, eps=0.003, tolerance=1e-8, iterations=10)
    assert not plan.converged_L.any()
    assert plan.iterations == 10
    torch.testing.assert_close(plan.error_L, (plan.plan_LNM.sum(2) - 1 / 30).norm(dim=1))
    torch.testing.assert_close(plan.plan_LNM.sum(1), torch.full((4, 30), 1 / 30, dtype=torch.float64))


@pytest.mark.parametrize("iterations", [1, 3, 7, 50])
def test_at_most_the_given_iterations_at_the_wanted_eps(iterations):
    """A plan is diag(u) exp(-C / eps) diag(v) for the wanted eps, even when stopped early."""
    cost, _ = clouds(1, 8)
    plan = solve(cost[0], eps=0.05, tolerance=0.0, iterations=iterations)
    assert plan.iterations == iterations
    log_scalings = plan.plan_LNM.log() + cost[0] / 0.05
    centred = log_scalings - log_scalings.mean(0, keepdim=True) - log_scalings.mean(1, keepdim=True)
    assert (centred + log_scalings.mean()).abs().max() < 1e-8


def test_a_hundred_iterations_suffice_where_plain_scaling_needs_thousands():
    cost, within = clouds(8, 64, dtype=torch.float32)
    eps = 0.05 * within.flatten(1).median(dim=1).values
    plan = solve(cost, eps=eps)
    assert plan.converged_L.all()
    log_kernel, g = -cost / eps[:, None, None], torch.zeros(8, 64)
    for _ in range(100):
        f = -torch.logsumexp(log_kernel + g[:, None, :], 2)
        g = -torch.logsumexp(log_kernel + f[:, :, None], 1)
    plain = torch.exp(log_kernel + f[:, :, None] + g[:, None, :]) / 64
    plain_error = (plain / plain.sum((1, 2), keepdim=True)).sum(2).sub(1 / 64).norm(dim=1)
    assert (plan.error_L < plain_error).float().mean() > 0.7


def test_half_precision_is_solved_in_single_precision():
    plan = solve(costs(2, 5, 5).half(), eps=0.1)
    assert plan.plan_LNM.dtype == torch.float32
    assert plan.converged_L.all()


def test_no_gradient_flows_through_the_plan():
    cost = costs(4, 4).requires_grad_()
    assert not solve(cost, eps=torch.tensor(0.1, requires_grad=True)).plan_LNM.requires_grad


@pytest.mark.parametrize("eps", [1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("points", [8, 64, 200])
def test_clouds_far_apart_stay_finite_even_where_single_precision_cannot_resolve_eps(eps, points):
    X, Y = torch.randn(2, 3, points, 2, generator=torch.Generator().manual_seed(1))
    cost = 0.5 * torch.cdist(X, 0.1 * Y + 2).square()
    value, plan = transport_value(4 * cost / cost.amax(), eps=eps)
    assert value.isfinite().all()
    torch.testing.assert_close(plan.plan_LNM.sum((1, 2)), torch.ones(3), rtol=0, atol=1e-4)
