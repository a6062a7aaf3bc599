"""Losses between the similarity structures of two batches (PKDOT and MT-PKDOT).

Axes: L leading axes (lanes; any number), B batch, D width, A anchors.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdistill.errors import NumericsError
from mmdistill.losses.base import NO_DIRECTION_BELOW, loss, per_lane, unit_rows
from mmdistill.transport.clouds import Transported, half_squared_distances, median_cost, transport_clouds
from mmdistill.transport.couplings import exact_transport, gromov_transport, unbalanced_transport
from mmdistill.transport.sinkhorn import Value

AnchorKind = Literal["least", "most", "all", "global"]
Shift = Literal["min", "none"]
Coupling = Literal["entropic", "identity", "exact", "unbalanced", "gromov", "fused_gromov"]


class Anchors(NamedTuple):
    """Columns of the similarity matrix to compare.

    Attributes:
        indices_LBA: ascending by the teacher's similarity; A is the largest k of any lane.
        kept_LA: True for the k columns of the lane; None if all lanes keep all.
    """

    indices_LBA: Tensor
    kept_LA: Tensor | None


def similarities(features_LBD: Tensor) -> Tensor:
    """Return the cosine similarities S_LBB of the rows, in [-1, 1]; 0 with a row of zeros."""
    unit_LBD = unit_rows(features_LBD)
    return unit_LBD @ unit_LBD.mT


def anchor_indices(teacher_S_LBB: Tensor, kind: AnchorKind, k: int | Tensor) -> Anchors:
    """Return which similarities of each row are compared, chosen by the teacher.

    Args:
        teacher_S_LBB: the teacher's similarities.
        kind: ``least``: the k least similar of each row (as the released code); ``most``: the k most similar
            other than itself; ``global``: the k columns of least mean similarity, the same for every row;
            ``all``: every column, in each row's own order.
        k: how many, >= 1, one or one per lane; capped at what there is: B, and B - 1 for ``most``.

    Raises:
        NumericsError: if ``k`` is below 1.
    """
    batch = teacher_S_LBB.shape[-1]
    k_L = anchor_counts(teacher_S_LBB, kind, k)
    widest = int(k_L.max())
    if kind == "global":
        columns_LA = _first(teacher_S_LBB.detach().mean(dim=-2), widest)
        indices_LBA = columns_LA[..., None, :].expand(*teacher_S_LBB.shape[:-1], widest)
    elif kind == "most":
        itself_BB = torch.eye(batch, dtype=torch.bool, device=teacher_S_LBB.device)
        indices_LBA = _first(-teacher_S_LBB.detach().masked_fill(itself_BB, -math.inf), widest)
    else:
        indices_LBA = _first(teacher_S_LBB.detach(), widest)
    if bool((k_L == widest).all()):
        kept_LA = None
    else:
        kept_LA = torch.arange(widest, device=k_L.device) < k_L[..., None]
    if kind == "most":
        indices_LBA = indices_LBA.flip(-1)
        kept_LA = None if kept_LA is None else kept_LA.flip(-1)
    return Anchors(indices_LBA, kept_LA)


def anchor_counts(S_LBB: Tensor, kind: AnchorKind, k: int | Tensor) -> Tensor:
    """Return how many anchors there are for each k; see :func:`anchor_indices`."""
    batch = S_LBB.shape[-1]
    k_L = torch.as_tensor(k, device=S_LBB.device)
    if bool((k_L < 1).any()):
        raise NumericsError(f"`k` must be >= 1, but is {int(k_L.min())}")
    available = batch - 1 if kind == "most" else batch
    return torch.full_like(k_L, available) if kind == "all" else k_L.clamp(max=available)


def _first(values: Tensor, count: int) -> Tensor:
    """Return the positions of the least values, ascending.

    Of equal ones the first: equal similarities are common between rectified features, and which of them
    `topk` takes depends on how many are asked for, so that a lane would depend on its neighbours.
    """
    if values.device.type == "cpu" and values.dtype == torch.float32:
        return _order(values)[..., :count]
    return values.sort(dim=-1, stable=True).indices[..., :count]


def _order(values: Tensor) -> Tensor:
    """Return the order of each row, ascending; ten times faster on a CPU than a stable sort."""
    # Adding 0 makes one zero of the two; then the bits of a float, with those below the sign of a negative
    # one flipped, are ordered as the floats are, and the position under them makes all keys different.
    bits = (values + 0.0).numpy().view(np.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.astype(np.int64)
    keys <<= 32
    keys |= np.arange(keys.shape[-1])
    keys.sort(axis=-1)
    keys &= 0xFFFFFFFF
    return torch.from_numpy(keys)


def structural_points(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    kind: AnchorKind,
    k: int | Tensor,
    *,
    shift: Shift = "min",
    detach_shift: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the teacher's points X_LBA and the student's points Y_LBA (MT-PKDOT, equation 3).

    A point is a row of similarities to its anchors; columns beyond a lane's own k are 0 in both.

    Args:
        student_LBD: features.
        teacher_LBD: features of the same samples, of any width; their similarities choose the anchors.
        kind: as in :func:`anchor_indices`.
        k: as in :func:`anchor_indices`.
        shift: ``min`` subtracts each matrix's least entry, so that points are non-negative.
        detach_shift: whether that entry is a constant as far as the gradient is concerned.
    """
    clouds = teacher_LBD, student_LBD
    with torch.no_grad():
        structures = [_structure(features_LBD) for features_LBD in clouds]
        anchors = anchor_indices(structures[0].S_LBB, kind, k)
    X_LBA, Y_LBA = (
        _Points.apply(features_LBD, structure, anchors, shift, detach_shift)  # type: ignore[no-untyped-call]
        for features_LBD, structure in zip(clouds, structures, strict=True)
    )
    return X_LBA, Y_LBA


