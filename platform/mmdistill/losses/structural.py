"""Losses between the similarity structures of two batches (PKDOT and MT-PKDOT).

Axes: L leading axes (lanes; any number), B batch, D width, A anchors.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import NumericsError
from mmdistill.losses.anchors import (
    AnchorKind,
    Shift,
    anchor_counts,
    shifted,
    similarities,
    structural_points,
)
from mmdistill.losses.base import loss, per_lane, unit_rows
from mmdistill.transport.clouds import Transported, half_squared_distances, median_cost, transport_clouds
from mmdistill.transport.couplings import exact_transport, gromov_transport, unbalanced_transport
from mmdistill.transport.sinkhorn import Value

Coupling = Literal["entropic", "identity", "exact", "unbalanced", "gromov", "fused_gromov"]


class Objective(NamedTuple):
    """What is minimised between two structures, and how far.

    Attributes:
        coupling: ``entropic``: min <P, C> + eps KL(P || a x b); ``identity``: each sample with itself, mean
            of 1/2 ||x_i - y_i||^2; ``exact``: min <P, C>; ``unbalanced``: entropic, its marginals free at a
            price (:func:`~mmdistill.transport.couplings.unbalanced_transport`); ``gromov``:
            Gromov-Wasserstein between the two (shifted) similarity matrices, without anchors;
            ``fused_gromov``: that and the exact transport between the points, both as means of 1/2
            (difference of similarities)^2 (:func:`~mmdistill.transport.couplings.gromov_transport`).
        value: ``regularised`` or, of the entropic plans, ``linear``: <P, C> with its gradient through the
            optimality conditions.
        debias: whether to subtract the two self-transports, so that the least value is 0, at X = Y; of the
            entropic and the unbalanced ones, for the others need none.
        tolerance: marginal error at which a problem is solved; of the unbalanced ones: change of a scaling.
        iterations: most iterations of the solver.
        penalty_rel: price of a free marginal, in units of the median cost; one or one per lane.
        structure: share of the Gromov-Wasserstein part of a fused one in [0, 1]; one or one per lane.
    """

    coupling: Coupling = "entropic"
    value: Value = "regularised"
    debias: bool = True
    tolerance: float = 1e-4
    iterations: int = 1000
    penalty_rel: float | Tensor = 10.0
    structure: float | Tensor = 0.5


def structural_transport(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    *,
    eps_rel: float | Tensor = 0.13,
    eps: float | Tensor | None = None,
    k: int | Tensor = 30,
    anchors: AnchorKind = "least",
    shift: Shift = "min",
    detach_shift: bool = False,
    **objective: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the transport between the two similarity structures, and how it was solved.

    With C = 1/2 ||x - y||^2 between the points of :func:`~mmdistill.losses.anchors.structural_points` and
    OT_eps = min <P, C> + eps KL(P || a x b): OT_eps(X, Y) - 1/2 OT_eps(X, X) - 1/2 OT_eps(Y, Y) (MT-PKDOT,
    released code; Feydy et al., 2019), or another ``objective``. The gradient is that of the optimal value. A
    lane with features that are not finite gives NaN and does not disturb the others.

    Args:
        student_LBD: features.
        teacher_LBD: features of the same samples, of any width.
        eps_rel: regularisation in units of the median cost between two different points of X; one, or one
            per lane; infinity compares nothing but the means of the points.
        eps: regularisation itself, instead of ``eps_rel``; the released code has 0.01.
        k: number of anchors, one or one per lane.
        anchors: which, see :func:`~mmdistill.losses.anchors.anchor_indices`.
        shift: see :func:`~mmdistill.losses.anchors.structural_points`.
        detach_shift: see :func:`~mmdistill.losses.anchors.structural_points`.
        objective: attributes of :class:`Objective`.

    Returns:
        The value of each lane and, per lane: ``plan_entropy`` in nats, from log B (a permutation) to
        2 log B (no information); ``diagonal_mass`` in [0, 1]; ``converged``, the share of the lane's problems
        that reached the tolerance; ``iterations`` of the slowest of all lanes, 0 where there are none.

    Raises:
        NumericsError: if ``eps``, ``eps_rel``, ``k``, ``penalty_rel`` or ``structure`` is out of range.
    """
    points: dict[str, Any] = {"kind": anchors, "k": k, "shift": shift, "detach_shift": detach_shift}
    what = Objective(**objective)
    if what.coupling == "identity":
        return _identity(*structural_points(student_LBD, teacher_LBD, **points))
    given = ("eps_rel", eps_rel) if eps is None else ("eps", eps)
    return _answer(_solved(student_LBD, teacher_LBD, points, given, what), student_LBD.shape[:-2])


