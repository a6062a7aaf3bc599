"""Losses against labels, over the labelled rows of a batch.

Axes: L leading axes (lanes; any number), B batch, C classes, T targets.
"""

import torch
from torch import Tensor

from mmdistill.losses.base import loss, per_lane, weighted_mean
from mmdistill.softmax import log_softmax


@loss(
    "cross_entropy",
    source="the task",
    needs=("logits", "labels"),
    tasks="classification",
    label_smoothing=(0.0, 0.5),
)
def cross_entropy(
    logits_LBC: Tensor,
    labels_LB: Tensor,
    mask_LB: Tensor | None = None,
    *,
    label_smoothing: float | Tensor = 0.0,
) -> Tensor:
    """Return the mean cross entropy of the labelled rows, in nats; 0 without gradient if there are none.

    Args:
        logits_LBC: logits.
        labels_LB: class indices; any value on rows without a label.
        mask_LB: True on the labelled rows; all of them by default.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1], one or one per lane.
    """
    log_p_LBC = log_softmax(logits_LBC)
    labels_LB = labels_LB.long()
    labels_LB = labels_LB if mask_LB is None else torch.where(mask_LB > 0, labels_LB, 0)
    hit_LB = -log_p_LBC.gather(-1, labels_LB[..., None])[..., 0]
    smoothing_L1 = per_lane(label_smoothing, hit_LB, trailing=1)
    loss_LB = (1 - smoothing_L1) * hit_LB - smoothing_L1 * log_p_LBC.mean(dim=-1)
    return weighted_mean(loss_LB, mask_LB)


@loss("ccc", source="Lin 1989; MMPKD CCC_loss.py", needs=("logits", "labels"), tasks="regression")
def ccc_loss(
    predictions_LBT: Tensor, targets_LBT: Tensor, mask_LB: Tensor | None = None, *, unbiased: bool = False
) -> Tensor:
    """Return 1 - concordance correlation over the labelled rows, averaged over targets, in [0, 2].

    1 - 2 cov / (var_p + var_t + (mean_p - mean_t)^2) (Lin, 1989) with variances and covariance of the
    batch in the population form (divided by n). A constant prediction or target gives 1; a batch without a
    labelled row gives 0 without gradient.

    Args:
        predictions_LBT: predictions.
        targets_LBT: targets in the same units; any finite value on rows without a label.
        mask_LB: True on the labelled rows; all of them by default.
        unbiased: whether variances and covariance are divided by n - 1, as the code of M2PKD does.
    """
    mask_LB = (
        torch.ones_like(predictions_LBT[..., 0]) if mask_LB is None else mask_LB.to(predictions_LBT.dtype)
    )
    count_L1 = mask_LB.sum(dim=-1, keepdim=True)
    share_LB1 = (mask_LB / count_L1.clamp_min(1.0))[..., None]
    mean_p_L1T = (share_LB1 * predictions_LBT).sum(dim=-2, keepdim=True)
    mean_t_L1T = (share_LB1 * targets_LBT).sum(dim=-2, keepdim=True)
    if unbiased:
        share_LB1 = (mask_LB / (count_L1 - 1).clamp_min(1.0))[..., None]
    p_LBT, t_LBT = predictions_LBT - mean_p_L1T, targets_LBT - mean_t_L1T
    covariance_LT = (share_LB1 * p_LBT * t_LBT).sum(dim=-2)
    spread_LT = (share_LB1 * (p_LBT.square() + t_LBT.square())).sum(dim=-2)
    spread_LT = spread_LT + (mean_p_L1T - mean_t_L1T).square()[..., 0, :]
    ccc_LT = 2 * covariance_LT / torch.where(spread_LT > 0, spread_LT, 1.0)
    return torch.where(count_L1[..., 0] > 0, 1 - ccc_LT.mean(dim=-1), 0.0)


@loss("squared_error", source="the task", needs=("logits", "labels"), tasks="regression")
def squared_error(predictions_LBT: Tensor, targets_LBT: Tensor, mask_LB: Tensor | None = None) -> Tensor:
    """Return the squared error averaged over targets and labelled rows; 0 without gradient if none is."""
    return weighted_mean((predictions_LBT - targets_LBT).square().mean(dim=-1), mask_LB)