class _Structure(NamedTuple):
    """Rows as :func:`unit_rows` gives them, 1 / their length (0 without a direction), and similarities."""

    unit_LBD: Tensor
    rate_LB1: Tensor
    S_LBB: Tensor


class _Points(torch.autograd.Function):
    """From features to the points of :func:`structural_points`, with the gradient written out.

    What autograd would record of it are some twenty small steps, which cost more than the transport itself.
    Points are compared with points of the same columns only, so that where a column is beyond a lane's own
    k the gradient that comes back is 0 already.
    """

    @staticmethod
    def forward(
        ctx: Any, _: Tensor, structure: "_Structure", anchors: Anchors, shift: Shift, detach_shift: bool
    ) -> Tensor:
        unit_LBD, rate_LB1, S_LBB = structure
        points_LBA, place_L1 = S_LBB.gather(-1, anchors.indices_LBA), None
        if shift == "min":
            place_L1 = _least(S_LBB)
            points_LBA -= S_LBB.flatten(-2).gather(-1, place_L1)[..., None]
        if anchors.kept_LA is not None:
            points_LBA *= anchors.kept_LA[..., None, :]
        ctx.save_for_backward(unit_LBD, rate_LB1, anchors.indices_LBA, None if detach_shift else place_L1)
        return points_LBA

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_LBA: Tensor) -> tuple[Tensor, None, None, None, None]:
        unit_LBD, rate_LB1, indices_LBA, place_L1 = ctx.saved_tensors
        S_LBB = gradient_LBA.new_zeros((*unit_LBD.shape[:-1], unit_LBD.shape[-2]))
        S_LBB.scatter_(-1, indices_LBA, gradient_LBA)
        if place_L1 is not None:
            S_LBB.flatten(-2).scatter_add_(-1, place_L1, -gradient_LBA.sum(dim=(-2, -1))[..., None])
        slope_LBD = (S_LBB + S_LBB.mT) @ unit_LBD
        along_LB1 = (slope_LBD * unit_LBD).sum(dim=-1, keepdim=True)
        return slope_LBD.addcmul_(unit_LBD, along_LB1, value=-1).mul_(rate_LB1), None, None, None, None


