"""Entropic optimal transport for many small problems at once, each with a regularisation of its own.

Every problem minimises <P, C> + eps KL(P || a x b) over plans with marginals a and b (Cuturi, 2013), by
alternating scalings of a kernel that is re-centred whenever they grow (Schmitzer, 2019, "absorption").

Axes: L leading axes (lanes, teachers ...; any number), P unsolved problems, N rows, M columns.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import NumericsError
from mmdistill.transport.scaling import FIRST_STEPS, LATER_STEPS, Scaling, solve_self

# Share of problems still open at which the solved ones are taken out, which copies the kernels of the others.
COMPACT_AT = 0.7


@dataclass(frozen=True)
class Plan:
    """Solutions of a batch of transport problems; no gradient flows through them.

    Attributes:
        plan_LNM: non-negative, each plan sums to 1; NaN where the costs are not finite.
        cost_L: <P, C>, in the units of the cost.
        kl_L: KL(P || a x b) >= 0, in nats.
        converged_L: whether the marginal error fell to the tolerance.
        error_L: Euclidean norm of (row sums of P) - a, as POT measures it; without ``symmetric`` the
            column sums are exact up to rounding.
        iterations: iterations of the problem that took longest; one is a pass over rows and columns.
    """

    plan_LNM: Tensor
    cost_L: Tensor
    kl_L: Tensor
    converged_L: Tensor
    error_L: Tensor
    iterations: int


def transport_value(
    cost_LNM: Tensor,
    *,
    eps: float | Tensor,
    tolerance: float = 1e-4,
    iterations: int = 100,
    row_weights: Tensor | None = None,
    column_weights: Tensor | None = None,
    symmetric: bool = False,
) -> tuple[Tensor, Plan]:
    """Return <P, C> + eps KL(P || a x b) at the optimal plan, and that plan.

    The gradient with respect to the cost is the plan itself (envelope theorem), which is exact for this
    value at convergence; off by about the marginal error before it. At ``eps = inf`` the plan is a x b and
    the second summand is 0, its limit. Arguments and errors are those of :func:`solve`.
    """
    solved = solve(
        cost_LNM,
        eps=eps,
        tolerance=tolerance,
        iterations=iterations,
        row_weights=row_weights,
        column_weights=column_weights,
        symmetric=symmetric,
    )
    eps_L = torch.as_tensor(eps, dtype=solved.kl_L.dtype, device=cost_LNM.device)
    penalty_L = torch.where(torch.isinf(eps_L), solved.kl_L.new_zeros(()), eps_L) * solved.kl_L
    return _inner(solved.plan_LNM, cost_LNM) + penalty_L, solved


def solve(
    cost_LNM: Tensor,
    *,
    eps: float | Tensor,
    tolerance: float = 1e-4,
    iterations: int = 100,
    row_weights: Tensor | None = None,
    column_weights: Tensor | None = None,
    symmetric: bool = False,
) -> Plan:
    """Return the entropic transport plans; nothing in here is differentiated.

    Problems stop one by one. A problem with a cost that is not finite is left out at once, with a plan of
    NaN, and costs the others nothing. Half precision is solved in single precision. In single precision the
    marginal error can be brought to about 1e-7, for any eps; the plan is that of costs rounded to single
    precision, so its relative error is about 1e-7 max(C) / eps.

    Args:
        cost_LNM: costs of any sign, in any unit.
        eps: weight of the entropy, > 0, in the units of the cost; one, or one per problem (broadcast to L).
        tolerance: Euclidean marginal error at which a problem stops.
        iterations: most iterations for any problem, >= 1.
        row_weights: masses a, > 0, [..., N]; scaled to sum to 1. Uniform by default.
        column_weights: masses b, > 0, [..., M]; likewise.
        symmetric: the costs are those of a cloud to itself: symmetric, least on the diagonal, a = b. Solved
            by averaged updates, which about halve the error each time or better (Feydy et al., 2019, 3.1).

    Raises:
        NumericsError: if ``eps`` is not above 0, if a mass is not above 0, or if the costs of a single
            problem (no leading axes) are not finite.
    """
    with torch.no_grad():
        costs_PNM, eps_P = _problems(cost_LNM.detach(), eps)
        lead, (rows, columns) = cost_LNM.shape[:-2], cost_LNM.shape[-2:]
        a_P1N = _masses("row_weights", row_weights, lead, rows, costs_PNM)
        b_P1M = a_P1N if symmetric else _masses("column_weights", column_weights, lead, columns, costs_PNM)
        finite_P = costs_PNM.sum(dim=(1, 2)).isfinite()
        if cost_LNM.dim() == 2 and not bool(finite_P.all()):
            raise NumericsError("`cost` must be finite, but is not")
        product_PNM = torch.where(finite_P[:, None, None], a_P1N.mT * b_P1M, math.nan)
        nothing_P = torch.where(finite_P, product_PNM.new_zeros(()), math.nan)
        answers = _Answers(product_PNM, nothing_P, nothing_P.clone())
        open_P = (finite_P & eps_P.isfinite()).nonzero()[:, 0]
        if len(open_P):
            given = (costs_PNM, eps_P, a_P1N, b_P1M)
            whole = len(open_P) == len(costs_PNM)
            problems = _Problems(open_P, *(given if whole else (x[open_P] for x in given)))
            run = _solve_self if symmetric else _solve
            answers.iterations = run(problems, answers, tolerance, iterations)
        return Plan(
            plan_LNM=answers.plan_PNM.reshape(cost_LNM.shape),
            cost_L=_inner(answers.plan_PNM, costs_PNM).reshape(lead),
            kl_L=answers.kl_P.reshape(lead),
            converged_L=(answers.error_P <= tolerance).reshape(lead),
            error_L=answers.error_P.reshape(lead),
            iterations=answers.iterations,
        )


class _Problems(NamedTuple):
    index_P: Tensor
    costs_PNM: Tensor
    eps_P: Tensor
    a_P1N: Tensor
    b_P1M: Tensor


@dataclass
class _Answers:
    """What is returned of each problem; the product plan without error until something better is known."""

    plan_PNM: Tensor
    kl_P: Tensor
    error_P: Tensor
    iterations: int = 0

    def put(self, index_P: Tensor, plan_PNM: Tensor, kl_P: Tensor, error_P: Tensor) -> None:
        """Store some problems."""
        self.plan_PNM[index_P], self.kl_P[index_P], self.error_P[index_P] = plan_PNM, kl_P, error_P


def _solve(problems: _Problems, answers: _Answers, tolerance: float, iterations: int) -> int:
    state = Scaling.start(*problems, iterations)
    open_P = torch.ones_like(problems.index_P, dtype=torch.bool)
    used = 0
    for steps in _steps_between_checks(iterations):
        error_P = state.advance(steps)
        used += steps
        done = (open_P & (state.solved(error_P, tolerance) | (used == iterations))).nonzero()[:, 0]
        if len(done):
            answers.put(state.index_P[done], *state.plans(done), error_P[done])
            open_P[done] = False
            still = open_P.nonzero()[:, 0]
            if not len(still):
                break
            if len(still) <= COMPACT_AT * len(open_P):
                state, error_P, open_P = state.only(still), error_P[still], open_P[still]
        state.adapt(error_P, steps)
    return used


def _solve_self(problems: _Problems, answers: _Answers, tolerance: float, iterations: int) -> int:
    index_P, costs_PNN, eps_P, a_P1N, _ = problems
    plan_PNN, kl_P, error_P, used = solve_self(
        costs_PNN, eps_P, a_P1N, tolerance=tolerance, iterations=iterations
    )
    answers.put(index_P, plan_PNN, kl_P, error_P)
    return used


def _steps_between_checks(iterations: int) -> Iterator[int]:
    """Yield numbers of steps that sum to ``iterations``."""
    used = 0
    for steps in chain(FIRST_STEPS, repeat(LATER_STEPS)):
        yield min(steps, iterations - used)
        used += steps
        if used >= iterations:
            return


def _inner(plan_LNM: Tensor, cost_LNM: Tensor) -> Tensor:
    return (plan_LNM * cost_LNM).sum(dim=(-2, -1))


def _problems(cost_LNM: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the costs and eps as one list of problems."""
    costs_LNM = cost_LNM if cost_LNM.dtype == torch.float64 else cost_LNM.float()
    eps_L = torch.as_tensor(eps, dtype=costs_LNM.dtype, device=cost_LNM.device).detach()
    if not bool((eps_L > 0).all()):
        worst = float(eps_L[~(eps_L > 0)].flatten()[0])
        raise NumericsError(f"`eps` must be > 0, but is {worst:g}")
    return costs_LNM.flatten(0, -3) if costs_LNM.dim() > 2 else costs_LNM[None], eps_L.broadcast_to(
        cost_LNM.shape[:-2]
    ).reshape(-1)


def _masses(name: str, weights: Tensor | None, lead: torch.Size, points: int, like: Tensor) -> Tensor:
    """Return masses_P1N that sum to 1 for each problem."""
    if weights is None:
        return like.new_full((len(like), 1, points), 1.0 / points)
    weights_LN = weights.detach().to(like)
    if not bool((weights_LN > 0).all() & weights_LN.isfinite().all()):
        bad = weights_LN[~((weights_LN > 0) & weights_LN.isfinite())].flatten()[0]
        raise NumericsError(f"`{name}` must be finite and > 0, but contains {float(bad):g}")
    masses_LN = weights_LN / weights_LN.sum(dim=-1, keepdim=True)
    return masses_LN.broadcast_to((*lead, points)).reshape(-1, 1, points)
