"""Couplings that POT alone solves, one problem after the other: exact, unbalanced and Gromov-Wasserstein.

Slow beside the entropic solver: about 1, 3 and 5 ms for a problem of 64 points, and the process grows by the
200 MB of POT. A problem that is not finite gives a plan of NaN and disturbs no other.

Axes: L lanes, N and M points of two clouds, A coordinates.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmdistill.transport.clouds import Transported, attached, half_squared_distances
from mmdistill.transport.sinkhorn import Plan

Array = npt.NDArray[np.float64]


class _Found(NamedTuple):
    """One plan, whether its solver is content, and its iterations; 0 where they are not counted."""

    plan_NM: Array
    converged: bool
    iterations: int


def exact_transport(X_LNA: Tensor, Y_LMA: Tensor) -> Transported:
    """Return min <P, C> with C = 1/2 ||x - y||^2 and equal masses; the gradient is that of the optimal plan.

    One leading axis. The plan jumps where it is not unique; there the gradient is one of several.
    """
    import ot

    def emd(cost_NM: Array) -> _Found:
        plan_NM, log = ot.lp.emd(*_masses(cost_NM), cost_NM, log=True)
        return _Found(plan_NM, log["warning"] is None, 0)

    x_LNA, y_LMA = X_LNA.detach(), Y_LMA.detach()
    cost_LNM = half_squared_distances(x_LNA, y_LMA)
    plan = _plan(cost_LNM, _each(emd, cost_LNM), torch.zeros_like(cost_LNM[:, 0, 0]))
    value_L = attached(plan.value_L, X_LNA, Y_LMA, plan.plan_LNM, None, None)
    return Transported(value_L, plan, plan.converged_L.to(value_L.dtype), plan.iterations)


def unbalanced_transport(
    X_LNA: Tensor,
    Y_LMA: Tensor,
    *,
    eps: Tensor,
    penalty: Tensor,
    debias: bool = True,
    tolerance: float = 1e-4,
    iterations: int = 1000,
) -> Transported:
    """Return OT(X, Y) - 1/2 OT(X, X) - 1/2 OT(Y, Y) of plans whose marginals are free at a price.

    OT = min <P, C> + eps KL(P || a x b) + penalty (KL(P 1 || a) + KL(P' 1 || b)) with C = 1/2 ||x - y||^2,
    equal masses and KL(p || q) = sum p log(p / q) - p + q (Chizat et al., 2018; Sejourne et al., 2019); the
    gradient is that of the optimal value. One leading axis. POT's solver is in scaling form: where costs are
    beyond some 700 eps it may stop short, with ``converged`` below 1.

    Args:
        X_LNA: points.
        Y_LMA: points, as many as in X if debiased.
        eps: regularisation of each lane, > 0, in units of the cost; infinity: P = a x b.
        penalty: of each lane, > 0, in units of the cost; mass travels no farther than about that.
        debias: whether to subtract the last two, so that the least value is 0, at X = Y.
        tolerance: relative change of the scalings in the last iteration at which a problem is solved.
        iterations: most iterations of any problem.
    """
    import ot

    def scale(cost_NM: Array, eps_1: Array, penalty_1: Array) -> _Found:
        a_N, b_M = _masses(cost_NM)
        if math.isinf(eps_1):
            return _Found(a_N[:, None] * b_M, True, 0)
        plan_NM, log = ot.unbalanced.sinkhorn_unbalanced(
            a_N,
            b_M,
            cost_NM,
            float(eps_1),
            float(penalty_1),
            method="sinkhorn_translation_invariant",
            numItermax=iterations,
            stopThr=tolerance,
            log=True,
        )
        last = log["err"][-1] if log["err"] else math.inf
        return _Found(plan_NM, last < tolerance, len(log["err"]))

    def transport(x_LNA: Tensor, y_LMA: Tensor) -> Plan:
        cost_LNM = half_squared_distances(x_LNA, y_LMA)
        return _plan(cost_LNM, _each(scale, cost_LNM, eps, penalty), eps, penalty)

    x_LNA, y_LMA = X_LNA.detach(), Y_LMA.detach()
    between = transport(x_LNA, y_LMA)
    value_L, plans, X_plan, Y_plan = between.value_L, [between], None, None
    if debias:
        own = [transport(z, z) for z in (x_LNA, y_LMA)]
        value_L = value_L - 0.5 * (own[0].value_L + own[1].value_L)
        X_plan, Y_plan = own[0].plan_LNM, own[1].plan_LNM
        plans += own
    value_L = attached(value_L, X_LNA, Y_LMA, between.plan_LNM, X_plan, Y_plan)
    converged_L = torch.stack([plan.converged_L for plan in plans]).to(value_L.dtype).mean(dim=0)
    return Transported(value_L, between, converged_L, max(plan.iterations for plan in plans))


def gromov_transport(
    X_LNN: Tensor,
    Y_LMM: Tensor,
    *,
    cost_LNM: Tensor | None = None,
    structure: Tensor | None = None,
) -> Transported:
    """Return a least structure * 1/2 sum (X_ik - Y_jl)^2 P_ij P_kl + (1 - structure) <P, C>, equal masses.

    Gromov-Wasserstein between two symmetric matrices, fused with a linear cost if there is one (Memoli, 2011;
    Vayer et al., 2019). The problem is not convex: POT's conditional gradients start from the product of the
    masses and, where the matrices are of one size, from the identity, and the lesser value is taken; so it is
    never above that of the identity, and 0 at X = Y. The gradient is that of the value at the plan found.

    Args:
        X_LNN: similarities or distances within the one cloud; one leading axis.
        Y_LMM: likewise.
        cost_LNM: linear costs between the clouds; none by default.
        structure: share of the structure in [0, 1] of each lane; 1 without costs.
    """
    linear_LNM = X_LNN.new_zeros(()) if cost_LNM is None else cost_LNM
    share_L = X_LNN.new_ones(len(X_LNN)) if cost_LNM is None or structure is None else structure
    shape = (len(X_LNN), X_LNN.shape[-1], Y_LMM.shape[-1])
    found = _each(_gromov, linear_LNM.broadcast_to(shape), X_LNN, Y_LMM, share_L)
    plan_LNM = _stacked(found, X_LNN)
    row_LN, column_LM = plan_LNM.sum(dim=-1), plan_LNM.sum(dim=-2)
    squares_L = (X_LNN.square() * (row_LN[..., None] * row_LN[..., None, :])).sum(dim=(-2, -1))
    squares_L = squares_L + (Y_LMM.square() * (column_LM[..., None] * column_LM[..., None, :])).sum((-2, -1))
    moved_L = 0.5 * squares_L - (X_LNN @ plan_LNM @ Y_LMM * plan_LNM).sum(dim=(-2, -1))
    value_L = share_L * moved_L + (1 - share_L) * (plan_LNM * linear_LNM).sum(dim=(-2, -1))
    plan = _plan(linear_LNM.detach().broadcast_to(shape), found, torch.zeros_like(share_L))
    return Transported(value_L, plan, plan.converged_L.to(value_L.dtype), plan.iterations)


def _gromov(cost_NM: Array, X_NN: Array, Y_MM: Array, structure: Array) -> _Found:
    import ot

    a_N, b_M = _masses(cost_NM)
    starts = [a_N[:, None] * b_M] + [np.diag(a_N)] * (len(a_N) == len(b_M))
    half = math.sqrt(0.5)
    options = {"symmetric": True, "alpha": float(structure), "log": True}
    runs = [
        ot.gromov.fused_gromov_wasserstein(cost_NM, half * X_NN, half * Y_MM, a_N, b_M, G0=start, **options)
        for start in starts
    ]
    plan_NM, log = min(runs, key=lambda run: float(run[1]["fgw_dist"]))
    return _Found(plan_NM, True, len(log["loss"]) - 1)


def _each(solver: Callable[..., _Found], *inputs: Tensor) -> list[_Found]:
    """Solve each problem with finite costs, in double precision; eps may be infinite."""
    found = []
    arrays = [x.detach().cpu().double().numpy() for x in inputs]
    for given in zip(*arrays, strict=True):
        if np.isfinite(given[0]).all() and not any(np.isnan(x).any() for x in given):
            # What POT warns of is told by `converged`.
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found.append(solver(*given))
        else:
            found.append(_Found(np.full(given[0].shape, math.nan), False, 0))
    return found


def _masses(cost_NM: Array) -> tuple[Array, Array]:
    rows, columns = cost_NM.shape
    return np.full(rows, 1 / rows), np.full(columns, 1 / columns)


def _stacked(found: list[_Found], like: Tensor) -> Tensor:
    return torch.from_numpy(np.stack([one.plan_NM for one in found])).to(like)


def _plan(cost_LNM: Tensor, found: list[_Found], eps_L: Tensor, penalty_L: Tensor | None = None) -> Plan:
    """Return what was found, with the value of the unbalanced objective; double precision inside."""
    plan, cost = _stacked(found, cost_LNM).double(), cost_LNM.double()
    marginals = plan.sum(dim=-1), plan.sum(dim=-2)
    cost_L, kl_L = (plan * cost).sum(dim=(-2, -1)), _divergence(plan.flatten(-2))
    # At eps = inf the divergence is 0, its limit.
    value_L = cost_L + torch.where(eps_L.isinf(), 0.0, eps_L).double() * kl_L
    if penalty_L is not None:
        value_L = value_L + penalty_L * sum(_divergence(mass) for mass in marginals)
    return Plan(
        plan_LNM=plan.to(cost_LNM),
        value_L=value_L.to(cost_LNM),
        cost_L=cost_L.to(cost_LNM),
        kl_L=kl_L.to(cost_LNM),
        converged_L=torch.tensor([one.converged for one in found], device=cost_LNM.device),
        error_L=(marginals[0] - 1 / plan.shape[-2]).norm(dim=-1).to(cost_LNM),
        iterations=max(one.iterations for one in found),
    )


def _divergence(mass_LS: Tensor) -> Tensor:
    """Return KL(p || q) = sum p log(p / q) - p + q from the uniform q of mass 1."""
    size = mass_LS.shape[-1]
    return cast("Tensor", torch.special.xlogy(mass_LS, mass_LS * size).sum(dim=-1)) - mass_LS.sum(dim=-1) + 1
