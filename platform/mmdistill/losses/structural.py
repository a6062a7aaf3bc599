"""Losses between the similarity structures of two batches (PKDOT and MT-PKDOT).

Axes: L leading axes (lanes; any number), B batch, D width, A anchors.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmdistill.errors import NumericsError
from mmdistill.losses.base import loss, per_lane, unit_rows
from mmdistill.transport.clouds import transport_clouds

AnchorKind = Literal["least", "most", "all", "global"]
Shift = Literal["min", "none"]
Coupling = Literal["entropic", "identity"]


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
    k_L = torch.as_tensor(k, device=teacher_S_LBB.device)
    if bool((k_L < 1).any()):
        raise NumericsError(f"`k` must be >= 1, but is {int(k_L.min())}")
    available = batch - 1 if kind == "most" else batch
    k_L = torch.full_like(k_L, available) if kind == "all" else k_L.clamp(max=available)
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
    student_S_LBB: Tensor,
    teacher_S_LBB: Tensor,
    kind: AnchorKind,
    k: int | Tensor,
    *,
    shift: Shift = "min",
    detach_shift: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the teacher's points X_LBA and the student's points Y_LBA (MT-PKDOT, equation 3).

    A point is a row of similarities to its anchors; columns beyond a lane's own k are 0 in both.

    Args:
        student_S_LBB: the student's similarities.
        teacher_S_LBB: the teacher's similarities, which choose the anchors.
        kind: as in :func:`anchor_indices`.
        k: as in :func:`anchor_indices`.
        shift: ``min`` subtracts each matrix's least entry, so that points are non-negative.
        detach_shift: whether that entry is a constant as far as the gradient is concerned.
    """
    anchors = anchor_indices(teacher_S_LBB, kind, k)
    points = []
    for S_LBB in (teacher_S_LBB, student_S_LBB):
        shifted_LBB = S_LBB if shift == "none" else S_LBB - _least(S_LBB, detach=detach_shift)
        points_LBA = shifted_LBB.gather(-1, anchors.indices_LBA)
        points.append(points_LBA if anchors.kept_LA is None else points_LBA * anchors.kept_LA[..., None, :])
    return points[0], points[1]


def _least(S_LBB: Tensor, *, detach: bool) -> Tensor:
    least_L11 = S_LBB.amin(dim=(-2, -1), keepdim=True)
    return least_L11.detach() if detach else least_L11


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
    debias: bool = True,
    coupling: Coupling = "entropic",
    tolerance: float = 1e-4,
    iterations: int = 1000,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the transport between the two similarity structures, and how it was solved.

    With C = 1/2 ||x - y||^2 between the points of :func:`structural_points` and OT_eps = min <P, C> +
    eps KL(P || a x b): OT_eps(X, Y) - 1/2 OT_eps(X, X) - 1/2 OT_eps(Y, Y) (MT-PKDOT, released code;
    Feydy et al., 2019). The gradient is that of the optimal value. A lane with features that are not finite
    gives NaN and does not disturb the others.

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
        debias: whether to subtract the two self-transports, so that the least value is 0, at X = Y.
        coupling: ``identity`` pairs each sample with itself instead: mean of 1/2 ||x_i - y_i||^2.
        tolerance: marginal error at which a problem is solved.
        iterations: most iterations of the solver.

    Returns:
        The value of each lane and, per lane: ``plan_entropy`` in nats, from log B (a permutation) to
        2 log B (no information); ``diagonal_mass`` in [0, 1]; ``converged``, the share of the lane's problems
        that reached the tolerance; ``iterations`` of the slowest of all lanes.

    Raises:
        NumericsError: if ``eps``, ``eps_rel`` or ``k`` is out of range.
    """
    X_LBA, Y_LBA = structural_points(
        similarities(student_LBD),
        similarities(teacher_LBD),
        anchors,
        k,
        shift=shift,
        detach_shift=detach_shift,
    )
    if coupling == "identity":
        return _identity(X_LBA, Y_LBA)
    # One leading axis at least, for the solver refuses a lone problem that is not finite.
    lead, (points, width) = X_LBA.shape[:-2], X_LBA.shape[-2:]
    X_LBA, Y_LBA = (x.reshape(-1, points, width) for x in (X_LBA, Y_LBA))
    found = transport_clouds(
        X_LBA,
        Y_LBA,
        eps=_regularisation(X_LBA, eps, eps_rel, lead),
        relative=eps is None,
        debias=debias,
        tolerance=tolerance,
        iterations=iterations,
    )
    plan_LBB = found.plan.plan_LNM
    details = {
        "plan_entropy": 2 * math.log(points) - found.plan.kl_L,
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


def _regularisation(
    like: Tensor, eps: float | Tensor | None, eps_rel: float | Tensor, lead: torch.Size
) -> Tensor:
    """Return the regularisation of each lane, absolute or relative."""
    name, given = ("eps_rel", eps_rel) if eps is None else ("eps", eps)
    given_L = per_lane(given, like, trailing=0)
    if not bool((given_L > 0).all()):
        raise NumericsError(f"`{name}` must be > 0, but is {float(given_L[~(given_L > 0)].flatten()[0]):g}")
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
