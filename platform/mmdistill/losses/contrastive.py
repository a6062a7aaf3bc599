"""Losses that tell the pairs of a batch from its other combinations.

Axes: L leading axes (lanes; any number), B batch, D width.
"""

from torch import Tensor

from mmdistill.losses.base import LOSSES, per_lane, unit_rows


@LOSSES.register("infonce")
def infonce(student_LBD: Tensor, teacher_LBD: Tensor, *, temperature: float | Tensor = 0.1) -> Tensor:
    """Return the symmetric in-batch InfoNCE loss between projections; the rows are normalised in here.

    1/2 [CE(sim / tau, diagonal) + CE(sim^T / tau, diagonal)] with cosine similarities (van den Oord et al.,
    2018). log B minus this value is a lower bound of the mutual information, capped at log B.

    Args:
        student_LBD: projected features.
        teacher_LBD: projected features of the same width and samples.
        temperature: tau > 0, one or one per lane.
    """
    cosine_LBB = unit_rows(student_LBD) @ unit_rows(teacher_LBD).mT
    logits_LBB = cosine_LBB / per_lane(temperature, cosine_LBB, trailing=2)
    pair_LB = logits_LBB.diagonal(dim1=-2, dim2=-1)
    either_LB = 0.5 * (logits_LBB.logsumexp(dim=-1) + logits_LBB.logsumexp(dim=-2))
    return (either_LB - pair_LB).mean(dim=-1)