@torch.no_grad()
def structural_plan(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    *,
    eps_rel: float | Tensor = 0.13,
    eps: float | Tensor | None = None,
    k: int | Tensor = 30,
    anchors: AnchorKind = "least",
    shift: Shift = "min",
    detach_shift: bool = False,
    **objective: Any,
) -> Tensor:
    """Return the plan of :func:`structural_transport`, plan_LBB from the teacher's points to the student's.

    Its mass is 1; that of an unbalanced one may be less or more. The arguments are the same.
    """
    what = Objective(**objective)
    *lead, batch, _ = student_LBD.shape
    if what.coupling == "identity":
        return (torch.eye(batch).to(student_LBD) / batch).expand(*lead, batch, batch)
    points: dict[str, Any] = {"kind": anchors, "k": k, "shift": shift, "detach_shift": detach_shift}
    given = ("eps_rel", eps_rel) if eps is None else ("eps", eps)
    found = _solved(student_LBD, teacher_LBD, points, given, what)
    return found.plan.plan_LNM.reshape(*lead, batch, batch)


def _solved(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    points: Mapping[str, Any],
    eps: tuple[str, float | Tensor],
    what: Objective,
) -> Transported:
    """Return the solved problem of every lane, on one leading axis."""
    if what.coupling in {"gromov", "fused_gromov"}:
        shift, detach = points["shift"], points["detach_shift"]
        S, T = (_stack(shifted(similarities(x), shift, detach=detach)) for x in (student_LBD, teacher_LBD))
    if what.coupling == "gromov":
        return gromov_transport(T, S)
    X_LBA, Y_LBA = structural_points(student_LBD, teacher_LBD, **points)
    # One leading axis, for the solver refuses a lone problem that is not finite.
    lead, X_LBA, Y_LBA = X_LBA.shape[:-2], _stack(X_LBA), _stack(Y_LBA)
    if what.coupling == "fused_gromov":
        count_L = anchor_counts(T, points["kind"], points["k"]).broadcast_to(lead).reshape(-1, 1, 1)
        share_L = _bounded("structure", what.structure, X_LBA, lead, most=1.0)
        cost_LBB = half_squared_distances(X_LBA, Y_LBA) / count_L
        return gromov_transport(T, S, cost_LNM=cost_LBB, structure=share_L)
    if what.coupling == "exact":
        return exact_transport(X_LBA, Y_LBA)
    eps_L = _bounded(*eps, X_LBA, lead)
    return _regularised(X_LBA, Y_LBA, eps_L, eps[0] == "eps_rel", lead, what)


def _regularised(
    X_LBA: Tensor, Y_LBA: Tensor, eps_L: Tensor, relative: bool, lead: torch.Size, what: Objective
) -> Transported:
    bounds: dict[str, Any] = {
        "debias": what.debias,
        "tolerance": what.tolerance,
        "iterations": what.iterations,
    }
    if what.coupling == "entropic":
        return transport_clouds(X_LBA, Y_LBA, eps=eps_L, relative=relative, value=what.value, **bounds)
    x_LBA = X_LBA.detach()
    median_L = median_cost(half_squared_distances(x_LBA, x_LBA))
    penalty_L = median_L * _bounded("penalty_rel", what.penalty_rel, X_LBA, lead)
    eps_L = eps_L * median_L if relative else eps_L
    return unbalanced_transport(X_LBA, Y_LBA, eps=eps_L, penalty=penalty_L, **bounds)


def _stack(x_LBA: Tensor) -> Tensor:
    return x_LBA.reshape(-1, *x_LBA.shape[-2:])


def _answer(found: Transported, lead: torch.Size) -> tuple[Tensor, dict[str, Tensor]]:
    plan_LBB = found.plan.plan_LNM
    details = {
        "plan_entropy": 2 * math.log(plan_LBB.shape[-1]) - found.plan.kl_L,
        "diagonal_mass": plan_LBB.diagonal(dim1=-2, dim2=-1).sum(dim=-1),
        "converged": found.converged_L,
        "iterations": torch.full_like(found.converged_L, found.iterations),
    }
    return found.value_L.reshape(lead), {name: detail_L.reshape(lead) for name, detail_L in details.items()}