def _structure(features_LBD: Tensor) -> _Structure:
    largest_LB1 = features_LBD.abs().amax(dim=-1, keepdim=True)
    factor_LB1 = torch.where(largest_LB1 < NO_DIRECTION_BELOW, 0.0, largest_LB1.reciprocal())
    unit_LBD = features_LBD * factor_LB1
    # At least 1 for every row with a direction.
    rate_LB1 = torch.linalg.vector_norm(unit_LBD, dim=-1, keepdim=True).clamp_min_(0.5).reciprocal_()
    unit_LBD *= rate_LB1
    return _Structure(unit_LBD, rate_LB1.mul_(factor_LB1), unit_LBD @ unit_LBD.mT)


def _least(S_LBB: Tensor) -> Tensor:
    """Return the position [L, 1] of the least entry in the flat matrix; by rows, which is faster."""
    row_L1 = S_LBB.amin(dim=-1).argmin(dim=-1, keepdim=True)
    line_LB = S_LBB.take_along_dim(row_L1[..., None], dim=-2).squeeze(-2)
    return row_L1 * S_LBB.shape[-1] + line_LB.argmin(dim=-1, keepdim=True)


def _shifted(S_LBB: Tensor, shift: Shift, *, detach: bool) -> Tensor:
    if shift == "none":
        return S_LBB
    least_L11 = S_LBB.amin(dim=(-2, -1), keepdim=True)
    return S_LBB - (least_L11.detach() if detach else least_L11)


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

    With C = 1/2 ||x - y||^2 between the points of :func:`structural_points` and OT_eps = min <P, C> +
    eps KL(P || a x b): OT_eps(X, Y) - 1/2 OT_eps(X, X) - 1/2 OT_eps(Y, Y) (MT-PKDOT, released code;
    Feydy et al., 2019), or another ``objective``. The gradient is that of the optimal value. A lane with
    features that are not finite gives NaN and does not disturb the others.

    Args:
        student_LBD: features.
        teacher_LBD: features of the same samples, of any width.
        eps_rel: regularisation in units of the median cost between two different points of X; one, or one
            per lane; infinity compares nothing but the means of the points.
        eps: regularisation itself, instead of ``eps_rel``; the released code has 0.01.
        k: number of anchors, one or one per lane.
        anchors: which, see :func:`anchor_indices`.
        shift: see :func:`structural_points`.
        detach_shift: see :func:`structural_points`.
        objective: attributes of :class:`Objective`.

    Returns:
        The value of each lane and, per lane: ``plan_entropy`` in nats, from log B (a permutation) to
        2 log B (no information); ``diagonal_mass`` in [0, 1]; ``converged``, the share of the lane's problems
        that reached the tolerance; ``iterations`` of the slowest of all lanes, 0 where there are none.

    Raises:
        NumericsError: if ``eps``, ``eps_rel``, ``k``, ``penalty_rel`` or ``structure`` is out of range.
    """
    what = Objective(**objective)
    if what.coupling in {"gromov", "fused_gromov"}:
        S, T = (_shifted(similarities(x), shift, detach=detach_shift) for x in (student_LBD, teacher_LBD))
    if what.coupling == "gromov":
        return _answer(gromov_transport(_stack(T), _stack(S)), S.shape[:-2])
    X_LBA, Y_LBA = structural_points(
        student_LBD, teacher_LBD, anchors, k, shift=shift, detach_shift=detach_shift
    )
    if what.coupling == "identity":
        return _identity(X_LBA, Y_LBA)
    # One leading axis, for the solver refuses a lone problem that is not finite.
    lead, X_LBA, Y_LBA = X_LBA.shape[:-2], _stack(X_LBA), _stack(Y_LBA)
    if what.coupling == "fused_gromov":
        S, T = _stack(S), _stack(T)
        count_L = anchor_counts(T, anchors, k).broadcast_to(lead).reshape(-1, 1, 1)
        share_L = _bounded("structure", what.structure, X_LBA, lead, most=1.0)
        found = gromov_transport(
            T, S, cost_LNM=half_squared_distances(X_LBA, Y_LBA) / count_L, structure=share_L
        )
    elif what.coupling == "exact":
        found = exact_transport(X_LBA, Y_LBA)
    else:
        eps_L = _bounded(*(("eps_rel", eps_rel) if eps is None else ("eps", eps)), X_LBA, lead)
        found = _regularised(X_LBA, Y_LBA, eps_L, eps is None, lead, what)
    return _answer(found, lead)


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
