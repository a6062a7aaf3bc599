"""Entropic optimal transport for many small problems at once, each with a regularisation of its own.

Every problem minimises <P, C> + eps KL(P || a x b) over plans with marginals a and b (Cuturi, 2013), by
alternating scalings of a kernel. On a CPU compiled code solves one problem after the other; elsewhere torch
solves all of them together.

Axes: L leading axes (lanes, teachers ...; any number), P unsolved problems, N rows, M columns.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import NumericsError
from mmdistill.transport import compiled, scaling
from mmdistill.transport.compiled import Options
from mmdistill.transport.implicit import linear_gradient

Value = Literal["regularised", "linear"]


@dataclass(frozen=True)
class Plan:
    """Solutions of a batch of transport problems; no gradient flows through them.

    Attributes:
        plan_LNM: non-negative, each plan sums to 1; NaN where the costs are not finite.
        value_L: the dual value, in the units of the cost: a lower bound of the minimum of
            <P, C> + eps KL(P || a x b), off by the square of the marginal error only.
        cost_L: <P, C>, in the units of the cost.
        kl_L: KL(P || a x b) >= 0, in nats.
        converged_L: whether the marginal error fell to the tolerance.
        error_L: Euclidean norm of (row sums of P) - a, as POT measures it; without ``symmetric`` the
            column sums are exact up to rounding.
        iterations: iterations of the problem that took longest; one is a pass over rows and columns, be it of
            a scaling or inside a Newton step.
    """

    plan_LNM: Tensor
    value_L: Tensor
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
    iterations: int = 1000,
    row_weights: Tensor | None = None,
    column_weights: Tensor | None = None,
    row_mask: Tensor | None = None,
    column_mask: Tensor | None = None,
    symmetric: bool = False,
    value: Value = "regularised",
) -> tuple[Tensor, Plan]:
    """Return the value of the transport, and its plan.

    ``regularised`` is the least <P, C> + eps KL(P || a x b); its gradient with respect to the cost is the
    plan itself (envelope theorem). ``linear`` is <P, C> of the same plan, with its gradient through the
    optimality conditions (:func:`~mmdistill.transport.implicit.linear_gradient`); stopped early it is off
    by the marginal error, not by its square. At ``eps = inf`` the plan is a x b and both are <a x b, C>.
    The other arguments and the errors are those of :func:`solve`.
    """
    solved = solve(
        cost_LNM,
        eps=eps,
        tolerance=tolerance,
        iterations=iterations,
        row_weights=row_weights,
        column_weights=column_weights,
        row_mask=row_mask,
        column_mask=column_mask,
        symmetric=symmetric,
    )
    if value == "regularised":
        return with_gradient(solved.value_L, cost_LNM, solved.plan_LNM), solved
    gradient_LNM = sensitivity(solved, eps) if cost_LNM.requires_grad else solved.plan_LNM
    return with_gradient(solved.cost_L, cost_LNM, gradient_LNM), solved


def sensitivity(solved: Plan, eps: float | Tensor) -> Tensor:
    """Return the gradient of <P, C> with respect to C; at ``eps = inf`` P does not depend on C."""
    plan_LNM = solved.plan_LNM
    finite_L = torch.as_tensor(eps, device=plan_LNM.device).isfinite()
    return torch.where(finite_L[..., None, None], linear_gradient(plan_LNM), plan_LNM)


def solve(
    cost_LNM: Tensor,
    *,
    eps: float | Tensor,
    tolerance: float = 1e-4,
    iterations: int = 1000,
    row_weights: Tensor | None = None,
    column_weights: Tensor | None = None,
    row_mask: Tensor | None = None,
    column_mask: Tensor | None = None,
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
        row_mask: True for the rows there are, [..., N]; costs and weights of the others are not looked at,
            and their part of the plan is 0.
        column_mask: likewise, [..., M].
        symmetric: the costs are those of a cloud to itself: symmetric, least on the diagonal, a = b; what is
            given of the rows holds for the columns. Solved by averaged updates, which about halve the error
            each time or better (Feydy et al., 2019, 3.1).

    Raises:
        NumericsError: if ``eps`` is not above 0, if a mass is not above 0, if a mask leaves a problem without
            a point, or if the costs of a single problem (no leading axes) are not finite.
    """
    with torch.no_grad():
        costs_PNM, eps_P = _problems(cost_LNM.detach(), eps)
        lead, (rows, columns) = cost_LNM.shape[:-2], cost_LNM.shape[-2:]
        a_P1N = _masses("row", row_weights, row_mask, (*lead, rows), costs_PNM)
        b_P1M = (
            a_P1N
            if symmetric
            else _masses("column", column_weights, column_mask, (*lead, columns), costs_PNM)
        )
        gaps = row_mask is not None or column_mask is not None
        if gaps:
            costs_PNM = torch.where((a_P1N.mT > 0) & (b_P1M > 0), costs_PNM, 0.0)
        finite_P = costs_PNM.sum(dim=(1, 2)).isfinite()
        if cost_LNM.dim() == 2 and not bool(finite_P.all()):
            raise NumericsError("`cost` must be finite, but is not")
        problems = _Problems(costs_PNM, eps_P, a_P1N, b_P1M)
        answers = _answers(problems, finite_P, Options(tolerance, iterations, symmetric, gaps))
        return Plan(
            plan_LNM=answers.plan_PNM.reshape(cost_LNM.shape),
            value_L=answers.value_P.reshape(lead),
            cost_L=answers.cost_P.reshape(lead),
            kl_L=answers.kl_P.reshape(lead),
            converged_L=(answers.error_P <= tolerance).reshape(lead),
            error_L=answers.error_P.reshape(lead),
            iterations=answers.iterations,
        )


