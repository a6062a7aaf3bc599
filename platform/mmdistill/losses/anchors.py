"""Samples as points: their similarities to a few anchors (PKDOT and MT-PKDOT).

Axes: L leading axes (lanes; any number), B batch, D width, A anchors.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdistill.errors import NumericsError
from mmdistill.losses.base import NO_DIRECTION_BELOW, unit_rows

AnchorKind = Literal["least", "most", "all", "global"]
Shift = Literal["min", "none"]


class Anchors(NamedTuple):
    """Columns of the similarity matrix to compare.

    Attributes:
        indices_LBA: ascending by the teacher's similarity; A is the largest k of any lane. Those of one lane
            where all have the same teacher.
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
    keys = np.empty(bits.shape, "<i8")
    halves = keys.view("<i4").reshape(*bits.shape, 2)
    halves[..., 0], halves[..., 1] = np.arange(bits.shape[-1]), bits
    keys.sort(axis=-1)
    return torch.from_numpy(halves[..., 0].astype(np.int64))


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
    if _is_one(teacher_LBD):
        # Lanes of one pair learn from one teacher on the same rows: its structure is found once.
        teacher_LBD = teacher_LBD[:1]
    clouds = teacher_LBD, student_LBD
    with torch.no_grad():
        structures = _structures(*clouds, shift)
        anchors = anchor_indices(structures[0].S_LBB, kind, k)
    X_LBA, Y_LBA = (
        _Points.apply(features_LBD, structure, anchors, detach_shift)  # type: ignore[no-untyped-call]
        for features_LBD, structure in zip(clouds, structures, strict=True)
    )
    return X_LBA.expand_as(Y_LBA), Y_LBA


def _is_one(teacher_LBD: Tensor) -> bool:
    """Return whether all lanes have the same teacher, from whom nothing is wanted but what it says."""
    alike = teacher_LBD.dim() == 3 and len(teacher_LBD) > 1 and not teacher_LBD.requires_grad
    return alike and bool((teacher_LBD[1:] == teacher_LBD[:1]).all())


class _Structure(NamedTuple):
    """Rows as :func:`unit_rows` gives them, 1 / their length (0 without a direction), and similarities.

    ``place_L1`` is where the least of them is in the flat matrix; None if nothing is shifted.
    """

    unit_LBD: Tensor
    rate_LB1: Tensor
    S_LBB: Tensor
    place_L1: Tensor | None


class _Points(torch.autograd.Function):
    """From features to the points of :func:`structural_points`, with the gradient written out.

    What autograd would record of it are some twenty small steps, which cost more than the transport itself.
    Points are compared with points of the same columns only, so that where a column is beyond a lane's own
    k the gradient that comes back is 0 already.
    """

    @staticmethod
    def forward(ctx: Any, _: Tensor, structure: "_Structure", anchors: Anchors, detach_shift: bool) -> Tensor:
        unit_LBD, rate_LB1, S_LBB, place_L1 = structure
        indices_LBA = anchors.indices_LBA.expand(*S_LBB.shape[:-1], -1)
        points_LBA: Tensor = S_LBB.gather(-1, indices_LBA)
        if place_L1 is not None:
            points_LBA -= S_LBB.flatten(-2).gather(-1, place_L1)[..., None]
        if anchors.kept_LA is not None:
            points_LBA = points_LBA * anchors.kept_LA[..., None, :]
        ctx.save_for_backward(unit_LBD, rate_LB1, indices_LBA, None if detach_shift else place_L1)
        return points_LBA

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_LBA: Tensor) -> tuple[Tensor, None, None, None]:
        unit_LBD, rate_LB1, indices_LBA, place_L1 = ctx.saved_tensors
        S_LBB = gradient_LBA.new_zeros((*unit_LBD.shape[:-1], unit_LBD.shape[-2]))
        S_LBB.scatter_(-1, indices_LBA, gradient_LBA)
        if place_L1 is not None:
            S_LBB.flatten(-2).scatter_add_(-1, place_L1, -gradient_LBA.sum(dim=(-2, -1))[..., None])
        slope_LBD = (S_LBB + S_LBB.mT) @ unit_LBD
        along_LB1 = (slope_LBD * unit_LBD).sum(dim=-1, keepdim=True)
        return slope_LBD.addcmul_(unit_LBD, along_LB1, value=-1).mul_(rate_LB1), None, None, None


def _structures(teacher_LBD: Tensor, student_LBD: Tensor, shift: Shift) -> list[_Structure]:
    """Return the structures of both; as one stack, which is faster, where they are alike in shape."""
    if teacher_LBD.shape != student_LBD.shape:
        return [_structure(features_LBD, shift) for features_LBD in (teacher_LBD, student_LBD)]
    both = _structure(torch.stack([teacher_LBD, student_LBD]), shift)
    places = (None, None) if both.place_L1 is None else both.place_L1
    return [_Structure(both.unit_LBD[n], both.rate_LB1[n], both.S_LBB[n], places[n]) for n in (0, 1)]


def _structure(features_LBD: Tensor, shift: Shift) -> _Structure:
    largest_LB1 = features_LBD.abs().amax(dim=-1, keepdim=True)
    factor_LB1 = torch.where(largest_LB1 < NO_DIRECTION_BELOW, 0.0, largest_LB1.reciprocal())
    unit_LBD = features_LBD * factor_LB1
    # At least 1 for every row with a direction.
    rate_LB1 = torch.linalg.vector_norm(unit_LBD, dim=-1, keepdim=True).clamp_min_(0.5).reciprocal_()
    unit_LBD *= rate_LB1
    S_LBB = unit_LBD @ unit_LBD.mT
    return _Structure(unit_LBD, rate_LB1.mul_(factor_LB1), S_LBB, _least(S_LBB) if shift == "min" else None)


def _least(S_LBB: Tensor) -> Tensor:
    """Return the position [L, 1] of the least entry in the flat matrix; by rows, which is faster."""
    row_L1 = S_LBB.amin(dim=-1).argmin(dim=-1, keepdim=True)
    line_LB = S_LBB.take_along_dim(row_L1[..., None], dim=-2).squeeze(-2)
    return row_L1 * S_LBB.shape[-1] + line_LB.argmin(dim=-1, keepdim=True)


def shifted(S_LBB: Tensor, shift: Shift, *, detach: bool) -> Tensor:
    """Return the similarities, less their least one if ``shift`` is ``min``."""
    if shift == "none":
        return S_LBB
    least_L11 = S_LBB.amin(dim=(-2, -1), keepdim=True)
    return S_LBB - (least_L11.detach() if detach else least_L11)