def _identity(X_LBA: Tensor, Y_LBA: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    value_L = 0.5 * (X_LBA - Y_LBA).square().sum(dim=-1).mean(dim=-1)
    one_L = torch.ones_like(value_L.detach())
    return value_L, {
        "plan_entropy": math.log(X_LBA.shape[-2]) * one_L,
        "diagonal_mass": one_L,
        "converged": one_L,
        "iterations": 0 * one_L,
    }


def _bounded(
    name: str, given: float | Tensor, like: Tensor, lead: torch.Size, most: float = math.inf
) -> Tensor:
    """Return a setting of each lane that is above 0, or in [0, most] if that is finite."""
    given_L = per_lane(given, like, trailing=0)
    fine_L = given_L > 0 if math.isinf(most) else (given_L >= 0) & (given_L <= most)
    if not bool(fine_L.all()):
        rule = "> 0" if math.isinf(most) else f"in [0, {most:g}]"
        raise NumericsError(f"`{name}` must be {rule}, but is {float(given_L[~fine_L].flatten()[0]):g}")
    return given_L.broadcast_to(lead).reshape(-1)


@loss(
    "pkdot",
    source="Aslam et al. 2024 (PKDOT, MT-PKDOT); MT-PKDOT mtpkdot.py, geomloss SamplesLoss",
    needs=("features",),
    eps=(1e-3, 1.0),
    k=(2, 256),
)
def pkdot(
    student_LBD: Tensor, teacher_LBD: Tensor, *, eps: float | Tensor = 0.01, k: int | Tensor = 30
) -> Tensor:
    """Return the structural loss of PKDOT and MT-PKDOT with the settings of the released code.

    The exact debiased divergence; the released code's own annealed solver is within 1 percent of it.
    """
    return structural_transport(student_LBD, teacher_LBD, eps=eps, k=k)[0]


@loss(
    "centroid",
    source="Aslam et al. 2024 (MT-PKDOT), equation 4; MT-PKDOT mtpkdot.py",
    needs=("features",),
)
def centroid(student_LBD: Tensor, teacher_LBD: Tensor, *, scaled: bool = False) -> Tensor:
    """Return ||c(teacher) - c(student)||_2, c = mean row of the similarity matrix (MT-PKDOT, equation 4).

    Args:
        student_LBD: features.
        teacher_LBD: features of the same samples, of any width.
        scaled: whether to divide by sqrt(B), so that the value does not grow with the batch (ours).
    """
    distance_L: Tensor = torch.linalg.vector_norm(
        _mean_similarity(teacher_LBD) - _mean_similarity(student_LBD), dim=-1
    )
    return distance_L / math.sqrt(student_LBD.shape[-2]) if scaled else distance_L


def _mean_similarity(features_LBD: Tensor) -> Tensor:
    unit_LBD = unit_rows(features_LBD)
    mean_LD1 = unit_LBD.mean(dim=-2)[..., None]
    return (unit_LBD @ mean_LD1).squeeze(-1)


@loss(
    "mt_pkdot",
    source="Aslam et al. 2024 (MT-PKDOT), equation 5; MT-PKDOT mtpkdot.py",
    needs=("features",),
    transport_weight=(0.0, 10.0),
    centroid_weight=(0.0, 10.0),
    eps=(1e-3, 1.0),
    k=(2, 256),
)
def mt_pkdot(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    *,
    transport_weight: float | Tensor = 0.2,
    centroid_weight: float | Tensor = 0.2,
    eps: float | Tensor = 0.01,
    k: int | Tensor = 30,
) -> Tensor:
    """Return transport_weight * :func:`pkdot` + centroid_weight * :func:`centroid`.

    The distilling part of MT-PKDOT's objective for one teacher (equation 5). Least, 0, at the teacher.

    Args:
        student_LBD: features.
        teacher_LBD: features of the same samples, of any width.
        transport_weight: beta, one or one per lane.
        centroid_weight: gamma, one or one per lane; 0 in the released code.
        eps: regularisation, one or one per lane.
        k: number of anchors, one or one per lane.
    """
    transport_L, centroid_L = (
        pkdot(student_LBD, teacher_LBD, eps=eps, k=k),
        centroid(student_LBD, teacher_LBD),
    )
    transport_weight_L = per_lane(transport_weight, transport_L, trailing=0)
    return transport_weight_L * transport_L + per_lane(centroid_weight, centroid_L, trailing=0) * centroid_L