class _Problems(NamedTuple):
    costs_PNM: Tensor
    eps_P: Tensor
    a_P1N: Tensor
    b_P1M: Tensor


class _Answers(NamedTuple):
    plan_PNM: Tensor
    value_P: Tensor
    cost_P: Tensor
    kl_P: Tensor
    error_P: Tensor
    iterations: int


def _answers(problems: _Problems, finite_P: Tensor, options: Options) -> _Answers:
    """Solve what has to be solved; the rest is the product plan, or NaN where the costs are not finite."""
    costs_PNM, eps_P, a_P1N, b_P1M = problems
    open_P = finite_P & eps_P.isfinite()
    if bool(open_P.all()):
        return _solve_open(problems, options)
    plan_PNM = torch.where(finite_P[:, None, None], a_P1N.mT * b_P1M, math.nan)
    nothing_P = torch.where(finite_P, plan_PNM.new_zeros(()), math.nan)
    kl_P, error_P, iterations = nothing_P, nothing_P.clone(), 0
    cost_P = _inner(plan_PNM, costs_PNM)
    value_P = cost_P.clone()
    at = open_P.nonzero()[:, 0]
    if len(at):
        found = _solve_open(_Problems(*(x[at] for x in problems)), options)
        plan_PNM[at], value_P[at], cost_P[at], kl_P[at], error_P[at], iterations = found
    return _Answers(plan_PNM, value_P, cost_P, kl_P, error_P, iterations)


def _solve_open(problems: _Problems, options: Options) -> _Answers:
    """Solve finite problems by the means of their device."""
    return (_with_kernel if problems.costs_PNM.device.type == "cpu" else _with_torch)(problems, options)


def _with_kernel(problems: _Problems, options: Options) -> _Answers:
    costs_PNM, eps_P, a_P1N, b_P1M = (x.contiguous().numpy() for x in problems)
    plan_PNM, facts_P5 = compiled.solve_all(costs_PNM, eps_P, a_P1N[:, 0], b_P1M[:, 0], options)
    value_P, cost_P, kl_P, error_P, _ = torch.from_numpy(facts_P5).to(problems.eps_P.dtype).unbind(dim=1)
    return _Answers(torch.from_numpy(plan_PNM), value_P, cost_P, kl_P, error_P, int(facts_P5[:, 4].max()))


def _with_torch(problems: _Problems, options: Options) -> _Answers:
    costs_PNM, eps_P, a_P1N, b_P1M = problems
    bounds: dict[str, Any] = {"tolerance": options.tolerance, "iterations": options.iterations}
    if options.gaps:
        costs_PNM, a_P1N, b_P1M = scaling.with_copies(costs_PNM, a_P1N, b_P1M)
    if options.symmetric:
        found = scaling.solve_self(costs_PNM, eps_P, a_P1N, **bounds)
    else:
        found = scaling.solve(costs_PNM, eps_P, a_P1N, b_P1M, **bounds)
    there_PNM = (problems.a_P1N.mT > 0) & (problems.b_P1M > 0)
    plan_PNM = torch.where(there_PNM, found.plan_PNM, 0.0) if options.gaps else found.plan_PNM
    value_P = _inner(a_P1N.mT * b_P1M, costs_PNM) + eps_P * found.dual_P
    cost_P = _inner(plan_PNM, problems.costs_PNM)
    return _Answers(plan_PNM, value_P, cost_P, found.kl_P, found.error_P, found.iterations)


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


def _masses(
    side: str, weights: Tensor | None, mask: Tensor | None, shape: tuple[int, ...], like: Tensor
) -> Tensor:
    """Return masses_P1N that sum to 1 for each problem; 0 for a point that is masked."""
    if weights is None and mask is None:
        return like.new_full((len(like), 1, shape[-1]), 1.0 / shape[-1])
    weights_LN = like.new_ones(shape) if weights is None else weights.detach().to(like).broadcast_to(shape)
    if mask is not None:
        if not bool(mask.any(dim=-1).all()):
            raise NumericsError(f"`{side}_mask` must leave every problem a point, but one has none")
        weights_LN = torch.where(mask, weights_LN, 0.0)
    there_LN = weights_LN > 0 if mask is None else (weights_LN > 0) | ~mask
    if not bool(there_LN.all() & weights_LN.isfinite().all()):
        bad = weights_LN[~(there_LN & weights_LN.isfinite())].flatten()[0]
        raise NumericsError(f"`{side}_weights` must be finite and > 0, but contains {float(bad):g}")
    masses_LN = weights_LN / weights_LN.sum(dim=-1, keepdim=True)
    return masses_LN.reshape(-1, 1, shape[-1])


def with_gradient(value_L: Tensor, of_LNM: Tensor, gradient_LNM: Tensor) -> Tensor:
    """Return the value with its known gradient with respect to some matrices."""
    result: Tensor = _WithGradient.apply(value_L, of_LNM, gradient_LNM)  # type: ignore[no-untyped-call]
    return result


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_L: Tensor, _of_LNM: Tensor, gradient_LNM: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_LNM)
        return value_L.clone()

    @staticmethod
    def backward(ctx: Any, upstream_L: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient_LNM,) = ctx.saved_tensors
        return upstream_L, upstream_L[..., None, None] * gradient_LNM, None
