"""Couplings of POT against their definitions, and the gradient of <P, C> against POT's and differences.

Axes: L lanes, N and M points, A coordinates.
"""

import itertools
import math

import numpy as np
import ot
import pytest
import torch

from mmdistill.transport.clouds import half_squared_distances
from mmdistill.transport.couplings import exact_transport, gromov_transport, unbalanced_transport
from mmdistill.transport.implicit import linear_gradient
from mmdistill.transport.sinkhorn import solve, transport_value

EXACT = {"tolerance": 1e-13, "iterations": 20_000}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("eps", [0.05, 0.3, 2.0])
def test_the_gradient_of_the_linear_value_agrees_with_differences(eps):
    cost, a, direction = draw(2, 7, 5).square(), draw(7, seed=1).exp(), draw(2, 7, 5, seed=2)
    cost.requires_grad_()

    def value(of):
        return transport_value(of, eps=eps, row_weights=a, value="linear", **EXACT)[0]

    found = torch.autograd.grad((value(cost) * torch.tensor([1.0, -2.0])).sum(), cost)[0]
    step = 1e-5
    slopes = (value(cost + step * direction) - value(cost - step * direction)) / (2 * step)
    expected = slopes * torch.tensor([1.0, -2.0])
    torch.testing.assert_close((found * direction).sum((1, 2)), expected.detach(), rtol=1e-6, atol=1e-9)


def test_the_gradient_of_the_linear_value_agrees_with_pot():
    cost = draw(8, 6).square().requires_grad_()
    value, plan = transport_value(cost, eps=0.3, value="linear", **EXACT)
    w = [torch.full((n,), 1 / n, dtype=torch.float64) for n in cost.shape]
    # POT differentiates through its iterations.
    theirs = ot.sinkhorn2(*w, cost, 0.3, method="sinkhorn_log", stopThr=1e-13, numItermax=3000, warn=False)
    assert value.item() == pytest.approx(theirs.item(), rel=1e-9)
    torch.testing.assert_close(
        *(torch.autograd.grad(v, cost)[0] for v in (value, theirs)), rtol=1e-6, atol=1e-9
    )
    assert value.item() == pytest.approx(plan.cost_L.item())


def test_the_linear_gradient_of_single_precision_is_that_of_double():
    cost = half_squared_distances(draw(4, 40, 2), draw(4, 40, 2, seed=1))
    eps = torch.tensor([0.02, 0.1, 1.0, math.inf])
    found = []
    for each in (cost, cost.float()):
        each = each.requires_grad_()
        tolerance = 1e-6 if each.dtype == torch.float32 else 1e-12
        value, _ = transport_value(each, eps=eps, value="linear", tolerance=tolerance, iterations=20_000)
        found.append(torch.autograd.grad(value.sum(), each)[0].double())
    assert ((found[0] - found[1]).norm(dim=(1, 2)) < 1e-3 * found[0].norm(dim=(1, 2))).all()
    torch.testing.assert_close(found[0][3], torch.full((40, 40), 1 / 1600, dtype=torch.float64))


def test_a_linear_gradient_keeps_to_its_mass_and_lane():
    plan = solve(draw(3, 6, 5).square(), eps=0.1, row_mask=torch.arange(6) < 4).plan_LNM
    plan[1] = math.nan
    found = linear_gradient(plan)
    assert found[1].isnan().all()
    assert (found[[0, 2], 4:] == 0).all()
    for axis in (1, 2):
        torch.testing.assert_close(found[[0, 2]].sum(axis), plan[[0, 2]].sum(axis))
    # Where no mass connects the points, nothing is there to be moved.
    torch.testing.assert_close(linear_gradient(torch.eye(4)[None] / 4), torch.eye(4)[None] / 4)


