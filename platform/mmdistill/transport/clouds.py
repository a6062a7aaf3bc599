"""Entropic transport between clouds of points, with its gradient in closed form.

Axes: L leading axes (lanes; any number), N and M points of the two clouds, A coordinates.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmdistill.transport.sinkhorn import Plan, Value, sensitivity, solve, with_gradient

# Stands for the median cost of a cloud whose points coincide, so that eps stays above 0.
LEAST_SCALE = 1e-6


class Transported(NamedTuple):
    """The value with its gradient, the plan between the clouds, and how the problems were solved.

    Attributes:
        converged_L: the share of the problems of each lane that reached the tolerance.
        iterations: of the slowest problem of all.
    """

    value_L: Tensor
    plan: Plan
    converged_L: Tensor
    iterations: int


def half_squared_distances(X_LNA: Tensor, Y_LMA: Tensor) -> Tensor:
    """Return 1/2 ||x - y||^2 between all pairs; one leading axis."""
    # Costs do not depend on the origin; near the points little is lost to cancellation.
    origin_L1A = X_LNA.mean(dim=-2, keepdim=True)
    X_LNA, Y_LMA = X_LNA - origin_L1A, Y_LMA - origin_L1A
    return _costs(X_LNA, _half_squares(X_LNA), Y_LMA, _half_squares(Y_LMA))


def _half_squares(X_LNA: Tensor) -> Tensor:
    return 0.5 * X_LNA.square().sum(dim=-1)


def _costs(X_LNA: Tensor, X_halves_LN: Tensor, Y_LMA: Tensor, Y_halves_LM: Tensor) -> Tensor:
    # In place, because memory for one more matrix costs as much as filling it.
    products_LNM = torch.baddbmm(Y_halves_LM[:, None], X_LNA, Y_LMA.mT, alpha=-1)
    return products_LNM.add_(X_halves_LN[:, :, None]).clamp_min_(0.0)


def median_cost(costs_LNN: Tensor) -> Tensor:
    """Return the median cost between two different points of a cloud; at least 1e-6, and 1 for one point."""
    points = costs_LNN.shape[-1]
    if points == 1:
        return torch.ones_like(costs_LNN[..., 0, 0])
    pairs_LR = costs_LNN.flatten(-2).index_select(-1, _pairs(points, costs_LNN.device))
    if pairs_LR.device.type == "cpu":
        # The same lower median, several times faster.
        middle = (pairs_LR.shape[-1] - 1) // 2
        median_L = torch.from_numpy(np.partition(pairs_LR.numpy(), middle, axis=-1)[..., middle])
    else:
        median_L = pairs_LR.median(dim=-1).values
    return median_L.nan_to_num(nan=1.0).clamp_min(LEAST_SCALE)


@functools.lru_cache(maxsize=8)
def _pairs(points: int, device: torch.device) -> Tensor:
    """Return where the pairs of different points are in a flat matrix."""
    first, second = torch.triu_indices(points, points, offset=1, device=device)
    places: Tensor = points * first + second
    return places


def transport_clouds(
    X_LNA: Tensor,
    Y_LMA: Tensor,
    *,
    eps: Tensor,
    relative: bool = False,
    debias: bool = True,
    tolerance: float = 1e-4,
    iterations: int = 1000,
    value: Value = "regularised",
) -> Transported:
    """Return OT(X, Y) - 1/2 OT(X, X) - 1/2 OT(Y, Y), the last two only if debiased (Feydy et al., 2019).

    OT = min <P, C> + eps KL(P || a x b) with C = 1/2 ||x - y||^2 and equal masses. The gradient is that
    of the value: sum_j P_ij (x_i - y_j) with respect to x_i where it is the optimal one. One leading axis; a
    lane that is not finite is NaN and disturbs no other.

    Args:
        X_LNA: points.
        Y_LMA: points, as many as in X if debiased.
        eps: regularisation of each lane, > 0, in units of the cost; infinity compares the means.
        relative: whether ``eps`` is in units of :func:`median_cost` of X instead.
        debias: whether to subtract the self-transports, so that the least value is 0, at X = Y.
        tolerance: marginal error at which a problem is solved.
        iterations: most iterations of any problem.
        value: ``regularised``, as above; ``linear``: OT = <P, C> of the same plans, with its gradient through
            their optimality conditions (Genevay, Peyre and Cuturi, 2018).

    Raises:
        NumericsError: if the regularisation is not above 0.
    """
    bounds: dict[str, Any] = {"tolerance": tolerance, "iterations": iterations}
    # Costs and gradients do not depend on the origin; near the points little is lost to cancellation.
    origin_L1A = X_LNA.detach().mean(dim=-2, keepdim=True)
    x_LNA, y_LMA = X_LNA.detach() - origin_L1A, Y_LMA.detach() - origin_L1A
    x_halves_LN, y_halves_LM = _half_squares(x_LNA), _half_squares(y_LMA)
    # Both clouds in one call, but not with the problem between them: theirs is the faster solver.
    owns = torch.cat([x_LNA, y_LMA]) if debias else x_LNA
    own_halves = torch.cat([x_halves_LN, y_halves_LM]) if debias else x_halves_LN
    own_costs = _costs(owns, own_halves, owns, own_halves)
    eps_L = eps * median_cost(own_costs[: len(x_LNA)]) if relative else eps
    between = solve(_costs(x_LNA, x_halves_LN, y_LMA, y_halves_LM), eps=eps_L, **bounds)
    value_L, converged_L, used = (
        _value(between, value),
        between.converged_L.to(eps_L.dtype),
        between.iterations,
    )
    learns = X_LNA.requires_grad or Y_LMA.requires_grad
    matrix, X_matrix, Y_matrix = _matrix(between, eps_L, value, learns=learns), None, None
    if debias:
        eps_2L = torch.cat([eps_L, eps_L])
        within = solve(own_costs, eps=eps_2L, symmetric=True, **bounds)
        X_matrix, Y_matrix = _matrix(within, eps_2L, value, learns=learns).chunk(2)
        value_L = value_L - 0.5 * _value(within, value).reshape(2, -1).sum(dim=0)
        converged_L = (converged_L + within.converged_L.to(eps_L.dtype).reshape(2, -1).sum(dim=0)) / 3
        used = max(used, within.iterations)
    value_L = attached(value_L, X_LNA, Y_LMA, matrix, X_matrix, Y_matrix)
    return Transported(value_L, between, converged_L, used)


def _value(solved: Plan, value: Value) -> Tensor:
    return solved.value_L if value == "regularised" else solved.cost_L


def _matrix(solved: Plan, eps_L: Tensor, value: Value, *, learns: bool) -> Tensor:
    """Return the gradient of the value with respect to the costs, if anyone learns from it."""
    return sensitivity(solved, eps_L) if value != "regularised" and learns else solved.plan_LNM


def attached(
    value_L: Tensor,
    X_LNA: Tensor,
    Y_LMA: Tensor,
    between_LNM: Tensor,
    X_own_LNN: Tensor | None,
    Y_own_LMM: Tensor | None,
) -> Tensor:
    """Return a value with its gradient, given its gradients with respect to the costs 1/2 ||x - y||^2.

    They are those of what is between the clouds and, with the factor -1/2, of what is within each; the plans
    themselves where the value is an optimal one.
    """
    x_LNA, y_LMA = X_LNA.detach(), Y_LMA.detach()
    if X_LNA.requires_grad:
        value_L = with_gradient(value_L, X_LNA, _pull(x_LNA, y_LMA, between_LNM, X_own_LNN))
    if Y_LMA.requires_grad:
        value_L = with_gradient(value_L, Y_LMA, _pull(y_LMA, x_LNA, between_LNM.mT, Y_own_LMM))
    return value_L


def _pull(x_LNA: Tensor, y_LMA: Tensor, plan_LNM: Tensor, own_LNN: Tensor | None) -> Tensor:
    """Return the gradient of the value with respect to x; a self-plan is symmetric."""
    mass_LN = plan_LNM.sum(dim=-1)
    if own_LNN is not None:
        mass_LN -= own_LNN.sum(dim=-1)
    gradient_LNA = (mass_LN[..., None] * x_LNA).baddbmm_(plan_LNM, y_LMA, alpha=-1)
    return gradient_LNA if own_LNN is None else gradient_LNA.baddbmm_(own_LNN, x_LNA)
