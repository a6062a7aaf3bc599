"""Losses that treat the class of the label apart from the others.

Axes: L leading axes (lanes; any number), B batch, C classes, O other classes (C - 1).
"""

import torch
from torch import Tensor

from mmdistill.errors import NumericsError
from mmdistill.losses.base import known_labels, loss, per_lane, weighted_mean
from mmdistill.losses.softened import divergence
from mmdistill.softmax import log_softmax


@loss(
    "dkd",
    source="Zhao et al. 2022; mdistiller mdistiller/distillers/DKD.py",
    needs=("logits", "labels"),
    tasks="classification",
    temperature=(1.0, 20.0),
    alpha=(0.1, 10.0),
    beta=(0.1, 20.0),
)
def dkd(
    student_LBC: Tensor,
    teacher_LBC: Tensor,
    labels_LB: Tensor,
    *,
    temperature: float | Tensor = 4.0,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 8.0,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return T^2 (alpha TCKD + beta NCKD), averaged over the batch.

    TCKD is KL(teacher || student) between the probabilities of (label, not label), NCKD that between the
    softmaxes over the other classes alone. Decoupled knowledge distillation (Zhao et al., 2022; mdistiller
    `DKD.py`, whose mask of -1000 is the exact leaving out of a class here; its warm-up is a schedule of the
    weight). Least, 0, at the teacher.

    Args:
        student_LBC: logits.
        teacher_LBC: logits.
        labels_LB: class indices; any value on rows without weight.
        temperature: T > 0, one or one per lane.
        alpha: weight of TCKD, one or one per lane.
        beta: weight of NCKD, one or one per lane.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.

    Raises:
        NumericsError: with fewer than 3 classes, where NCKD is 0 whatever the logits are.
    """
    classes = student_LBC.shape[-1]
    if classes < 3:
        raise NumericsError(f"`student_LBC` must have >= 3 classes, but has {classes}: NCKD is always 0")
    T_L11 = per_lane(temperature, student_LBC, trailing=2)
    labels_LB1 = known_labels(labels_LB, row_weights_LB)[..., None]
    student_LBC, teacher_LBC = student_LBC / T_L11, teacher_LBC / T_L11
    tckd_LB = divergence(_hit_or_miss(teacher_LBC, labels_LB1), _hit_or_miss(student_LBC, labels_LB1))
    nckd_LB = divergence(
        log_softmax(_others(teacher_LBC, labels_LB1)),
        log_softmax(_others(student_LBC, labels_LB1)),
    )
    alpha_L1, beta_L1 = per_lane(alpha, tckd_LB, trailing=1), per_lane(beta, tckd_LB, trailing=1)
    rows_LB = (alpha_L1 * tckd_LB + beta_L1 * nckd_LB) * T_L11[..., 0].square()
    return weighted_mean(rows_LB, row_weights_LB)


def _others(values_LBC: Tensor, labels_LB1: Tensor) -> Tensor:
    """Return the values [L, B, O] of all classes but that of the label."""
    column_O = torch.arange(values_LBC.shape[-1] - 1, device=values_LBC.device)
    return values_LBC.gather(-1, column_O + (column_O >= labels_LB1))


def _hit_or_miss(logits_LBC: Tensor, labels_LB1: Tensor) -> Tensor:
    """Return the logarithms [L, B, 2] of the probabilities of the label and of all else."""
    log_p_LBC = log_softmax(logits_LBC)
    miss_LB1 = _others(log_p_LBC, labels_LB1).logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_p_LBC.gather(-1, labels_LB1), miss_LB1], dim=-1)


@loss(
    "c2kd",
    source="Huo et al. 2024; MST-Distill KD_methods/C2KD.py ntkl, main-C2KD.py; C2KD ave/main_overlap_tag.py",
    needs=("logits", "labels"),
    tasks="classification",
    threshold=(-1.0, 0.9),
    temperature=(1.0, 20.0),
)
def c2kd(
    student_LBC: Tensor,
    teacher_LBC: Tensor,
    labels_LB: Tensor,
    *,
    threshold: float | Tensor = 0.0,
    temperature: float | Tensor = 1.0,
    row_weights_LB: Tensor | None = None,
) -> Tensor:
    """Return the non-target KL(teacher || student) of the samples both rank alike, averaged over the batch.

    The logit of the label is multiplied by 0 in both (it stays in the softmax). A sample counts if Kendall's
    tau-b between its logits is above the threshold; the sum over those is divided by the size of the whole
    batch, and there is no factor T^2 (C2KD, Huo et al., 2024). The original applies it in both directions
    between proxy heads. No sample above the threshold, or equal logits: 0 without gradient. Least, 0, at the
    teacher.

    Args:
        student_LBC: logits.
        teacher_LBC: logits.
        labels_LB: class indices; any value on rows without weight.
        threshold: in [-1, 1), one or one per lane.
        temperature: T > 0, one or one per lane.
        row_weights_LB: weights >= 0 of the rows, or a mask; all alike by default.
    """
    T_L11 = per_lane(temperature, student_LBC, trailing=2)
    labels_LB1 = known_labels(labels_LB, row_weights_LB)[..., None]
    log_p_LBC, log_q_LBC = (
        log_softmax(logits_LBC.scatter(-1, labels_LB1, 0.0) / T_L11)
        for logits_LBC in (teacher_LBC, student_LBC)
    )
    alike_LB = kendall_tau(student_LBC, teacher_LBC) > per_lane(threshold, student_LBC, trailing=1)
    return weighted_mean(divergence(log_p_LBC, log_q_LBC) * alike_LB, row_weights_LB)


def kendall_tau(first_LBC: Tensor, second_LBC: Tensor) -> Tensor:
    """Return Kendall's tau-b between two rows, in [-1, 1], without gradient; 0 if one is constant."""
    signs = [
        (values_LBC[..., :, None] - values_LBC[..., None, :]).sign()
        for values_LBC in (first_LBC.detach(), second_LBC.detach())
    ]
    untied_LB = [sign_LBCC.square().sum(dim=(-2, -1)) for sign_LBCC in signs]
    scale_LB = (untied_LB[0] * untied_LB[1]).sqrt()
    return (signs[0] * signs[1]).sum(dim=(-2, -1)) / torch.where(scale_LB > 0, scale_LB, 1.0)