def test_exact_transport_is_the_best_permutation():
    X, Y = draw(2, 5, 2).requires_grad_(), draw(2, 5, 2, seed=1)
    found = exact_transport(X, Y)
    cost = half_squared_distances(X.detach(), Y)
    best = [
        min(float(c[range(5), p].mean()) for p in map(list, itertools.permutations(range(5)))) for c in cost
    ]
    np.testing.assert_allclose(found.value_L.detach(), best, rtol=1e-12)
    assert found.converged_L.tolist() == [1.0, 1.0]
    torch.testing.assert_close(found.plan.plan_LNM.sum(2), torch.full((2, 5), 0.2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found.value_L.sum(), X)
    torch.testing.assert_close(gradient, (X.detach() - 5 * found.plan.plan_LNM @ Y) / 5)


@pytest.mark.parametrize("debias", [False, True])
def test_unbalanced_transport_is_that_of_plain_scalings(debias):
    X, Y = draw(1, 9, 2), draw(1, 9, 2, seed=1) + 0.5
    eps, penalty = 0.3, 0.8
    found = unbalanced_transport(
        X,
        Y,
        eps=torch.tensor([eps], dtype=X.dtype),
        penalty=torch.tensor([penalty], dtype=X.dtype),
        debias=debias,
        tolerance=1e-13,
        iterations=50_000,
    )

    def slow(A, B):
        cost, power = half_squared_distances(A, B)[0], penalty / (penalty + eps)
        u, v, kernel = torch.ones(9).double(), torch.ones(9).double(), torch.exp(-cost / eps) / 81
        for _ in range(3000):
            u = (1 / 9 / (kernel @ v)) ** power
            v = (1 / 9 / (kernel.T @ u)) ** power
        P = u[:, None] * kernel * v

        def kl(p, q):
            return float((p * (p / q).log() - p + q).sum())

        marginals = sum(kl(P.sum(k), 1 / 9) for k in (0, 1))
        return float((P * cost).sum()) + eps * kl(P, 1 / 81) + penalty * marginals

    expected = slow(X, Y) - (0.5 * (slow(X, X) + slow(Y, Y)) if debias else 0.0)
    assert found.value_L.item() == pytest.approx(expected, rel=1e-8)
    assert found.converged_L == 1
    assert found.iterations > 1


def test_an_unbalanced_problem_that_is_not_solved_is_said_not_to_be():
    X, Y = draw(1, 9, 2), draw(1, 9, 2, seed=1)
    options = {"eps": torch.tensor([0.1]), "penalty": torch.tensor([1.0]), "debias": False}
    assert unbalanced_transport(X, Y, iterations=1, **options).converged_L == 0


def test_gromov_transport_finds_isometric_clouds_and_is_never_above_the_identity():
    X = draw(2, 6, 3)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    distances = torch.cdist(X, X)
    turned = distances[:, order][:, :, order]
    found = gromov_transport(distances, turned)
    paired = 0.5 * (distances - turned).square().mean((1, 2))
    assert (found.value_L <= paired + 1e-12).all()
    other = torch.cdist(draw(2, 6, 3, seed=2), draw(2, 6, 3, seed=2))
    value = gromov_transport(distances, other)
    P = value.plan.plan_LNM
    gaps = (distances[:, :, None, :, None] - other[:, None, :, None, :]).square()
    slow = 0.5 * torch.einsum("lijkm,lij,lkm->l", gaps, P, P)
    torch.testing.assert_close(value.value_L, slow, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gromov_transport(distances, distances).value_L, torch.zeros(2).double())


def test_fused_gromov_transport_weighs_both_parts_and_takes_clouds_of_two_sizes():
    X, Y = draw(1, 6, 3), draw(1, 4, 3, seed=1)
    cost, D, E = half_squared_distances(X, Y), torch.cdist(X, X), torch.cdist(Y, Y)
    found = gromov_transport(D, E, cost_LNM=cost, structure=torch.tensor([0.3]))
    P = found.plan.plan_LNM
    gromov = 0.5 * torch.einsum(
        "lijkm,lij,lkm->l", (D[:, :, None, :, None] - E[:, None, :, None, :]).square(), P, P
    )
    torch.testing.assert_close(found.value_L, 0.3 * gromov + 0.7 * (P * cost).sum((1, 2)))
    torch.testing.assert_close(P.sum(1), torch.full((1, 4), 0.25, dtype=torch.float64))
