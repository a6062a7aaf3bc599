"""Losses that tell the pairs of a batch from its other combinations.

Axes: L leading axes (lanes; any number), B batch, D width.
"""

import math

import torch
from torch import Tensor

from mmdistill.losses.base import known_labels, loss, per_lane, unit_rows, weighted_mean

# Added to probabilities, as in the reference code.
CCL_EPS = 1e-10


@loss(
    "infonce",
    source="van den Oord, Li and Vinyals 2018 (formula)",
    needs=("features",),
    temperature=(0.02, 1.0),
)
def infonce(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    labels_LB: Tensor | None = None,
) -> Tensor:
    """Return the symmetric in-batch InfoNCE loss between projections; the rows are normalised in here.

    1/2 [CE(sim / tau, diagonal) + CE(sim^T / tau, diagonal)] with cosine similarities (van den Oord et al.,
    2018). log B minus this value is a lower bound of the mutual information, capped at log B; with labels it
    is not. A batch of one gives 0.

    Args:
        student_LBD: projected features.
        teacher_LBD: projected features of the same width and samples.
        temperature: tau > 0, one or one per lane.
        labels_LB: classes whose other members are no negatives; every other sample is one by default.
    """
    cosine_LBB = unit_rows(student_LBD) @ unit_rows(teacher_LBD).mT
    logits_LBB = cosine_LBB / per_lane(temperature, cosine_LBB, trailing=2)
    pair_LB = logits_LBB.diagonal(dim1=-2, dim2=-1)
    if labels_LB is not None:
        logits_LBB = logits_LBB.masked_fill(same_class(labels_LB), -math.inf)
    either_LB = 0.5 * (logits_LBB.logsumexp(dim=-1) + logits_LBB.logsumexp(dim=-2))
    return (either_LB - pair_LB).mean(dim=-1)


def same_class(labels_LB: Tensor) -> Tensor:
    """Return which pairs of different samples share a class."""
    same_LBB = labels_LB[..., :, None] == labels_LB[..., None, :]
    return same_LBB & ~torch.eye(labels_LB.shape[-1], dtype=torch.bool, device=labels_LB.device)


@loss(
    "ccl_nce",
    source="Chen et al. 2021 (CCL); CCL loss/nce_loss.py",
    needs=("features", "labels"),
    tasks="classification",
    temperature=(0.02, 1.0),
)
def ccl_nce(
    student_LBD: Tensor,
    teacher_LBD: Tensor,
    labels_LB: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return mean over same-label of -log(p + eps) + mean over other-label of -log(1 - p + eps), over rows.

    p_ij = softmax over j of cos(student_i, teacher_j) / tau, eps = 1e-10; a sample's own teacher counts as
    same-label. Multi-class NCE of CCL (Chen et al., 2021; `nce_loss.py`; tau 0.5 for audio, 0.1 for images).
    A batch of one class has no other labels: that part is 0.

    Args:
        student_LBD: features.
        teacher_LBD: features of the same width and samples.
        labels_LB: class indices; any value on rows without weight.
        temperature: tau > 0, one or one per lane.
        row_weights_LB: weights of the rows, or a mask; rows of weight 0 are left out on both sides.
    """
    cosine_LBB = unit_rows(student_LBD) @ unit_rows(teacher_LBD).mT
    logits_LBB = cosine_LBB / per_lane(temperature, cosine_LBB, trailing=2)
    labels_LB = known_labels(labels_LB, row_weights_LB)
    same_LBB = labels_LB[..., :, None] == labels_LB[..., None, :]
    other_LBB = ~same_LBB
    if row_weights_LB is not None:
        kept_L1B = (row_weights_LB > 0)[..., None, :]
        # A finite bound: where no column is left a softmax of nothing but -inf would not be a number.
        logits_LBB = torch.where(kept_L1B, logits_LBB, torch.finfo(logits_LBB.dtype).min)
        same_LBB, other_LBB = same_LBB & kept_L1B, other_LBB & kept_L1B
    p_LBB = logits_LBB.softmax(dim=-1)
    rows_LB = weighted_mean(-(p_LBB + CCL_EPS).log(), same_LBB)
    rows_LB = rows_LB + weighted_mean(-(1 - p_LBB + CCL_EPS).log(), other_LBB)
    return weighted_mean(rows_LB, row_weights_LB)
